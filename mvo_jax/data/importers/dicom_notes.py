"""Notes about a DICOM stack that is used although its slices differ."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mvo_jax.data.importers.dicom_headers import Image
from mvo_jax.data.importers.orientation import displayed_axes, unit_axes

# Of the thickness and, within a series, of the widest distance in the stack: slices that are
# interpolated lie half their thickness apart, all of them.
_OVERLAP = 0.7
_LARGEST_GAP = 1.7  # of the usual distance of slices


def notes_of(slices: Sequence[Sequence[Image]], sound: Sequence[Sequence[Image]]) -> list[str]:
    """What a user should know of a stack: images of all slices, in order, and of those used."""
    firsts = [one[0] for one in slices]
    first, out = firsts[0], []
    if first.distance is None and first.location is not None:
        out.append("positions are missing: slices are in order of SliceLocation")
    if _contradicts_location(firsts):
        out.append(
            "SliceLocation has the slices in another order than ImagePositionPatient, which is "
            "taken: one of them is wrong"
        )
    if first.distance is None and first.location is None and first.frame is None:
        out.append("neither position nor SliceLocation is there: taken as one slice")
    grids = Counter((image.shape, image.spacing) for image in firsts)
    if len(grids) > 1:
        sizes = ", ".join(
            f"{n} slices of {shape[0]}x{shape[1]} pixels of {spacing or 'unknown size'} mm"
            for (shape, spacing), n in grids.items()
        )
        out.append(f"the field of view changes: {sizes}")
    used = [image for one in sound for image in one]
    if derived := sum("DERIVED" in image.image_type for image in used):
        out.append(
            f"{derived} of {len(used)} images are derived from others ({used[0].name}, "
            f"{'/'.join(used[0].image_type)})"
        )
    for loss, count in Counter(image.loss for image in used if image.loss).items():
        out.append(f"{count} of {len(used)} images were compressed with loss ({loss})")
    for one in sound:
        shift = _shift_in_plane(one)
        if shift > max(one[0].spacing or (1.0,)):
            out.append(
                f"the images of the slice at {one[0].place} lie up to {shift:.1f} mm beside "
                "one another and are taken as they are stored"
            )
    if more := [one for one in sound if 0 < one[0].cardiac_images < len(one)]:
        out.append(
            f"{len(more)} slices have more phases than CardiacNumberOfImages says ({len(more[0])} "
            f"at {more[0][0].place}, not {more[0][0].cardiac_images}): images of something else "
            "may be among them"
        )
    if few := [one for one in sound if len(one) < one[0].temporal_positions]:
        out.append(
            f"{len(few)} slices have fewer phases than NumberOfTemporalPositions says "
            f"({len(few[0])} at {few[0][0].place}, not {few[0][0].temporal_positions}): some may "
            "be missing"
        )
    out += _gaps(firsts)
    out += _overlap([one[0] for one in sound])
    names = {re.sub(r"[\W\d_]", "", i.description).casefold(): i.name for i, *_ in sound}
    if len(names) > 1:
        out.append(f"the stack is of series of several names: {', '.join(names.values())}")
    axes = [unit_axes(i.orientation) for i in firsts if i.orientation is not None]
    turns = list(map(displayed_axes, axes))
    cosines = [(turn * turns[0]).sum(axis=1).min() for turn in turns]
    widest = float(np.degrees(np.arccos(np.clip(min(cosines, default=1.0), -1.0, 1.0))))
    if widest > 0.5:
        out.append(f"the slices are turned by {widest:.1f} degrees from one another")
    return out


def _contradicts_location(slices: Sequence[Image]) -> bool:
    """Whether SliceLocation has another order than the positions, or puts a slice elsewhere."""
    places = [(one.distance, one.location) for one in slices]
    known = np.array([place for place in places if None not in place], float)
    if len(known) < 3 or len(set(known[:, 1])) < len(known):
        return False  # equal ones say nothing
    steps = np.diff(known[known[:, 0].argsort(), 1])
    return not ((steps > 0).all() or (steps < 0).all())


def _shift_in_plane(images: Sequence[Image]) -> float:
    """How far the images of a slice lie beside one another in its plane, mm."""
    turn = images[0].orientation
    if turn is None:
        return 0.0
    axes = np.reshape(turn, (2, 3))
    known = [[at for i in images if (at := i.along(axis)) is not None] for axis in axes]
    return max((max(along) - min(along) for along in known if along), default=0.0)


def _pairs(slices: Sequence[Image]) -> list[tuple[float, Image, Image]]:
    """(Distance in mm, slice, next slice)."""
    return [
        (abs(other.distance - one.distance), one, other)
        for one, other in itertools.pairwise(slices)
        if one.distance is not None and other.distance is not None
    ]


def _gaps(slices: Sequence[Image]) -> list[str]:
    """Whether slices lie farther apart than the others, as where one was not exported."""
    pairs = _pairs(slices)
    # The lower one of two in the middle: of few slices a gap is half.
    usual = np.quantile([apart for apart, *_ in pairs] or [np.inf], 0.5, method="lower")
    out = [
        f"the slices at {one.place} and {other.place} lie {apart:.1f} mm apart, others "
        f"{usual:.1f}: slices may be missing, or these are two stacks"
        for apart, one, other in pairs
        if apart > _LARGEST_GAP * usual
    ]
    return out[:3]


def _overlap(slices: Sequence[Image]) -> list[str]:
    """Whether slices lie in one another, as where one was scanned again a little aside."""
    pairs = _pairs(slices)
    widest = max((apart for apart, *_ in pairs), default=0.0)
    out = [
        f"the slices at {one.place} and {other.place} are {one.thickness:g} mm thick and lie in "
        "one another: perhaps one slice, scanned twice"
        for apart, one, other in pairs
        if apart < _OVERLAP * one.thickness
        and (one.series != other.series or apart < _OVERLAP * max(widest, _OVERLAP * one.thickness))
    ]
    return out[:3]
