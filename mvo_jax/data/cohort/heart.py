"""Where the left ventricle is: by what is drawn, else by the locator, else by its motion."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from mvo_jax.data.cohort.locate import MIN_CONFIDENCE, locate
from mvo_jax.data.labels import MYOCARDIUM
from mvo_jax.data.slices import CineSlice

_EDGE_MM = 2.0  # smoothing before edges are sought
_RADIUS_MM = (12.0, 40.0)  # of the cavity, from a small apex to a dilated ventricle
_RADIUS_STEP_MM, _CELL_MM = 1.5, 2.0
_ROUNDS = 6  # of moving the centre; it rests after three or four
_PRIOR = 0.2  # standard deviation of where hearts lie, as a share of the image's shorter side


class Placed(NamedTuple):
    """A ventricle, and what found it."""

    centre: np.ndarray  # ``[2]``, pixels (row, column) from the image's outer edge
    by: str  # ``locator``, or ``motion``: an estimate that a person must look at
    confidence: float | None  # of the locator; None where it was not asked


def find_heart(slices: Sequence[CineSlice], locator: int) -> list[Placed]:
    """Centre of the left ventricle in each slice, from all of them if possible.

    The locator looks at the stack; where it is unsure of that, at each slice; where it is unsure of
    a slice too, the motion of the stack is taken.

    Args:
        slices: sound ones of one patient, of one size and one known spacing.
        locator: version; 0 knows the motion only.
    """
    motion = functools.cache(lambda: heart_centre(slices))
    if locator == 0:
        return [Placed(motion(), "motion", None)] * len(slices)
    stack = locate(slices)
    if stack.confidence >= MIN_CONFIDENCE:
        return [Placed(stack.centre, "locator", stack.confidence)] * len(slices)
    out = []
    for one in slices:
        found = locate([one]) if len(slices) > 1 else stack
        sure = found.confidence >= MIN_CONFIDENCE
        centre, by = (found.centre, "locator") if sure else (motion(), "motion")
        out.append(Placed(centre, by, found.confidence))
    return out


def has_centre(one: CineSlice) -> bool:
    """Whether the middle of the heart is drawn or given. An infarct alone does not say."""
    ring = one.lge_mask is not None and (one.lge_mask == MYOCARDIUM).any()
    return one.centre is not None or ring or any(m.any() for m in one.anatomy.values())


def heart_region(one: CineSlice) -> np.ndarray | None:
    """Bool ``[H, W]``: all that the crop must hold, over all annotated frames; None if nothing."""
    region = np.zeros(one.cine.shape[1:], bool)
    for mask in (one.lge_mask, *one.anatomy.values()):
        if mask is not None:
            region |= mask > 0
    return region if region.any() else None


def motion_energy(cine: np.ndarray) -> np.ndarray:
    """Energy of the first two harmonics of the heart beat in every pixel, float ``[H, W]``.

    The heart is what changes once a beat; breathing, flow and noise spread over all harmonics.
    """
    frames = len(cine)
    phase = 2.0 * np.pi * np.arange(frames) / frames
    basis = np.stack([f(k * phase) for k in (1, 2) for f in (np.cos, np.sin)])
    harmonics = np.tensordot((basis / frames).astype(np.float32), cine.astype(np.float32), axes=1)
    return np.square(harmonics).sum(axis=0)


class Edges(NamedTuple):
    """Moving edges of a slice."""

    at: np.ndarray  # ``[2, N]``, mm (row, column) from the image's outer edge
    weight: np.ndarray  # ``[N]``, 0 to 1
    towards: np.ndarray  # ``[2, N]``, unit vectors (row, column), from dark to bright


def moving_edges(cine: np.ndarray, pixel_mm: tuple[float, float]) -> Edges:
    """Edges of the mean image of ``[T, H, W]`` where it moves with the beat; none in a still."""
    mean = gaussian_filter(cine.mean(axis=0, dtype=np.float32), [_EDGE_MM / p for p in pixel_mm])
    by_row, by_column = (np.asarray(g) for g in np.gradient(mean, *pixel_mm))
    slope = np.hypot(by_row, by_column)
    energy = gaussian_filter(np.sqrt(motion_energy(cine)), [2 * _EDGE_MM / p for p in pixel_mm])
    limits = np.quantile(slope, 0.95), np.quantile(energy, 0.98)
    if min(limits) <= 0:
        return Edges(np.zeros((2, 0)), np.zeros(0), np.zeros((2, 0)))
    # Saturated, so that many moderate edges count for more than one bright one.
    weight = np.minimum(slope / limits[0], 1) * np.minimum(energy / limits[1], 1)
    rows, columns = np.nonzero(weight > 0.15)
    towards = np.stack([by_row[rows, columns], by_column[rows, columns]]) / slope[rows, columns]
    at = (np.stack([rows, columns]) + 0.5) * np.array(pixel_mm)[:, None]
    return Edges(at, weight[rows, columns], towards)


def ring_votes(edges: Edges, size_mm: np.ndarray) -> np.ndarray:
    """Where the centre of a moving bright disc in a dark ring would lie, float ``[h, w]``, sum 1.

    A Hough transform for circles: every edge votes along its gradient, towards the bright blood,
    once for every radius a ventricle has. What counts at a place is its best radius, as edges of
    one ring agree on it; those of the right ventricle, which moves more, have no common centre.
    Votes are in cells of 2 mm over ``size_mm`` (rows, columns).
    """
    shape = np.ceil(size_mm / _CELL_MM).astype(int)
    votes = []
    for radius in np.arange(*_RADIUS_MM, _RADIUS_STEP_MM):
        there = np.floor((edges.at + edges.towards * radius) / _CELL_MM).astype(int)
        inside = ((there >= 0) & (there < shape[:, None])).all(axis=0)
        index = there[0, inside] * shape[1] + there[1, inside]
        votes.append(np.bincount(index, edges.weight[inside], shape[0] * shape[1]))
    stacked = np.stack(votes).astype(np.float32).reshape(-1, *shape)
    best = gaussian_filter(stacked, 2.0).max(axis=0)  # 3 mm in radius, 4 mm in place
    return best / max(float(best.sum()), 1e-12)


def heart_centre(slices: Sequence[CineSlice]) -> np.ndarray:
    """Centre ``[2]`` of the left ventricle of a stack by its motion, as ``Placed`` counts.

    Short-axis slices have the ventricle in about the same place, so their votes are summed. They
    are weighted by where hearts lie (a Gaussian about the image's middle with a fifth of its
    shorter side); from the best place the centre moves to where the edges of the ring around it
    point. Without any edge it is the image's middle.
    """
    shape, pixel_mm = slices[0].cine.shape[1:], slices[0].pixel_mm
    assert pixel_mm is not None
    edges = [moving_edges(s.cine, pixel_mm) for s in slices]
    mm = np.array(pixel_mm)
    size_mm = np.array(shape) * mm
    votes = np.sum([ring_votes(one, size_mm) for one in edges], axis=0)
    if votes.max() <= 0:
        return np.array(shape) / 2
    spread = _PRIOR * float(size_mm.min())
    row, column = (
        np.exp(-np.square(((np.arange(n) + 0.5) * _CELL_MM - size / 2) / spread) / 2)
        for n, size in zip(votes.shape, size_mm, strict=True)
    )
    best = np.unravel_index(int((votes * row[:, None] * column).argmax()), votes.shape)
    centre = (np.array(best) + 0.5) * _CELL_MM
    for _ in range(_ROUNDS):
        centre = _towards_ring(centre, edges)
    return centre / mm


def _towards_ring(centre: np.ndarray, edges: Sequence[Edges]) -> np.ndarray:
    """Mean of the places that the edges around a centre point at, from a ring's radius away; mm."""
    total, weights = np.zeros(2), 0.0
    for one in edges:
        arm = centre[:, None] - one.at
        length = np.maximum(np.hypot(*arm), 1e-6)
        agreement = (arm * one.towards).sum(axis=0) / length  # cosine of the angle between them
        near = (agreement > 0.8) & (length > _RADIUS_MM[0]) & (length < _RADIUS_MM[1])
        if not near.any():
            continue
        at, towards, length = one.at[:, near], one.towards[:, near], length[near]
        weight = one.weight[near] * agreement[near] ** 4
        order = np.argsort(length)
        shares = np.cumsum(weight[order])
        radius = length[order][np.searchsorted(shares, shares[-1] / 2)]  # median
        weight = weight * np.exp(-0.5 * np.square((length - radius) / (0.3 * radius)))
        total += ((at + towards * radius) * weight).sum(axis=1)
        weights += float(weight.sum())
    return total / weights if weights else centre
