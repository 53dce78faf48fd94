"""An LGE mask on the slices of a cine: every drawing lands on one, or is named."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import Series, note_of_axes, printable
from mvo_jax.data.importers.orientation import unit_directions
from mvo_jax.data.importers.segments import join_drawings
from mvo_jax.data.importers.volume import Volume, same_grid
from mvo_jax.data.importers.walk import fault
from mvo_jax.data.labels import MVO, has_mvo, middle_of, mvo_parts
from mvo_jax.data.slices import PIXEL_MM, CineSlice, Rejected

# Of the slice distance: closer calls go to both slices. Repositioning between cine and LGE and the
# depth of breath-holds move the heart by a millimetre or two, so which is nearer by less is chance.
_TIE = 0.05
_HALF = 0.5 * (1 + _TIE)  # of the slice distance: as far as a slice reaches
# A ventricle is some 100 mm long: of base, middle and apex alone two are at most 50 mm apart.
_FARTHEST_MM = 60.0
_ROUNDING = 1e-3  # of a pixel: affines are stored in float32, and halves go up, not to even
# Degrees between slices of LGE and cine. Planned on one another they differ by a few; beyond this a
# crop's edge lies a slice and more away from the plane of the other.
_MOST_TILT = 30.0
_SAME_TURN = 0.02  # of direction cosines: a degree, as far as headers of two digits round
_SAME_AXES = 0.998  # cosine; 4 degrees
_SAME_STEP = 0.01  # relative, of pixels: headers are rounded to 0.01 mm
_COPY_HEADER = (
    "write the mask with the header of the cine it was drawn on (in Python: "
    "nibabel.Nifti1Image(mask, cine.affine)), or both without orientation"
)


@dataclasses.dataclass(frozen=True)
class PlacedMask:
    """A mask on the slices of a cine."""

    drawn: np.ndarray  # uint8 ``[Z', H', W']``, the slices of the mask
    labels: Sequence[np.ndarray]  # uint8 ``[H, W]`` of each slice of the cine
    taken: Sequence[Sequence[int]]  # of each slice of the cine, those of the mask that reach it
    unplaced: tuple[Rejected, ...]  # drawn slices of the mask that reach none
    notes: tuple[str, ...]  # what was taken for granted

    def fields(self, z: int) -> dict[str, Any]:
        """What a ``CineSlice`` has of it; the first slice speaks for the drawings without one."""
        sources = [k for k in self.taken[z] if self.drawn[k].any()]
        words = f"{', '.join(map(str, sources))} of {len(self.drawn)}" if sources else ""
        return {
            "lge_mask": self.labels[z],
            "has_mvo": has_mvo(self.drawn[sources]),  # as drawn, before it is sampled
            "unplaced": self.unplaced if z == 0 else (),
            "drawn_on": words,
        }


def place_mask(series: Series, mask: Volume, slices: Sequence[Volume]) -> PlacedMask:
    """Bring the labels of a 3-D mask onto the slices of a cine.

    A slice of the mask goes to the nearer slice of the cine, in a tie (within 5 % of the slice
    distance) to both, and no farther than half a slice distance. A slice of the cine that gets
    none takes the nearest of the mask if that lies within half the mask's slice distance, as where
    LGE has fewer slices. Several drawings on one slice are joined: MVO before infarct before
    myocardium. In the plane each pixel takes the label of the nearest voxel.

    Args:
        mask: ``data`` is ``[1, Z', H', W']``, already in the project's values.
        slices: ``data`` of each is ``[T, 1, H, W]``; in order.

    Raises:
        UserError: the grids cannot be matched, or nothing that is drawn lies on the cine.
    """
    volume, cine = mask.data[0], slices[0]
    if mask.oriented != cine.oriented:
        without, with_it = (mask, cine) if cine.oriented else (cine, mask)
        says = f" states no orientation or position, {printable(with_it.path)} does: the mask "
        says += f"{printable(mask.path)} may be mirrored against the cine"
        raise fault(without.path, says, _COPY_HEADER)
    if not cine.oriented:
        grid = (len(slices), *cine.data.shape[2:])
        if volume.shape != grid:
            says = f" has {volume.shape[::-1]} voxels, {printable(cine.path)} {grid[::-1]}, and no"
            remedy = "export both with their orientation, or the mask on the cine's grid"
            raise fault(mask.path, f"{says} orientation to match them by", remedy)
        return PlacedMask(volume, volume, [[z] for z in range(len(volume))], (), mask.notes)
    for one in (mask, cine):
        sides = _sides(one)
        if sides.min() < PIXEL_MM[0] or sides.max() > PIXEL_MM[1]:
            says = f": its pixels have sides of {sides[1]:g} and {sides[0]:g} mm, which no image of"
            remedy = "correct the units or the sizes in its header"
            raise fault(one.path, f"{says} a heart has", remedy)
    to_mask = np.linalg.inv(mask.affine)
    middles = [[*(np.array(one.data.shape[:1:-1]) - 1) / 2, 0, 1] for one in slices]
    pairs = zip(slices, middles, strict=True)
    # Where the middle of each slice lies, in slices of the mask.
    positions = np.array([(to_mask @ one.affine @ middle)[2] for one, middle in pairs])
    notes = (*mask.notes, *_check_grids(mask, slices))
    gaps = np.sort(np.diff(np.sort(positions)))
    # Of the cine's slices, in those of the mask: of two the smaller, as one may be a gap.
    apart = float(gaps[(len(gaps) - 1) // 2]) if len(gaps) else cine.slice_mm / mask.slice_mm
    distance = max(apart, 1e-6)
    for path, mm in ((cine.path, distance * mask.slice_mm), (mask.path, mask.slice_mm)):
        if mm > _FARTHEST_MM:
            says = f": its slices are {mm:g} mm apart, which are not those of one heart"
            raise fault(path, says, "correct the distance of the slices in its header")
    taken = _sources(positions, distance, len(volume))
    labels = []
    for one, position, sources in zip(slices, positions, taken, strict=True):
        joined = np.zeros(one.data.shape[2:], np.uint8)
        for k in sources:
            joined = join_drawings(joined, _sampled(mask, one, k, shift=k - position))
        labels.append(joined)
    if volume.any() and not any(one.any() for one in labels):
        says = f": nothing that is drawn lies on the slices of {printable(series.path)}"
        remedy = "check that LGE and cine are of one patient and one examination, with their"
        raise fault(mask.path, says, f"{remedy} orientation")
    notes += _cut_off(mask, slices, positions, taken)
    return PlacedMask(volume, labels, taken, _unplaced(series, mask, positions, taken), notes)


def _sides(volume: Volume) -> np.ndarray:
    """(Column, row) spacing in mm."""
    return np.linalg.norm(volume.affine[:3, :2], axis=0)


def _sources(positions: np.ndarray, distance: float, count: int) -> list[list[int]]:
    """For each slice of the cine the slices of the mask that it takes."""
    apart = np.abs(np.arange(count)[:, None] - positions)  # [mask, cine]

    def nearest(of: np.ndarray, step: float) -> np.ndarray:
        """Those no farther than the nearest of a row, ties included, and half a step."""
        return (of <= of.min(axis=1, keepdims=True) + _TIE * step) & (of <= _HALF * step)

    goes = nearest(apart, distance)
    fills = nearest(apart.T, 1.0).T & ~goes.any(axis=0)
    return [np.flatnonzero(column).tolist() for column in (goes | fills).T]


def _sampled(mask: Volume, one: Volume, k: int, *, shift: float) -> np.ndarray:
    """Labels of the nearest voxels, uint8 ``[H, W]``; background outside the mask.

    Each part of the MVO that lies between the pixels keeps the one nearest to its middle. ``shift``
    moves the slice of the cine onto slice ``k`` of the mask, in slices of that; where the two are
    tilted its rim still crosses into the next, if there is one.
    """
    labels, shape = mask.data[0], one.data.shape[2:]
    to_mask = np.linalg.inv(mask.affine) @ one.affine
    rows, columns = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    points = np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)], axis=-1)
    at = points @ to_mask[:3].T + [0.0, 0.0, shift]
    index = np.floor(at + (0.5 + _ROUNDING)).astype(int)[..., ::-1]
    index[..., 0] = index[..., 0].clip(max(k - 1, 0), min(k + 1, len(labels) - 1))
    inside = ((index >= 0) & (index < labels.shape)).all(axis=-1)
    out = np.zeros(shape, np.uint8)
    out[inside] = labels[tuple(index[inside].T)]
    if not has_mvo(labels[k]):
        return out
    parts = mvo_parts(labels[k])
    here = index[inside & (index[..., 0] == k)]
    reached = set(parts[tuple(here[:, 1:].T)].tolist())
    none = not has_mvo(out)
    for part in set(range(1, parts.max() + 1)) - reached:
        row, column = middle_of(parts == part)
        x, y = (np.linalg.inv(to_mask) @ [column, row, k - shift, 1])[:2]
        x, y = (int(np.floor(v + 0.5 + _ROUNDING)) for v in (x, y))
        # Where the cine crosses into the next slice of a tilted mask, that one says what is there.
        if 0 <= y < shape[0] and 0 <= x < shape[1] and (none or index[y, x, 0] == k):
            out[y, x] = MVO
    return out


def _cut_off(
    mask: Volume, slices: Sequence[Volume], positions: np.ndarray, taken: Sequence[Sequence[int]]
) -> tuple[str, ...]:
    """A note on drawn voxels that lie beside the images they are drawn on."""
    drawn = cut = of_mvo = 0
    for one, position, sources in zip(slices, positions, taken, strict=True):
        size = np.array(one.data.shape[:1:-1])[:, None]
        for k in sources:
            rows, columns = np.nonzero(mask.data[0, k])
            points = np.stack([columns, rows, np.full(len(rows), position), np.ones(len(rows))])
            at = (np.linalg.inv(one.affine) @ mask.affine @ points)[:2]
            beside = (np.abs(at - (size - 1) / 2) > size / 2 + _ROUNDING).any(axis=0)
            drawn, cut = drawn + len(rows), cut + int(beside.sum())
            of_mvo += int((mask.data[0, k, rows, columns] == MVO)[beside].sum())
    said = f"{printable(mask.path.name)}: {cut} of {drawn} drawn pixels, {of_mvo} of MVO,"
    return (f"{said} lie beside the images of the cine and are cut off",) if cut else ()


def _unplaced(
    series: Series, mask: Volume, positions: np.ndarray, taken: Sequence[Sequence[int]]
) -> tuple[Rejected, ...]:
    out = []
    drawn = {k for k, drawing in enumerate(mask.data[0]) if drawing.any()}
    for k in sorted(drawn.difference(*taken)):
        what = "MVO" if has_mvo(mask.data[0, k]) else "a drawing"
        away = float(np.abs(positions - k).min()) * mask.slice_mm
        cause = f"{printable(mask.path)}: slice {k} of {len(mask.data[0])} has {what} and lies "
        cause += f"{away:.1f} mm from the nearest slice of {printable(series.path)}"
        remedy = "add the slice of the cine that belongs to it; its drawing is left out"
        case, patient = f"{series.name}_lge{k:02d}", series.patient_id or ""
        out.append(Rejected(case, patient, str(mask.path), cause, remedy))
    return tuple(out)


def _check_grids(mask: Volume, slices: Sequence[Volume]) -> list[str]:
    """Refuse a mask whose grid contradicts the cine's; a note of one that is merely another."""
    cine = slices[0]
    theirs = printable(cine.path)
    same_shape = mask.data.shape[1:] == (len(slices), *cine.data.shape[2:])
    # Images that are read one by one may be numbered from the other end.
    of_mask = mask.slices() if same_shape else []
    if same_shape and any(all(map(same_grid, o, slices)) for o in (of_mask, of_mask[::-1])):
        return []
    if mask.is_default or cine.is_default:
        which, other = (mask, cine) if mask.is_default else (cine, mask)
        says = " has the identity as its orientation, which is what software writes that knows none"
        raise fault(which.path, f"{says}; {printable(other.path)} has another", _COPY_HEADER)
    unit, own = unit_directions(mask.affine), unit_directions(cine.affine)
    as_lps = np.diag([-1.0, -1.0, 1.0]) @ unit
    now, then = (float(np.abs((one * own).sum(axis=0)).min()) for one in (unit, as_lps))
    if now < _SAME_AXES < then:
        says = f": its axes are those of {theirs} with left and right, front and back exchanged: an"
        says += " orientation of DICOM or NRRD (LPS) written as that of NIfTI (RAS)"
        raise fault(mask.path, says, _COPY_HEADER)
    tilt = np.degrees(np.arccos(min(1.0, abs(float(unit[:, 2] @ own[:, 2])))))
    if tilt > _MOST_TILT:
        says = f": its slices are tilted by {tilt:.0f} degrees against those of {theirs}"
        remedy = "check the orientation of both; resample the mask onto the slices of the cine"
        raise fault(mask.path, says, remedy)
    height, width = cine.data.shape[2:]
    exchanged = height != width and mask.data.shape[2:] == (width, height)
    if exchanged and np.allclose(mask.affine, cine.affine, rtol=0, atol=_SAME_TURN):
        says = f" has {height}x{width} pixels and {theirs} {width}x{height}, on one orientation:"
        says += " rows and columns of one of them look exchanged"
        raise fault(mask.path, says, _COPY_HEADER)
    if not same_shape:
        return []
    same_steps = np.allclose(_sides(mask), _sides(cine), rtol=_SAME_STEP)
    mirrored = None not in (mask.turn, cine.turn) and mask.turn != cine.turn
    if same_steps and np.allclose(unit, own, atol=_SAME_TURN) and mirrored:
        says = f" has the shape of {theirs}, and its axes run the other way from another corner:"
        says += " signs of its orientation look lost, and it may be mirrored"
        raise fault(mask.path, says, _COPY_HEADER)
    pairs = zip(of_mask, slices, strict=True)
    apart = max(np.linalg.norm(a.corners - b.corners, axis=1).max() for a, b in pairs)
    return [
        f"{printable(mask.path.name)} has the shape of {printable(cine.path.name)} on another grid "
        f"(corners up to {apart:.1f} mm apart): its labels are taken where its orientation says"
    ]


def to_slices(
    series: Series,
    cine: Volume,
    mask: Volume | None,
    *,
    anatomy: dict[int, np.ndarray] | None = None,
    end_diastole: int | None = None,
) -> list[CineSlice]:
    """Slices of a 4-D cine.

    Args:
        cine: ``data`` is ``[T, Z, H, W]``.
        mask: see ``place_mask``.
        anatomy: frame -> uint8 ``[Z, H, W]``, 1 LV cavity, 2 LV myocardium.
        end_diastole: 0-based frame.
    """
    count = cine.data.shape[1]
    placed = place_mask(series, mask, cine.slices()) if mask else None
    notes = *cine.notes, *note_of_axes(cine.data.shape), *(placed.notes if placed else ())
    return [
        series.slice(
            z,
            count,
            cine=cine.data[:, z],
            pixel_mm=cine.pixel_mm,
            anatomy={t: m[z] for t, m in (anatomy or {}).items() if m[z].any()},
            end_diastole=end_diastole,
            position_mm=z * cine.slice_mm,
            orientation_rule=cine.rule,
            note="; ".join(notes) if z == 0 else "",
            grid=cine.grid,
            plane=z,
            **(placed.fields(z) if placed else {}),
        )
        for z in range(count)
    ]
