"""One series from file to prepared arrays on disk, alone or by several processes.

A result is an ``.npz`` with the arrays of the accepted slices and a ``.json`` with one row a slice,
accepted or rejected. The ``.json`` is written last and whole, so a killed run leaves results that
are complete or absent.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import mvo_jax
from mvo_jax.data.cohort.geometry import PreparedSlice, Rejected, Target, prepare_series
from mvo_jax.data.importers.cine import Options, Series, printable
from mvo_jax.data.importers.formats import IMPORTERS, load_series, quiet_readers, series_label
from mvo_jax.errors import UserError

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides what a series becomes.

    Attributes:
        format: key of ``IMPORTERS``.
        options: what the user said of the source.
        target: what clips become.
        source: paths in the rows are relative to it.
    """

    format: str
    options: Options
    target: Target
    source: Path


def result_path(folder: Path, series: Series) -> Path:
    """Where the result of a series lies, without suffix."""
    identity = f"{series.name}\0{series.path}".encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(identity).hexdigest()[:24]
    return folder / digest[:2] / digest


def fingerprint(series: Series) -> str:
    """Changes when the file of a series, or the listing of its folder, changes."""
    parts = []
    for path in (series.path, *(p for p in series.detail.values() if isinstance(p, Path))):
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
    return rows if good and path.with_suffix(".npz").is_file() else None


def work(series: Series, recipe: Recipe, path: Path) -> list[Row]:
    """Read and prepare a series and store the result.

    Whatever goes wrong with the file becomes a row with a cause.

    Returns:
        One row a slice, see ``_row`` and ``rejection``.
    """
    options = recipe.options
    try:
        with quiet_readers():
            slices = load_series(IMPORTERS[recipe.format], series, options)
            results = prepare_series(
                slices,
                recipe.target,
                label=series_label(series, slices, options),
                still_images=options.still_images,
            )
    except UserError as error:
        return [rejection(series, recipe, error.cause, error.remedy)]
    except (
        Exception
    ) as error:  # one bad file, whatever a library makes of it, must not stop the rest
        cause = f"{type(error).__name__}: {printable(error)[:200]}"
        return [
            rejection(
                series,
                recipe,
                f"{printable(series.path)}: {cause}",
                "check the file, or leave it out",
            )
        ]
    accepted = [r for r in results if isinstance(r, PreparedSlice)]
    rows = [
        _row(r, series, recipe, path) if isinstance(r, PreparedSlice) else _rejected(r, recipe)
        for r in results
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    if accepted:
        for i, row in enumerate(r for r in rows if "cause" not in r):
            row["position"] = i
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez(
                file,
                video=np.stack([r.video for r in accepted]),
                lge_mask=np.stack([r.lge_mask for r in accepted]),
            )
        os.replace(temporary, path.with_suffix(".npz"))
        text = json.dumps({"fingerprint": fingerprint(series), "rows": rows})
        temporary.write_text(text)
        os.replace(temporary, path.with_suffix(".json"))
    return rows


@dataclasses.dataclass(slots=True)
class Accepted:
    """What stays in memory of an accepted slice; its row and arrays are read again when written.

    Attributes:
        case_id: of the slice.
        patient_id: of its patient.
        series: name of its series.
        source: as in the manifest.
        label: 1, 0 or -1.
        result: its result file, relative to their folder, without suffix.
        position: among the accepted slices of that file.
        split: stored split, once it is decided.
    """

    case_id: str
    patient_id: str
    series: str
    source: str
    label: int
    result: str
    position: int
    split: str = ""

    @classmethod
    def of(cls, row: Row) -> "Accepted":
        """From an accepted row."""
        texts = (row[k] for k in ("case_id", "patient_id", "series", "source"))
        # Slices of a series share most of their texts.
        case_id, patient_id, series, source = map(sys.intern, texts)
        result = sys.intern(row["result"])
        return cls(case_id, patient_id, series, source, row["label"], result, row["position"])

    def reject(self, cause: str, remedy: str) -> Row:
        """Row of a slice that was prepared and cannot be used."""
        kept = {"case_id": self.case_id, "patient_id": self.patient_id, "source": self.source}
        return kept | {"cause": f"{self.source}: {cause}", "remedy": remedy}


def read_arrays(folder: Path, case: Accepted) -> dict[str, np.ndarray]:
    """'video' and 'lge_mask' of an accepted slice."""
    with np.load(folder / f"{case.result}.npz", allow_pickle=False) as arrays:
        return {key: arrays[key][case.position] for key in ("video", "lge_mask")}


def read_row(folder: Path, case: Accepted) -> Row:
    """The whole row of an accepted slice."""
    rows = json.loads((folder / f"{case.result}.json").read_text())["rows"]
    return next(row for row in rows if row.get("position") == case.position)


def relative(path: str | Path, source: Path) -> str:
    """A path below the source as it is shown in tables."""
    with contextlib.suppress(ValueError):
        return printable(Path(path).relative_to(source).as_posix())
    return printable(path)


def rejection(series: Series, recipe: Recipe, cause: str, remedy: str) -> Row:
    """Row of a series that could not be prepared."""
    return {
        "case_id": printable(series.name),
        "patient_id": printable(series.patient_id or ""),
        "source": relative(series.path, recipe.source),
        "cause": cause,
        "remedy": remedy,
    }


def _rejected(result: Rejected, recipe: Recipe) -> Row:
    return {
        "case_id": printable(result.case_id),
        "patient_id": printable(result.patient_id),
        "source": relative(result.source, recipe.source),
        "cause": result.cause,
        "remedy": result.remedy,
    }


def _row(case: PreparedSlice, series: Series, recipe: Recipe, path: Path) -> Row:
    digest = hashlib.sha256(case.video.tobytes() + case.lge_mask.tobytes()).hexdigest()
    window = case.window
    return {
        "case_id": printable(case.case_id),
        "patient_id": printable(case.patient_id),
        "slice_index": case.slice_index,
        "series": printable(series.name),
        "label": case.label,
        "source": relative(case.source, recipe.source),
        "spacing_mm": case.spacing_mm,
        "frames": len(case.video),
        "sha256": digest,
        "source_frames": case.source_frames,
        "first_frame": case.first_frame,
        "start_row": window.start[0],
        "start_column": window.start[1],
        "step_row": window.step[0],
        "step_column": window.step[1],
        "centre_from": window.centre_from,
        "grey_low": case.intensity[0],
        "grey_high": case.intensity[1],
        "result": path.relative_to(path.parents[1]).as_posix(),
    }


def run_all(
    todo: Iterator[Series], recipe: Recipe, folder: Path, *, jobs: int
) -> Iterator[tuple[Series, list[Row]]]:
    """Work through series, in no particular order.

    Processes are plain child interpreters that talk over pipes, so a reader that crashes or is
    killed for memory costs one series: it is rejected and a new process takes its place.

    Args:
        todo: what to do; taken from as work is finished.
        recipe: how.
        folder: where results go.
        jobs: processes; 1 works in this one, where numpy may have several threads and round
            otherwise (a grey level in a million); the commands give it one.
    """
    if jobs <= 1:
        for series in todo:
            yield series, work(series, recipe, result_path(folder, series))
        return
    lock, stop = threading.Lock(), threading.Event()
    results: queue.Queue[Any] = queue.Queue(maxsize=4 * jobs)
    children: dict[int, _Child] = {}

    def put(item: Any) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                results.put(item, timeout=0.1)
                return

    def loop(number: int) -> None:
        try:
            while not stop.is_set():
                with lock:
                    series = next(todo, None)
                if series is None:
                    break
                if number not in children:
                    children[number] = _Child(recipe)
                rows = children[number].ask(series, result_path(folder, series))
                if rows is None:
                    status = children.pop(number).end()
                    rows = [
                        rejection(
                            series,
                            recipe,
                            f"{printable(series.path)}: the process that read it ended with "
                            f"status {status}",
                            "the file is damaged or too large for the memory; check it, or use "
                            "fewer --jobs",
                        )
                    ]
                put((series, rows))
        except BaseException as error:  # handed to the caller's thread
            put(error)
        put(None)

    threads = [threading.Thread(target=loop, args=(i,), daemon=True) for i in range(jobs)]
    for thread in threads:
        thread.start()
    try:
        running = jobs
        while running:
            item = results.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        stop.set()
        for child in list(children.values()):
            child.process.kill()  # wakes the threads that wait for an answer
        for thread in threads:
            thread.join()
        for child in list(children.values()):
            child.end()


class _Child:
    """A process that prepares one series at a time."""

    def __init__(self, recipe: Recipe):
        root = str(Path(mvo_jax.__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mvo_jax.data.cohort.work"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
                "OMP_NUM_THREADS": "1",
                "MKL_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
        )
        self._send(recipe)

    def _send(self, value: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(value, self.process.stdin)
            self.process.stdin.flush()

    def ask(self, series: Series, path: Path) -> list[Row] | None:
        """Rows of a series; None where the process died of it."""
        assert self.process.stdout is not None
        self._send((series, path))
        try:
            return pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError):
            return None

    def end(self) -> int:
        """Stop the process; its exit status."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            status = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status


def _main() -> None:
    """Child process: a recipe, then series one by one on stdin; rows on stdout."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        recipe: Recipe = pickle.load(source)
        while True:
            series, path = pickle.load(source)
            pickle.dump(work(series, recipe, path), sink)
            sink.flush()


if __name__ == "__main__":
    _main()
