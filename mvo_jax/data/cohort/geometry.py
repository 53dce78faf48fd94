"""From a slice as scanned to a clip as trained on: one spacing, one number of frames, one crop.

The clip, the LGE mask and the anatomy go through the same window, so they stay on top of each
other. The crop holds the whole myocardium or the slice is refused.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter

from mvo_jax.data.cohort.intensity import intensity_range, to_uint8
from mvo_jax.data.importers.cine import MVO, MYOCARDIUM, CineSlice, printable
from mvo_jax.errors import UserError

MIN_FRAMES = 8  # fewer cannot show a heart beat
_MIN_PIXELS = 16
_PIXEL_MM = (0.2, 6.0)
_EDGE_MM = 2.0  # smoothing before edges are sought
_RADIUS_MM = (12.0, 40.0)  # of the cavity, from a small apex to a dilated ventricle
_RADIUS_STEP_MM, _CELL_MM = 1.5, 2.0
_ROUNDS = 6  # of moving the centre; it rests after three or four
_PRIOR = 0.2  # standard deviation of where hearts lie, as a share of the image's shorter side
UNLABELLED = -1


@dataclasses.dataclass(frozen=True)
class Target:
    """What every prepared clip has in common.

    Attributes:
        frames: frames over the beat.
        image_size: pixels along each side.
        spacing_mm: side of a pixel.
        window: grey values that become 0 and 255; None for robust percentiles of each clip.
        end_diastole_first: roll the cycle so that it starts at end-diastole.

    Raises:
        UserError: a number out of range.
    """

    frames: int = 30
    image_size: int = 64
    spacing_mm: float = 2.0
    window: tuple[float, float] | None = None
    end_diastole_first: bool = False

    def __post_init__(self):
        for name, value, low, high in (
            ("frames", self.frames, MIN_FRAMES, 256),
            ("image_size", self.image_size, _MIN_PIXELS, 512),
            ("spacing_mm", self.spacing_mm, *_PIXEL_MM),
        ):
            if not low <= value <= high:
                raise UserError(
                    f"{name} is {value}, which no cine has", f"give {name} of {low} to {high}"
                )
        if self.window is not None and not self.window[0] < self.window[1]:
            raise UserError(f"the window {self.window} is empty", "give the lower grey value first")


@dataclasses.dataclass(frozen=True)
class Window:
    """The square of the source that becomes the crop.

    Output pixel k covers source pixels ``start + k * step`` to ``start + (k + 1) * step``, counted
    from the outer edge of pixel 0.

    Attributes:
        start: (row, column).
        step: source pixels an output pixel, (row, column).
        size: output pixels along each side.
        centre_from: ``given``, ``mask``, ``contours``, ``motion`` or ``whole image``.
    """

    start: tuple[float, float]
    step: tuple[float, float]
    size: int
    centre_from: str

    def to_crop(self, points: np.ndarray) -> np.ndarray:
        """Source pixel coordinates (row, column; pixel centres are integers) in the crop.

        Args:
            points: float ``[..., 2]``.
        """
        return (np.asarray(points) + 0.5 - np.array(self.start)) / np.array(self.step) - 0.5

    def to_source(self, points: np.ndarray) -> np.ndarray:
        """The inverse of ``to_crop``."""
        return (np.asarray(points) + 0.5) * np.array(self.step) + np.array(self.start) - 0.5


@dataclasses.dataclass(frozen=True)
class PreparedSlice:
    """A slice ready to be trained on or predicted.

    Attributes:
        case_id: name.
        patient_id: patient.
        slice_index: position in the stack.
        source: file or folder it came from.
        video: uint8 ``[T, H, W, 1]``.
        lge_mask: uint8 ``[H, W]``; zeros without LGE.
        label: 1 MVO, 0 none, -1 unlabelled; of the mask before resampling and cropping.
        anatomy: source frame -> uint8 ``[H, W]``, 1 LV cavity, 2 LV myocardium.
        window: where the crop lies in the source.
        first_frame: source frame (0-based) that the clip starts at.
        spacing_mm: side of a pixel; None where the source does not say.
        source_frames: phases in the source.
        intensity: grey values that became 0 and 255.
    """

    case_id: str
    patient_id: str
    slice_index: int
    source: str
    video: np.ndarray
    lge_mask: np.ndarray
    label: int
    anatomy: Mapping[int, np.ndarray]
    window: Window
    first_frame: int
    spacing_mm: float | None
    source_frames: int
    intensity: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A case that could not be prepared, and why."""

    case_id: str
    patient_id: str
    source: str
    cause: str
    remedy: str


def prepare_series(
    slices: Sequence[CineSlice],
    target: Target,
    *,
    label: int | None = None,
    still_images: bool = False,
) -> list[PreparedSlice | Rejected]:
    """Prepare the slices of one series; a bad slice does not stop the others.

    Args:
        slices: of one patient, in one orientation.
        target: what they become.
        label: what a table says of the whole series: 1 means MVO in at least one slice.
        still_images: accept a single image; it is repeated in every frame.

    Returns:
        One entry a slice, in order.
    """
    fault = _label_fault(slices, label)
    faults = [_fault(one, still_images=still_images) for one in slices]
    sound = [one for one, wrong in zip(slices, faults, strict=True) if wrong is None]
    centre = None if all(map(_has_centre, sound)) else heart_centre(sound)
    out: list[PreparedSlice | Rejected] = []
    for one, wrong in zip(slices, faults, strict=True):
        try:
            for error in (fault, wrong, _label_fault([one], one.label)):
                if error is not None:
                    raise error
            out.append(_prepare(one, target, label, centre))
        except UserError as error:
            out.append(Rejected(one.case_id, one.patient_id, one.source, error.cause, error.remedy))
    return out


def _label_fault(slices: Sequence[CineSlice], label: int | None) -> UserError | None:
    """A table's label against what the masks of the series show."""
    if label is None or not slices:
        return None
    seen = [s.has_mvo for s in slices if s.has_mvo is not None]
    name = printable(slices[0].source)
    if label == 1 and not seen:
        return UserError(
            f"{name}: the table says label 1 and there is no LGE mask",
            "add the mask (training needs to know where the MVO is), or leave the label empty",
        )
    if label == 1 and not any(seen):
        return UserError(
            f"{name}: the table says label 1 and the LGE mask has no MVO pixel",
            "correct the label or the mask",
        )
    if label == 0 and any(seen):
        return UserError(
            f"{name}: the table says label 0 and the LGE mask has MVO pixels",
            "correct the label or the mask",
        )
    return None


def _prepare(
    one: CineSlice,
    target: Target,
    label: int | None,
    centre: np.ndarray | None,
) -> PreparedSlice:
    window = choose_window(one, target, centre)
    first, known = 0, end_diastole(one)  # one out of range is refused, used or not
    if target.end_diastole_first:
        if known is None:
            raise UserError(
                f"{printable(one.source)}: end-diastole is not known, so the cycle cannot be "
                "rolled to it",
                "give it in the table (column end_diastole) or leave out --end_diastole_first",
            )
        first = known
    cropped = resample_space(one.cine, window)
    clip = resample_time(cropped, target.frames, first=first)
    intensity = target.window or intensity_range(clip)
    video = to_uint8(clip, *intensity)
    if video.min() == video.max():
        raise UserError(
            f"{printable(one.source)}: the crop of {one.case_id} is one constant grey",
            "check the image, the crop's centre and --window",
        )
    has_mvo = one.has_mvo
    value = _label(one, label)
    mask = np.zeros((target.image_size,) * 2, np.uint8)
    if one.lge_mask is not None:
        mask = resample_mask(one.lge_mask, window)
        if has_mvo and not (mask == MVO).any():
            mask = _keep_one_pixel(one, mask, window)
    row_mm = None if one.pixel_mm is None else one.pixel_mm[0] * window.step[0]
    return PreparedSlice(
        case_id=one.case_id,
        patient_id=one.patient_id,
        slice_index=one.slice_index,
        source=one.source,
        video=video[..., None],
        lge_mask=mask,
        label=value,
        anatomy={k: resample_mask(m, window) for k, m in one.anatomy.items()},
        window=window,
        first_frame=first,
        spacing_mm=row_mm,
        source_frames=len(one.cine),
        intensity=intensity,
    )


def _label(one: CineSlice, label: int | None) -> int:
    """Label of a slice. A mask on which nothing is drawn says nothing: it may be unread."""
    drawn = one.has_mvo or (one.lge_mask is not None and one.lge_mask.any())
    if drawn:
        return int(bool(one.has_mvo))
    return 0 if 0 in (label, one.label) else UNLABELLED


def _fault(one: CineSlice, *, still_images: bool) -> UserError | None:
    """What ``_check`` finds, if anything."""
    try:
        _check(one, still_images=still_images)
    except UserError as error:
        return error
    return None


def _check(one: CineSlice, *, still_images: bool) -> None:
    """Refuse what no scanner makes."""
    name, cine = printable(one.source), one.cine

    def bad(cause: str, remedy: str) -> UserError:
        return UserError(f"{name}: {cause}", remedy)

    if cine.ndim != 3 or cine.dtype.kind not in "buif":
        raise bad(
            f"the cine of {one.case_id} has shape {cine.shape} and dtype {cine.dtype}",
            "a slice is (time, rows, columns) of real numbers; colour must be made grey",
        )
    frames, height, width = cine.shape
    if frames < MIN_FRAMES and not (still_images and frames == 1):
        raise bad(
            f"{one.case_id} has {frames} frames; a cine has at least {MIN_FRAMES}",
            "check that the series is a cine and that its axes are in the format's order"
            + ("; --still_images takes LGE images as they are" if frames == 1 else ""),
        )
    if min(height, width) < _MIN_PIXELS or max(height, width) > 4 * min(height, width):
        raise bad(
            f"{one.case_id} has images of {height}x{width} pixels and {frames} frames",
            "check the order of the axes; a NIfTI cine is (X, Y, Z, T)",
        )
    if cine.dtype.kind == "f" and not np.isfinite(cine).all():
        wrong = int(cine.size - np.isfinite(cine).sum())
        raise bad(
            f"{one.case_id} has {wrong:,} pixels that are NaN or infinite",
            "export the images again, or replace those pixels before importing",
        )
    if cine.min() == cine.max():
        raise bad(f"{one.case_id} is one constant grey", "export the images again or leave it out")
    if one.pixel_mm is not None and not all(
        _PIXEL_MM[0] <= p <= _PIXEL_MM[1] for p in one.pixel_mm
    ):
        raise bad(
            f"{one.case_id} has pixels of {one.pixel_mm[0]:g} x {one.pixel_mm[1]:g} mm",
            f"correct the spacing in the file; cine has {_PIXEL_MM[0]} to {_PIXEL_MM[1]} mm",
        )
    masks = [("LGE mask", one.lge_mask)] if one.lge_mask is not None else []
    masks += [(f"anatomy of frame {k}", mask) for k, mask in one.anatomy.items()]
    for what, mask in masks:
        if mask.shape != (height, width):
            raise bad(
                f"{what} of {one.case_id} has shape {mask.shape}, the cine {height}x{width}",
                "export both on the same grid",
            )


def end_diastole(one: CineSlice) -> int | None:
    """Frame of end-diastole: as told, else the annotated frame with the largest cavity."""
    if one.end_diastole is not None:
        if not 0 <= one.end_diastole < len(one.cine):
            raise UserError(
                f"{printable(one.source)}: end-diastole is frame {one.end_diastole} of "
                f"{len(one.cine)}",
                "frames count from 0",
            )
        return one.end_diastole
    areas = {k: int((mask == 1).sum()) for k, mask in one.anatomy.items()}
    areas = {k: area for k, area in areas.items() if area}
    return max(areas, key=areas.__getitem__) if areas else None


def choose_window(one: CineSlice, target: Target, heart: np.ndarray | None = None) -> Window:
    """The crop: centred on the heart, moved as little as needed to hold all of the myocardium.

    The centre is the one given, else the middle of the myocardium (LGE mask or contours), else
    that of the motion. The window stays inside the image where the image is large enough, and
    starts at a whole source pixel, so that a source already in the target's geometry is kept
    bit by bit.

    Args:
        one: the slice.
        target: spacing and size.
        heart: ``heart_centre`` of the series; that of the slice where None.

    Raises:
        UserError: no spacing is known and the image is not of the target's size, or the
            myocardium does not fit.
    """
    shape = np.array(one.cine.shape[1:])
    size = target.image_size
    if one.pixel_mm is None:
        if not (shape == size).all():
            raise UserError(
                f"{printable(one.source)}: {one.case_id} has {shape[0]}x{shape[1]} pixels and no "
                "pixel spacing",
                f"say it with --pixel_mm; without it only images of {size}x{size} are taken",
            )
        return Window((0.0, 0.0), (1.0, 1.0), size, "whole image")
    step = target.spacing_mm / np.array(one.pixel_mm)
    step = np.where(np.abs(step - 1.0) < 1e-3, 1.0, step)  # rounded spacings in headers
    extent = size * step

    region = heart_region(one)
    box = None if region is None else _bounds(region)
    if one.centre is not None:
        centre, origin = np.array(one.centre) + 0.5, "given"
        if not ((centre >= 0) & (centre <= shape)).all():
            raise UserError(
                f"{printable(one.source)}: the centre {one.centre} lies outside the image of "
                f"{shape[0]}x{shape[1]}",
                "centre_row and centre_column are pixels of the source, counted from 0",
            )
    elif _has_centre(one) and box is not None:
        centre, origin = box.mean(axis=0), "contours" if one.anatomy else "mask"
    else:
        found = heart_centre([one]) if heart is None else heart
        assert found is not None  # the spacing is known
        centre, origin = found, "motion"
    start = centre - extent / 2
    # Inside the image where it can be; around its middle where it cannot.
    start = np.where(extent <= shape, np.clip(start, 0, np.maximum(shape - extent, 0)), start)
    start = np.where(np.isclose(extent, shape, rtol=0, atol=1.0), (shape - extent) / 2, start)
    start = np.round(start)
    if box is not None:
        low, high = box
        if (high - low > extent + 1e-6).any():
            mm = (high - low) * np.array(one.pixel_mm)
            need = mm.max() / size
            raise UserError(
                f"{printable(one.source)}: the myocardium of {one.case_id} spans {mm[0]:.0f} x "
                f"{mm[1]:.0f} mm, the crop {size * target.spacing_mm:.0f} mm",
                f"check the mask for stray pixels, or prepare with --spacing_mm {need + 0.05:.1f} "
                "(all cases then have that spacing)",
            )
        start = np.clip(start, high - extent, low)
    return Window(
        (float(start[0]), float(start[1])), (float(step[0]), float(step[1])), size, origin
    )


def _has_centre(one: CineSlice) -> bool:
    """Whether the middle of the heart is told, not sought. An infarct alone does not tell it."""
    ring = one.lge_mask is not None and (one.lge_mask == MYOCARDIUM).any()
    return one.centre is not None or ring or any(m.any() for m in one.anatomy.values())


def heart_region(one: CineSlice) -> np.ndarray | None:
    """Bool ``[H, W]``: all that the crop must hold, over all annotated frames; None if nothing."""
    region = np.zeros(one.cine.shape[1:], bool)
    if one.lge_mask is not None:
        region |= one.lge_mask > 0
    for mask in one.anatomy.values():
        region |= mask > 0
    return region if region.any() else None


def _bounds(region: np.ndarray) -> np.ndarray:
    """Edges (low, high) by (row, column) of the pixels that are set."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    return np.array([[rows[0], columns[0]], [rows[-1] + 1, columns[-1] + 1]], float)


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
    """Moving edges of a slice.

    Attributes:
        at: ``[2, N]``, mm (row, column) from the image's outer edge.
        weight: ``[N]``, 0 to 1.
        towards: ``[2, N]``, unit vectors (row, column), from dark to bright.
    """

    at: np.ndarray
    weight: np.ndarray
    towards: np.ndarray


def moving_edges(cine: np.ndarray, pixel_mm: tuple[float, float]) -> Edges:
    """Edges of the mean image where it moves with the beat; none in a still image.

    Args:
        cine: ``[T, H, W]``.
        pixel_mm: (row, column) spacing.
    """
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

    Args:
        edges: of one slice.
        size_mm: (rows, columns) of the image.

    Returns:
        Votes in cells of 2 mm.
    """
    shape = np.ceil(size_mm / _CELL_MM).astype(int)
    votes = []
    for radius in np.arange(*_RADIUS_MM, _RADIUS_STEP_MM):
        there = np.floor((edges.at + edges.towards * radius) / _CELL_MM).astype(int)
        inside = ((there >= 0) & (there < shape[:, None])).all(axis=0)
        index = there[0, inside] * shape[1] + there[1, inside]
        votes.append(np.bincount(index, edges.weight[inside], shape[0] * shape[1]))
    blur = (2.0, 2.0, 2.0)  # 3 mm in radius, 4 mm in place
    stacked = np.stack(votes).astype(np.float32).reshape(-1, *shape)
    best = gaussian_filter(stacked, blur).max(axis=0)
    return best / max(float(best.sum()), 1e-12)


def heart_centre(slices: Sequence[CineSlice]) -> np.ndarray | None:
    """Centre of the left ventricle of a stack by its motion, pixels from the image's outer edge.

    Short-axis slices have the ventricle in about the same place, so their votes are summed. They
    are weighted by where hearts lie (a Gaussian about the image's middle with a fifth of its
    shorter side); from the best place the centre moves to where the edges of the ring around it
    point. Without any edge it is the image's middle.

    Args:
        slices: sound ones of one patient.

    Returns:
        float ``[2]`` (row, column); None where the slices do not share size and a known spacing.
    """
    grids = {(s.cine.shape[1:], s.pixel_mm) for s in slices}
    if len(grids) != 1:
        return None
    ((shape, pixel_mm),) = grids
    if pixel_mm is None:
        return None
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


@lru_cache(maxsize=256)
def _space_weights(source: int, start: float, step: float, size: int) -> np.ndarray:
    """Weights ``[size, source]`` of a triangle as wide as the larger of the two pixels.

    Linear interpolation where the source is coarser, an average where it is finer (no aliasing);
    the edge pixel is repeated outside.
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


def resample_space(cine: np.ndarray, window: Window) -> np.ndarray:
    """Crop and resample images, float32 ``[T, size, size]``."""
    rows = _space_weights(cine.shape[1], window.start[0], window.step[0], window.size)
    columns = _space_weights(cine.shape[2], window.start[1], window.step[1], window.size)
    return rows @ (cine.astype(np.float32) @ columns.T)


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
    """Interpolate a beat periodically in time (cubic spline), starting at frame ``first``.

    Args:
        clip: ``[T, H, W]``, evenly spaced over one beat.
        frames: frames of the result; equal to T, nothing is interpolated.
        first: source frame that becomes frame 0.
    """
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


def _keep_one_pixel(one: CineSlice, mask: np.ndarray, window: Window) -> np.ndarray:
    """An obstruction smaller than a pixel of the crop keeps the pixel it lies in."""
    assert one.lge_mask is not None
    found = np.argwhere(one.lge_mask == MVO)
    if not len(found):
        raise UserError(
            f"{printable(one.source)}: the MVO of {one.case_id} vanishes on the grid of the cine",
            "check that LGE and cine show the same slice; export the mask on the cine's grid",
        )
    middle = found[np.square(found - found.mean(axis=0)).sum(axis=1).argmin()]
    row, column = np.rint(window.to_crop(middle)).astype(int).clip(0, window.size - 1)
    mask[row, column] = MVO
    return mask
