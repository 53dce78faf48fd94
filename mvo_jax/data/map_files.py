"""Coarse maps as NIfTI on the voxels of their source, for any viewer to lay over the images."""

import re
from pathlib import Path

import numpy as np

from mvo_jax.data.importers.volume import write_volume
from mvo_jax.data.slices import Clip, Grid, Window

_DESCRIPTION = "mvo_jax coarse MVO map, blocks; 0 also outside the crop. Research only"


def on_source(coarse: np.ndarray, window: Window, shape: tuple[int, ...]) -> np.ndarray:
    """A coarse map on the pixels of its source: each takes the block its middle lies in.

    Nothing is interpolated: a block is what the model says, see ``coarse_mask.py``.

    Args:
        coarse: ``[m, m]`` over the crop, which lies in the source at ``window``.
        shape: (rows, columns) of the source, as shown, and of the result; 0 outside the crop.
    """
    side = -(-window.size // len(coarse))  # pixels of the crop a block
    out = np.zeros(shape, np.float32)
    taken = []
    for axis, count in enumerate(shape):
        at = window.to_crop(np.repeat(np.arange(count)[:, None], 2, axis=1))[:, axis] + 0.5
        inside = np.flatnonzero((at >= 0) & (at < window.size))
        taken.append((inside, np.floor(at[inside] / side).astype(int)))
    (rows, from_row), (columns, from_column) = taken
    out[np.ix_(rows, columns)] = coarse[np.ix_(from_row, from_column)]
    return out


class MapWriter:
    """Holds one source at a time, and writes its file to a folder that is made with the first."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._grid: Grid | None = None
        self._name = ""
        self._planes: dict[int, np.ndarray] = {}
        self._taken: set[str] = set()
        self.without_place = 0

    def add(self, clip: Clip, coarse: np.ndarray) -> str | None:
        """Take the map of a slice; slices of one source follow one another.

        Returns:
            Name of the file it will be in; None where the source has no place in space.
        """
        grid, window = clip.grid, clip.window
        if grid is None or window is None:
            self.without_place += 1
            return None
        if grid is not self._grid:
            self.close()
            self._grid, self._name = grid, self._file_name(clip, grid)
        column, row, _ = grid.order
        self._planes[clip.plane] = on_source(coarse, window, (grid.shape[row], grid.shape[column]))
        return self._name

    def close(self) -> None:
        """Write what is there."""
        if self._grid is not None:
            self._folder.mkdir(exist_ok=True)
            data = self._grid.stored(self._planes)
            write_volume(self._folder / self._name, data, self._grid, _DESCRIPTION)
            self._grid, self._planes = None, {}

    def _file_name(self, clip: Clip, grid: Grid) -> str:
        """Of the stack, where its slices share a file; one that no other has."""
        several = grid.shape[grid.order[2]] > 1
        case = re.sub(r"_s\d+$", "", clip.case_id) if several else clip.case_id
        base = re.sub(r"[^A-Za-z0-9_-]+", "_", case).strip("_")[:80] or "case"
        name, number = base, 1
        while name.lower() in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name.lower())
        return f"{name}_mvo_map.nii.gz"
