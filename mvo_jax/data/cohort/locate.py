"""Where the left ventricle is, by the locator's network, and how far that is to be believed."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from scipy import ndimage

from mvo_jax.data.cohort.resample import resample_image
from mvo_jax.data.locator import network
from mvo_jax.data.locator.network import SPACING_MM, Weights
from mvo_jax.data.slices import CineSlice

FRAMES = 12  # of a slice that are looked at, evenly spaced; more change nothing that was measured
MIN_CONFIDENCE = 0.8
_NEAR_MM = 25.0  # a cavity's radius or so: blood further away is another place
# What a frame must show there. Of frames with a ventricle 99 in 100 do, of others few.
_LEAST_PEAK, _LEAST_MM2, _LEAST_SHARE = 0.9, 150.0, 0.3


class Found(NamedTuple):
    """A ventricle."""

    centre: np.ndarray  # ``[2]``, pixels (row, column) from the image's outer edge
    # Share of the frames, 0 to 1, that show a cavity there and not much more of it elsewhere; of a
    # stack, over the better half of its slices, because above the base and below the apex there is
    # none. A mean probability says less: it is high, too, where the network is wrong.
    confidence: float


def locate(slices: Sequence[CineSlice], weights: Weights | None = None) -> Found:
    """Centre of the left ventricle of sound slices of one size and one known spacing.

    The probability is averaged over the frames and summed over the slices, so that what is taken
    for a cavity in one frame counts little.
    """
    pixel_mm = slices[0].pixel_mm
    assert pixel_mm is not None
    weights = network.shipped_weights() if weights is None else weights
    frames = min(FRAMES, *(len(one.cine) for one in slices))
    maps = np.stack([probability(one.cine, pixel_mm, weights, frames) for one in slices])
    place, confidence = joint_centre(maps)
    return Found((place + 0.5) * SPACING_MM / np.array(pixel_mm), confidence)


def probability(
    cine: np.ndarray, pixel_mm: tuple[float, float], weights: Weights, frames: int = FRAMES
) -> np.ndarray:
    """Probability of the cavity in some frames of ``[T, H, W]``, float32 ``[frames or T, h, w]``.

    It is on the locator's grid, whose pixel 0 begins where the image begins.
    """
    chosen = np.unique(np.arange(frames) * len(cine) // frames)
    step = SPACING_MM / np.array(pixel_mm)
    shape = np.maximum(np.round(np.array(cine.shape[1:]) / step), 1).astype(int)
    frames_mm = network.normalised(resample_image(cine[chosen], step.tolist(), shape.tolist()))
    padded = np.maximum(-(-shape // network.MULTIPLE) * network.MULTIPLE, network.SIDE)
    before = (padded - shape) // 2
    images = np.zeros((len(chosen), *padded), np.float32)
    inside = (slice(None), *(slice(b, b + n) for b, n in zip(before, shape, strict=True)))
    images[inside] = frames_mm
    return network.cavity_probability(weights, images)[inside]


def joint_centre(maps: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre of the cavity by ``[slices, frames, h, w]`` and the confidence in it.

    (Row, column) on that grid, pixel centres being integers; the middle and 0 if nothing is found.
    """
    together = maps.mean(axis=1).sum(axis=0)
    peak = float(together.max())
    if peak < 0.05:
        return (np.array(together.shape) - 1) / 2, 0.0
    parts, count = cast(Any, ndimage.label(together > 0.5 * peak))
    largest = int(np.argmax(ndimage.sum_labels(together, parts, range(1, count + 1)))) + 1
    centre = np.array(ndimage.center_of_mass(together * (parts == largest)))
    rows, columns = np.indices(together.shape)
    near = np.hypot(rows - centre[0], columns - centre[1]) <= _NEAR_MM / SPACING_MM
    here = maps[..., near]
    agree = (
        (here.max(axis=-1) >= _LEAST_PEAK)
        & ((here > 0.5).sum(axis=-1) * SPACING_MM**2 >= _LEAST_MM2)
        & (here.sum(axis=-1) >= _LEAST_SHARE * maps.sum(axis=(-2, -1)))
    )
    of_slices = np.sort(agree.mean(axis=1))[::-1]
    return centre, float(of_slices[: (len(of_slices) + 1) // 2].mean())
