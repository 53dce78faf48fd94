"""Clips and masks through a window, and beats to another number of frames."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.interpolate import CubicSpline

from mvo_jax.data.slices import Window


@lru_cache(maxsize=256)
def _space_weights(source: int, start: float, step: float, size: int) -> np.ndarray:
    """Weights ``[size, source]`` of a triangle as wide as the larger of the two pixels.

    Linear where the source is coarser, an average where it is finer; edge pixels repeat outside.
    """
    width = max(step, 1.0)
    centres = start + (np.arange(size) + 0.5) * step - 0.5
    reach = int(np.ceil(width)) + 1
    taps = np.floor(centres).astype(int)[:, None] + np.arange(-reach, reach + 1)
    weight = np.maximum(0.0, 1.0 - np.abs(taps - centres[:, None]) / width)
    weight /= weight.sum(axis=1, keepdims=True)
    out = np.zeros((size, source))
    np.add.at(out, (np.arange(size)[:, None], taps.clip(0, source - 1)), weight)
    return out.astype(np.float32)


def resample_image(
    cine: np.ndarray, step: Sequence[float], shape: Sequence[int], start: Sequence[float] = (0, 0)
) -> np.ndarray:
    """Images in another spacing, float32 ``[T, *shape]``; for start and step see ``Window``."""
    rows, columns = map(_space_weights, cine.shape[1:], start, step, shape)
    return rows @ (cine.astype(np.float32) @ columns.T)


def resample_space(cine: np.ndarray, window: Window) -> np.ndarray:
    """Crop and resample images, float32 ``[T, size, size]``."""
    return resample_image(cine, window.step, (window.size,) * 2, window.start)


@lru_cache(maxsize=64)
def _time_weights(source: int, frames: int, first: int) -> np.ndarray:
    """Weights ``[frames, source]`` of the periodic cubic spline through all phases."""
    if source == 1:
        return np.ones((frames, 1), np.float32)
    at = (first + np.arange(frames) * source / frames) % source
    closed = np.vstack([np.eye(source), np.eye(source)[:1]])
    spline = CubicSpline(np.arange(source + 1), closed, bc_type="periodic")
    return spline(at).astype(np.float32)


def resample_time(clip: np.ndarray, frames: int, *, first: int = 0) -> np.ndarray:
    """A beat from source frame ``first`` on, interpolated periodically unless frames are kept."""
    if frames == len(clip):
        return np.roll(clip, -first, axis=0)
    return np.tensordot(_time_weights(len(clip), frames, first), clip, axes=1)


def resample_mask(mask: np.ndarray, window: Window) -> np.ndarray:
    """Carry a label mask through a window: the label at each pixel's centre, 0 outside."""
    grid = np.arange(window.size)
    nearest = np.floor(window.to_source(np.stack([grid, grid], axis=-1)) + 0.5).astype(int)
    out = np.zeros((window.size,) * 2, np.uint8)
    inside = (nearest >= 0) & (nearest < np.array(mask.shape))
    rows, columns = np.flatnonzero(inside[:, 0]), np.flatnonzero(inside[:, 1])
    out[np.ix_(rows, columns)] = mask[np.ix_(nearest[rows, 0], nearest[columns, 1])]
    return out
