"""What one person drops on the page: received, predicted, shown, corrected and deleted.

Nothing of it is on the disk but the images as they came, in a folder that only this user can read
and that goes with the process.
"""

import dataclasses
import io
import logging
import math
import shutil
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mvo_jax.data.clips import in_batches
from mvo_jax.data.cohort.series import read_series
from mvo_jax.data.importers.archive import renamed, unpack
from mvo_jax.data.importers.cine import Importer, Options, Series, printable
from mvo_jax.data.importers.formats import choose_importer
from mvo_jax.data.importers.table import Row, Table
from mvo_jax.data.map_files import MapWriter
from mvo_jax.data.slices import Clip, Rejected
from mvo_jax.errors import UserError
from mvo_jax.evaluation.figures import pictures
from mvo_jax.evaluation.pages.case_results import case_row, patient_rows
from mvo_jax.files import write_csv
from mvo_jax.predict_images import Model
from mvo_jax.serving import upload
from mvo_jax.serving.refusal import Refusal
from mvo_jax.serving.upload import Upload

log = logging.getLogger(__name__)

MAX_SLICES = 500  # each keeps half a megabyte
_NO_FILE_HERE = ("picture", "animation", "map")  # columns of predict's table
_CENTRE = ("centre_row", "centre_column")


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A predicted slice."""

    series: Series  # that it was read from
    clip: Clip  # its images
    coarse_mask: np.ndarray | None  # float [m, m], or None
    row: dict[str, Any]  # of the table
    version: int = 0  # grows when its crop is moved


class Session:
    """The images of one person, in a folder of their own, and what was predicted of them.

    Requests come from several threads; one of them at a time reads images and predicts.
    """

    def __init__(self, model: Model, threshold: float | None = None):
        self.model, self.threshold = model, model.decision(threshold)
        self._predictor = model.predictor(model.batch_size, with_mask=True)
        self._root = Path(tempfile.mkdtemp(prefix="mvo_jax-serve-"))  # mode 0700
        self._lock = threading.RLock()
        self._round = 0
        self._job: threading.Thread | None = None
        self._reset()

    def _reset(self) -> None:
        self._round += 1
        self._folder = self._root / str(self._round)
        self._phase, self._error = "empty", None
        self._upload = Upload(self._folder / "dropped")
        self._done, self._series_count = 0, 0
        self._importer: Importer | None = None
        self._read_from = self._named = self._folder
        self._moved: dict[str, Row] = {}
        self._cases: list[Case] = []
        self._failed: list[Rejected] = []

    # Receiving

    def _check(self, drop: int | None) -> None:
        """Refuse what a window asks that shows, or sends, other images than those that are here."""
        if drop not in (None, self._round):
            cause = "images were dropped or deleted in another window"
            raise Refusal(409, cause, "load the page again, or drop yours again")

    def receive(
        self, name: str, stream: io.BufferedIOBase, length: int, drop: int | None = None
    ) -> None:
        """Store one file, see ``Upload.receive``.

        ``drop``, here and in the others, is the number in ``state`` of the drop that is meant; None
        is the one that is here. A second window must not mix its files, crops and pictures with
        those of the first.

        Raises:
            Refusal: another drop is here, or the one before is being deleted.
        """
        with self._lock:
            self._check(drop)
            if self._job is not None and self._job.is_alive() and self._phase == "empty":
                raise Refusal(409, "the images before are being deleted", "drop them again")
            receiving = self._upload
        receiving.receive(name, stream, length)

    # Predicting

    def predict(self, drop: int | None = None) -> None:
        """Begin to read and predict what was received; ``state`` tells how far it is.

        Raises:
            Refusal: nothing was received, not all of it, or it is being read already.
        """
        with self._lock:
            self._check(drop)
            self._upload.seal()
            self._phase = "working"
            arguments = self._round, self._folder
            self._job = threading.Thread(target=self._work, args=arguments, daemon=True)
            self._job.start()

    def _work(self, now: int, folder: Path) -> None:
        """Everything that was dropped, series by series; an error is shown, not raised."""
        try:
            self._open(folder)
            self._read_all(now)
            if now != self._round:
                return
            if not self._cases:
                first = self._failed[0]
                raise UserError(f"nothing could be predicted: {first.cause}", first.remedy)
            end, error = "done", None
        except UserError as wrong:
            end, error = "failed", (self._shown(wrong.cause), _for_page(wrong.remedy))
        except Exception as wrong:
            if now != self._round:  # what was being read has been deleted
                return
            log.exception("prediction failed")
            cause = self._shown(f"{type(wrong).__name__}: {wrong}")[:200]
            end, error = "failed", (cause, "check the images, or drop them again")
        with self._lock:
            if now == self._round:
                self._phase, self._error = end, error

    def _open(self, folder: Path) -> None:
        dropped = folder / "dropped"
        (only, *more) = sorted(dropped.iterdir())
        self._read_from = self._named = dropped if more else only
        self._read_from = unpack(
            self._named, folder / "unpacked", limit=upload.MAX_BYTES, most_names=upload.MAX_FILES
        )
        self._importer = choose_importer(self._read_from)

    def _read_all(self, now: int) -> None:
        assert self._importer is not None
        every = list(self._importer.find(self._read_from, Options()))
        if not every:
            raise UserError(
                f"{self._named.name} holds nothing to read as {self._importer.title}",
                "drop the folder of a patient",
            )
        with self._lock:
            self._series_count = len(every)
        for series in every:
            cases, failed = self._predict_series(series)
            with self._lock:
                if now != self._round:
                    return
                self._cases += cases
                self._failed += failed
                self._done += 1
                if len(self._cases) > MAX_SLICES:
                    cause = f"more than {MAX_SLICES} slices"
                    raise UserError(cause, "use: python -m mvo_jax predict")

    def _predict_series(
        self, series: Series, only: str | None = None
    ) -> tuple[list[Case], list[Rejected]]:
        """Read a series and predict its slices, or one of them by its case id."""
        assert self._importer is not None
        options = Options(table=Table(rows=self._moved))
        read = read_series(
            self._importer.load, series, options, self.model.geometry, with_overview=True
        )
        clips = [one for one in read if isinstance(one, Clip) and only in (None, one.case_id)]
        failed = [
            dataclasses.replace(one, cause=self._shown(one.cause), remedy=_for_page(one.remedy))
            for one in read
            if isinstance(one, Rejected)
        ]
        if not clips:
            return [], failed
        video = np.stack([clip.video for clip in clips])
        found = in_batches(self._predictor, video, self.model.batch_size)
        masks, cases = found["coarse_mask"], []
        for i, clip in enumerate(clips):
            probability = float(found["probability"][i])
            if not math.isfinite(probability):
                raise UserError(f"the model gives {probability}", "export it again")
            row = case_row(clip, probability, self.threshold)
            for key in ("case_id", "patient_id"):
                row[key] = printable(row[key])
            row["source"] = self._shown(clip.source)
            centre = self._moved[clip.case_id].centre if clip.case_id in self._moved else None
            row |= dict(zip(_CENTRE, centre or (None, None), strict=True))
            cases.append(Case(series, clip, None if masks is None else masks[i], row))
        return cases, failed

    def move(self, index: int, centre: tuple[float, float], drop: int | None = None) -> None:
        """Put the crop of a slice elsewhere and predict it again.

        Args:
            index: of the slice in ``state``.
            centre: (row, column) of the source, pixel centres are integers.

        Raises:
            Refusal: no such slice, a centre outside the image, or no prediction is ready.
        """
        with self._lock:
            self._check(drop)
            if self._phase != "done" or not 0 <= index < len(self._cases):
                raise Refusal(409, "there is no such slice", "wait until all are predicted")
            case, before = self._cases[index], dict(self._moved)
            self._moved[case.clip.case_id] = Row(0, case_id=case.clip.case_id, centre=centre)
            try:
                cases, failed = self._predict_series(case.series, only=case.clip.case_id)
                if not cases:
                    own = [one for one in failed if one.case_id == case.clip.case_id] or failed
                    raise UserError(own[0].cause, own[0].remedy)
            except UserError as error:
                self._moved = before
                raise Refusal(422, self._shown(error.cause), _for_page(error.remedy)) from error
            # Slices of one stack are known by their having one grid.
            clip = dataclasses.replace(cases[0].clip, grid=case.clip.grid)
            version = case.version + 1
            self._cases[index] = dataclasses.replace(cases[0], clip=clip, version=version)

    # Showing

    def state(self) -> dict[str, Any]:
        """All that the page shows, as plain JSON types."""
        with self._lock:
            finished = self._phase == "done"
            rows = [case.row for case in self._cases]
            return {
                "phase": self._phase,
                "drop": self._round,
                "files": self._upload.files,
                "series": self._series_count,
                "done": self._done,
                "error": self._error,
                "model": self.model.name,
                "simulated": self.model.simulated,
                "threshold": self.threshold.value,
                "origin": self.threshold.origin,
                "scale": self._scale(),
                "maps": finished and any(map(_has_map_file, self._cases)),
                "slices": [_shown_case(case) for case in self._cases] if finished else [],
                "patients": patient_rows(rows, self.threshold) if finished else [],
                "failed": [
                    {"case_id": printable(f.case_id), "cause": f.cause, "remedy": f.remedy}
                    for f in self._failed
                ],
            }

    def _scale(self) -> float:
        masks = (case.coarse_mask for case in self._cases if case.coarse_mask is not None)
        return pictures.map_maximum(masks)

    def _case(self, index: int, drop: int | None) -> Case:
        with self._lock:
            self._check(drop)
            if self._phase != "done" or not 0 <= index < len(self._cases):
                raise Refusal(404, "there is no such slice", "load the page again")
            return self._cases[index]

    def beat(self, index: int, drop: int | None = None) -> bytes:
        """The beating clip of a slice beside its map, an animated WebP; Refusal without slice."""
        case = self._case(index, drop)
        video = case.clip.video[..., 0]
        return pictures.animation(video, case.coarse_mask, map_maximum=self._scale())

    def source(self, index: int, drop: int | None = None) -> bytes:
        """The first frame of a slice as it lies in the source, a WebP; Refusal without slice."""
        overview = self._case(index, drop).clip.overview
        assert overview is not None
        return pictures.webp(Image.fromarray(overview.image))

    def table(self) -> bytes:
        """``predictions.csv``, with the centres of moved crops; Refusal before a prediction."""
        with self._lock:
            if self._phase != "done":
                raise Refusal(404, "nothing was predicted", "drop images first")
            rows = [case.row for case in self._cases]
            path = self._folder / "predictions.csv"
            write_csv(path, [key for key in rows[0] if key not in _NO_FILE_HERE], rows)
            content = path.read_bytes()
            path.unlink()
            return content

    def maps(self) -> bytes:
        """A ``.zip`` of the coarse maps on the voxels of their sources, as ``predict --nifti``.

        Refusal where nothing was predicted, or nothing that has maps and a place in space.
        """
        with self._lock:
            kept = [case for case in self._cases if _has_map_file(case)]
            if self._phase != "done" or not kept:
                raise Refusal(404, "there is no map in space", "drop DICOM or NIfTI images")
            folder = self._folder / "maps"
            writer = MapWriter(folder)
            for case in kept:
                assert case.coarse_mask is not None
                writer.add(case.clip, case.coarse_mask)
            writer.close()
            content = io.BytesIO()
            with zipfile.ZipFile(content, "w") as archive:
                for path in sorted(folder.iterdir()):
                    archive.write(path, path.name)
            shutil.rmtree(folder)
            return content.getvalue()

    def _shown(self, text: str) -> str:
        """A message that names what was dropped, not where it was put."""
        for folder in (self._read_from, self._named):
            text = renamed(text, folder, Path(self._named.name))
        return printable(text.replace(str(self._folder / "dropped"), "the images"))

    # Deleting

    def clear(self, seconds: float | None = None) -> None:
        """Delete all that was dropped and predicted, once the series that is being read has ended.

        ``seconds``: most to wait for that; None waits for good.
        """
        with self._lock:
            folder, job = self._folder, self._job
            self._upload.delete()
            self._reset()
        if job is not None:
            job.join(seconds)
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Delete everything, the folder itself too; nothing is received any more."""
        self.clear(seconds=5)
        with self._lock:
            self._upload.delete()
        shutil.rmtree(self._root, ignore_errors=True)


def _has_map_file(case: Case) -> bool:
    return case.coarse_mask is not None and case.clip.grid is not None


def _for_page(remedy: str) -> str:
    """What to do, for somebody who gives no flags here; said once, however often it is asked."""
    where = " of: python -m mvo_jax predict"
    return remedy + where if "--" in remedy and not remedy.endswith(where) else remedy


def _shown_case(case: Case) -> dict[str, Any]:
    overview = case.clip.overview
    assert overview is not None
    height, width = overview.image.shape
    return {
        **{key: case.row[key] for key in ("case_id", "patient_id", "slice_index", "probability")},
        "suspected": bool(case.row["decision"]),
        "centre_from": case.clip.centre_from,
        "width": width,
        "height": height,
        "box": [overview.left, overview.top, overview.right, overview.bottom],
        "map": case.coarse_mask is not None,
        "version": case.version,
    }
