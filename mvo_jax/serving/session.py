"""What one person drops on the page: received, predicted, shown, corrected and deleted.

Nothing of it is on the disk but the images as they came, in a folder that only this user can read
and that goes with the process.
"""

import contextlib
import dataclasses
import io
import logging
import math
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from mvo_jax.data.cohort.series import read_series
from mvo_jax.data.importers.archive import renamed, unpack
from mvo_jax.data.importers.cine import Importer, Options, Series, printable
from mvo_jax.data.importers.formats import choose_importer
from mvo_jax.data.importers.table import Row, Table
from mvo_jax.data.slices import Clip, Rejected
from mvo_jax.errors import UserError
from mvo_jax.evaluation.figures import pictures
from mvo_jax.evaluation.pages.case_results import case_row, patient_rows
from mvo_jax.files import write_csv
from mvo_jax.predict_images import Model
from mvo_jax.serving.refusal import Refusal

log = logging.getLogger(__name__)

MAX_BYTES = 2 << 30  # of an upload, and of what a .zip holds
MAX_FILES = 20_000
MAX_SLICES = 500  # each keeps half a megabyte
_ROOM_BYTES = 256 << 20  # of the disk that stays free
_CHUNK = 1 << 20
_CENTRE = ("centre_row", "centre_column")


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A predicted slice.

    Attributes:
        series: that it was read from.
        clip: its images.
        coarse_mask: float ``[m, m]``, or None.
        row: of the table.
        version: grows when its crop is moved.
    """

    series: Series
    clip: Clip
    coarse_mask: np.ndarray | None
    row: dict[str, Any]
    version: int = 0


class Session:
    """The images of one person, in a folder of their own, and what was predicted of them.

    Requests come from several threads; one of them at a time reads images and predicts.

    Args:
        model: predicts.
        threshold: decision threshold in place of the model's.
    """

    def __init__(self, model: Model, threshold: float | None = None):
        self.model, self.threshold = model, model.decision(threshold)
        self._predictor = model.predictor(model.batch_size, with_mask=True)
        self._root = Path(tempfile.mkdtemp(prefix="mvo_jax-serve-"))  # mode 0700
        self._lock = threading.RLock()
        self._round, self._closed = 0, False
        self._job: threading.Thread | None = None
        self._reset()

    def _reset(self) -> None:
        self._round += 1
        self._folder = self._root / str(self._round)
        self._phase, self._error = "empty", None
        self._bytes, self._files, self._writing = 0, 0, 0
        self._done, self._series_count = 0, 0
        self._importer: Importer | None = None
        self._read_from = self._named = self._folder
        self._moved: dict[str, Row] = {}
        self._cases: list[Case] = []
        self._failed: list[Rejected] = []

    # Receiving

    def receive(self, name: str, stream: io.BufferedIOBase, length: int) -> None:
        """Store one file.

        Args:
            name: path relative to what was dropped, ``/`` between its parts.
            stream: of which ``length`` bytes are read.
            length: of the file.

        Raises:
            Refusal: a path that could lead out of the folder or that is there already, too many
                bytes or files, images that are being read just now, or a stream that ends early.
        """
        parts = _parts(name)
        with self._lock:
            if self._closed or self._phase not in ("empty", "receiving"):
                raise Refusal(409, "images are here already", "clear them first")
            if self._job is not None and self._job.is_alive():  # it reads those of the round before
                raise Refusal(409, "the images before are being deleted", "drop them again")
            if self._files >= MAX_FILES or self._bytes + length > MAX_BYTES:
                raise Refusal(
                    413,
                    f"more than {MAX_BYTES >> 20} MB or {MAX_FILES} files",
                    "drop one patient at a time, or use: python -m mvo_jax predict",
                )
            if shutil.disk_usage(self._root).free < length + _ROOM_BYTES:
                raise Refusal(507, "the disk is full", "free some space")
            path, now = self._folder.joinpath("dropped", *parts), self._round
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = path.open("xb")
            except OSError as error:
                cause = f"{printable(name)} cannot be stored ({error.strerror})"
                raise Refusal(409, cause, "drop it once, under another name") from error
            self._phase = "receiving"
            self._bytes, self._files = self._bytes + length, self._files + 1
            self._writing += 1
        left = length
        try:
            with file:
                while left and (chunk := stream.read(min(left, _CHUNK))):
                    try:
                        left -= file.write(chunk)
                    except OSError as error:
                        cause = f"{printable(name)} cannot be stored ({error.strerror})"
                        raise Refusal(507, cause, "free some space") from error
        finally:
            with self._lock:
                if now == self._round:
                    self._writing -= 1
                    if left:
                        self._bytes, self._files = self._bytes - length, self._files - 1
                        self._phase = "receiving" if self._files else "empty"
                if left or now != self._round:
                    path.unlink(missing_ok=True)
        if now != self._round:
            raise Refusal(409, "these images were deleted", "drop them again")
        if left:
            raise Refusal(400, f"{printable(name)} ended early", "drop it again")

    # Predicting

    def predict(self) -> None:
        """Begin to read and predict what was received; ``state`` tells how far it is.

        Raises:
            Refusal: nothing was received, or it is being read already.
        """
        with self._lock:
            if self._closed or self._phase != "receiving" or self._writing:
                raise Refusal(409, "no images are waiting", "drop some first")
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
            self._named, folder / "unpacked", limit=MAX_BYTES, most_names=MAX_FILES
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
                    raise UserError(
                        f"more than {MAX_SLICES} slices", "use: python -m mvo_jax predict"
                    )

    def _predict_series(self, series: Series) -> tuple[list[Case], list[Rejected]]:
        assert self._importer is not None
        options = Options(table=Table(rows=self._moved))
        read = read_series(
            self._importer.load, series, options, self.model.geometry, with_overview=True
        )
        clips = [one for one in read if isinstance(one, Clip)]
        failed = [one for one in read if isinstance(one, Rejected)]
        failed = [
            dataclasses.replace(one, cause=self._shown(one.cause), remedy=_for_page(one.remedy))
            for one in failed
        ]
        if not clips:
            return [], failed
        probabilities, masks = self._compute(np.stack([clip.video for clip in clips]))
        cases = []
        for i, clip in enumerate(clips):
            probability = float(probabilities[i])
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

    def _compute(self, video: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Probability of every clip, and its coarse map where the model has a mask branch."""
        size = self.model.batch_size
        parts = [self._predictor(video[i : i + size]) for i in range(0, len(video), size)]
        masks = [part["coarse_mask"] for part in parts if "coarse_mask" in part]
        probability = np.concatenate([part["probability"] for part in parts])
        return probability, np.concatenate(masks) if masks else None

    def move(self, index: int, centre: tuple[float, float]) -> None:
        """Put the crop of a slice elsewhere and predict it again.

        Args:
            index: of the slice in ``state``.
            centre: (row, column) of the source, pixel centres are integers.

        Raises:
            Refusal: no such slice, a centre outside the image, or no prediction is ready.
        """
        with self._lock:
            if self._phase != "done" or not 0 <= index < len(self._cases):
                raise Refusal(409, "there is no such slice", "wait until all are predicted")
            case, before = self._cases[index], dict(self._moved)
            self._moved[case.clip.case_id] = Row(0, case_id=case.clip.case_id, centre=centre)
            try:
                cases, failed = self._predict_series(case.series)
                moved = [one for one in cases if one.clip.case_id == case.clip.case_id]
                if not moved:
                    first = failed[0]
                    raise UserError(first.cause, first.remedy)
            except UserError as error:
                self._moved = before
                raise Refusal(422, self._shown(error.cause), _for_page(error.remedy)) from error
            self._cases[index] = dataclasses.replace(moved[0], version=case.version + 1)

    # Showing

    def state(self) -> dict[str, Any]:
        """All that the page shows, as plain JSON types."""
        with self._lock:
            finished = self._phase == "done"
            rows = [case.row for case in self._cases]
            return {
                "phase": self._phase,
                "files": self._files,
                "series": self._series_count,
                "done": self._done,
                "error": self._error,
                "model": self.model.name,
                "simulated": self.model.simulated,
                "threshold": self.threshold.value,
                "origin": self.threshold.origin,
                "scale": self._scale(),
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

    def _case(self, index: int) -> Case:
        with self._lock:
            if self._phase != "done" or not 0 <= index < len(self._cases):
                raise Refusal(404, "there is no such slice", "load the page again")
            return self._cases[index]

    def beat(self, index: int) -> bytes:
        """The beating clip of a slice beside its map, an animated WebP.

        Raises:
            Refusal: no such slice.
        """
        case = self._case(index)
        return pictures.animation(
            case.clip.video[..., 0], case.coarse_mask, map_maximum=self._scale()
        )

    def source(self, index: int) -> bytes:
        """The first frame of a slice as it lies in the source, a WebP.

        Raises:
            Refusal: no such slice.
        """
        overview = self._case(index).clip.overview
        assert overview is not None
        return pictures.webp(Image.fromarray(overview.image))

    def table(self) -> bytes:
        """``predictions.csv``, with the centres of crops that were moved.

        Raises:
            Refusal: nothing was predicted.
        """
        with self._lock:
            if self._phase != "done":
                raise Refusal(404, "nothing was predicted", "drop images first")
            rows = [case.row for case in self._cases]
            path = self._folder / "predictions.csv"
            write_csv(path, [key for key in rows[0] if key not in ("picture", "animation")], rows)
            content = path.read_bytes()
            path.unlink()
            return content

    def _shown(self, text: str) -> str:
        """A message that names what was dropped, not where it was put."""
        for folder in (self._read_from, self._named):
            text = renamed(text, folder, Path(self._named.name))
        return printable(text.replace(str(self._folder / "dropped"), "the images"))

    # Deleting

    def clear(self, seconds: float | None = None) -> None:
        """Delete all that was dropped and predicted, once the series that is being read has ended.

        Args:
            seconds: most to wait for that; None waits for good.
        """
        with self._lock:
            folder, job = self._folder, self._job
            self._reset()
        if job is not None:
            job.join(seconds)
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Delete everything, the folder itself too; nothing is received any more."""
        with self._lock:
            self._closed = True
        self.clear(seconds=5)
        shutil.rmtree(self._root, ignore_errors=True)


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


def _parts(name: str) -> Sequence[str]:
    """The parts of a dropped file's path.

    Raises:
        Refusal: it could mean another place, or no system would take it.
    """
    parts = name.split("/")
    with contextlib.suppress(UnicodeEncodeError):
        sound = (
            PurePosixPath(name).parts == tuple(parts)
            and len(name.encode()) <= 1024
            and len(parts) <= 16
            and all(len(part.encode()) <= 200 for part in parts)
            and not any(part in (".", "..") or set(part) & set("\\:\0\r\n") for part in parts)
            and name[:1] != "/"
        )
        if sound:
            return parts
    raise Refusal(400, f"{printable(name)[:80]!r} is no name for a file", "rename it")
