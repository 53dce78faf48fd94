"""One series from file to prepared arrays on disk, alone or by several processes.

A result is an ``.npz`` with the arrays of the accepted slices and a ``.json`` with one row a slice,
accepted or rejected. The ``.json`` is written last and whole, so a killed run leaves results that
are complete or absent.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import queue
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.cohort.series import read_series
from mvo_jax.data.importers.cine import Options, Series, printable
from mvo_jax.data.processes import Worker
from mvo_jax.data.slices import CineSlice, Clip, Rejected, Target

Row = dict[str, Any]  # of an accepted slice: what the manifest says, and where its arrays lie


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides what a series becomes.

    Attributes:
        load: of the importer.
        options: what the user said of the source.
        target: what clips become.
        source: paths in the rows are relative to it.
    """

    load: Callable[[Series, Options], list[CineSlice]]
    options: Options
    target: Target
    source: Path

    def rejected(self, one: Rejected) -> Rejected:
        """A rejection as tables show it."""
        return Rejected(
            printable(one.case_id),
            printable(one.patient_id),
            self.relative(one.source),
            one.cause,
            one.remedy,
            one.images,
        )

    def relative(self, path: str) -> str:
        """A path below the source as tables show it."""
        with contextlib.suppress(ValueError):
            return printable(Path(path).relative_to(self.source).as_posix())
        return printable(path)


def result_path(folder: Path, series: Series) -> Path:
    """Where the result of a series lies, without suffix."""
    identity = f"{series.name}\0{series.path}".encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(identity).hexdigest()[:24]
    return folder / digest[:2] / digest


def fingerprint(series: Series) -> str:
    """Changes when the file of a series, or the listing of its folder, changes."""
    parts = []
    paths = [p for p in series.detail.values() if isinstance(p, Path)]
    for path in (series.path, *paths, *series.detail.get("files", ())):
        with contextlib.suppress(OSError):
            status = path.stat()
            parts.append(f"{status.st_size}-{status.st_mtime_ns}")
    return " ".join(parts)


def stored_rows(path: Path, series: Series) -> list[Row] | None:
    """Rows of an earlier run, if the series was accepted as a whole and has not changed since."""
    try:
        content = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return None
    rows = content["rows"]
    good = content["fingerprint"] == fingerprint(series) and all("cause" not in r for r in rows)
    good = good and all("pixels" in row for row in rows)  # not of an older version
    return rows if good and path.with_suffix(".npz").is_file() else None


def prepare_one(recipe: Recipe, series: Series, path: Path) -> list[Row | Rejected]:
    """Read and prepare a series and store the result.

    Args:
        recipe: how.
        series: what.
        path: where the result goes, without suffix.

    Returns:
        One entry a slice.
    """
    out: list[Row | Rejected] = []
    clips: list[Clip] = []
    for result in read_series(recipe.load, series, recipe.options, recipe.target):
        if isinstance(result, Rejected):
            out.append(recipe.rejected(result))
        else:
            out.append(_row(result, series, recipe, path, position=len(clips)))
            clips.append(result)
    if clips:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            masks = np.stack([_mask(clip) for clip in clips])
            np.savez(file, video=np.stack([clip.video for clip in clips]), lge_mask=masks)
        os.replace(temporary, path.with_suffix(".npz"))
        rows = [dataclasses.asdict(r) if isinstance(r, Rejected) else r for r in out]
        temporary.write_text(json.dumps({"fingerprint": fingerprint(series), "rows": rows}))
        os.replace(temporary, path.with_suffix(".json"))
    return out


def _mask(clip: Clip) -> np.ndarray:
    """The clip's mask as it is stored: zeros where nothing is drawn."""
    return np.zeros(clip.video.shape[1:3], np.uint8) if clip.lge_mask is None else clip.lge_mask


def _row(clip: Clip, series: Series, recipe: Recipe, path: Path, *, position: int) -> Row:
    """What the manifest says of a clip, and where its arrays lie."""
    assert clip.window is not None
    assert clip.intensity is not None
    return {
        "case_id": printable(clip.case_id),
        "patient_id": printable(clip.patient_id),
        "slice_index": clip.slice_index,
        "series": printable(series.name),
        "label": clip.label,
        "source": recipe.relative(clip.source),
        "spacing_mm": clip.spacing_mm,
        "frames": len(clip.video),
        "sha256": hashlib.sha256(clip.video.tobytes() + _mask(clip).tobytes()).hexdigest(),
        "pixels": clip.source_pixels,
        "source_frames": clip.source_frames,
        "first_frame": clip.first_frame,
        "start_row": clip.window.start[0],
        "start_column": clip.window.start[1],
        "step_row": clip.window.step[0],
        "step_column": clip.window.step[1],
        "centre_from": clip.window.centre_from,
        "confidence": clip.window.confidence,
        "grey_low": clip.intensity[0],
        "grey_high": clip.intensity[1],
        "result": path.relative_to(path.parents[1]).as_posix(),
        "position": position,
        "note": printable(clip.note),
        "images": dict(clip.images),
    }


def compact(row: Row) -> Row:
    """The same row in less memory: slices share their keys and most of their texts."""
    return {
        sys.intern(key): sys.intern(value) if isinstance(value, str) else value
        for key, value in row.items()
    }


def read_arrays(folder: Path, row: Row) -> dict[str, np.ndarray]:
    """'video' and 'lge_mask' of an accepted slice."""
    with np.load(folder / f"{row['result']}.npz", allow_pickle=False) as arrays:
        return {key: arrays[key][row["position"]] for key in ("video", "lge_mask")}


def prepare_all(
    todo: Iterator[Series], recipe: Recipe, folder: Path, *, jobs: int
) -> Iterator[list[Row | Rejected]]:
    """Prepare series, in no particular order.

    A reader that crashes or is killed for memory costs one series: it is rejected and a new process
    takes its place.

    Args:
        todo: what to do; taken from as work is finished.
        recipe: how.
        folder: where results go.
        jobs: processes; 1 works in this one, where numpy may have several threads and round
            otherwise (a grey level in a million); the commands give it one.

    Yields:
        ``prepare_one`` of each.
    """
    if jobs <= 1:
        for series in todo:
            yield prepare_one(recipe, series, result_path(folder, series))
        return
    function = functools.partial(prepare_one, recipe)
    workers: list[Worker] = []
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()

    def ask(series: Series) -> list[Row | Rejected]:
        try:
            worker = idle.get_nowait()
        except queue.Empty:
            worker = Worker(function)
            workers.append(worker)
        worker.send((series, result_path(folder, series)))
        try:
            answer = worker.receive()
        except EOFError:
            status = worker.end()
            lost = series.rejected(
                f"{printable(series.path)}: the process that read it ended with status {status}",
                "the file is damaged or too large for the memory; check it, or use fewer --jobs",
            )
            return [recipe.rejected(lost)]
        idle.put(worker)
        return answer

    threads = ThreadPoolExecutor(jobs)
    try:
        pending = {threads.submit(ask, series) for series in itertools.islice(todo, 2 * jobs)}
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for answer in done:
                yield answer.result()
                pending |= {threads.submit(ask, series) for series in itertools.islice(todo, 1)}
    finally:
        for worker in workers:
            worker.process.kill()  # wakes the threads that wait for an answer
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.end()
