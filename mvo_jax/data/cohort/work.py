"""One series to an ``.npz`` with the arrays of its accepted slices and a ``.json`` of rows.

The ``.json`` is written last and whole: a killed run leaves results that are complete or absent.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.cohort.series import read_series
from mvo_jax.data.importers.cine import Options, Series, printable
from mvo_jax.data.slices import CineSlice, Clip, Rejected, Target

Row = dict[str, Any]  # of an accepted slice: what the manifest says, and where its arrays lie


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides what a series becomes."""

    load: Callable[[Series, Options], list[CineSlice]]
    options: Options
    target: Target
    source: Path  # paths in the rows are relative to it

    def rejected(self, one: Rejected) -> Rejected:
        """A rejection as tables show it."""
        return dataclasses.replace(
            one,
            case_id=printable(one.case_id),
            patient_id=printable(one.patient_id),
            source=self.relative(one.source),
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
    return rows if good and path.with_suffix(".npz").is_file() else None


def prepare_one(recipe: Recipe, folder: Path, series: Series) -> list[Row | Rejected]:
    """Read and prepare a series and store the result below a folder; one entry a slice."""
    path = result_path(folder, series)
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


def read_example(folder: Path, row: Row) -> dict[str, Any]:
    """An accepted slice as ``case_features`` has it."""
    names = ("label", "case_id", "patient_id", "slice_index")
    with np.load(folder / f"{row['result']}.npz", allow_pickle=False) as arrays:
        images = {key: arrays[key][row["position"]] for key in ("video", "lge_mask")}
    return {name: row[name] for name in names} | images | {"features": {}}
