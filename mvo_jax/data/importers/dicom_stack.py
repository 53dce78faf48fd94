"""Which of a folder's DICOM images are the short-axis cine, slice by slice."""

import dataclasses
import itertools
import operator
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import Options, Series, printable
from mvo_jax.data.importers.dicom_files import Account, find_images, grouped
from mvo_jax.data.importers.dicom_headers import MIN_PHASES, Image
from mvo_jax.data.importers.dicom_notes import notes_of
from mvo_jax.data.importers.dicom_phases import SAME_TURN_DEGREES, order_phases
from mvo_jax.data.importers.orientation import displayed_axes, slice_normal, unit_axes
from mvo_jax.errors import UserError

# Tolerances; slices of one stack are 5 mm apart and more, views some 30 degrees and more.
_SAME_PLACE_MM = 0.5  # from one position to the next, and twice that from first to last
_SAME_SPACING = 2e-3  # relative
_OF_A_SOURCE = "series", "shape", "bits", "image_type"
_MAKE = dict(
    shape="Rows and Columns", bits="BitsAllocated", spacing="PixelSpacing", image_type="ImageType"
)
_SKEW = 0.05  # of lengths and cosines of directions: headers of two digits are 0.01 off
# Direction of the long axis of the left ventricle in most people (left, posterior, head), and how
# far that of a short-axis stack may lie from it; and how near an oblique stack comes to an axis of
# the body.
_LONG_AXIS = np.array([0.68, -0.60, -0.42])
_TYPICAL_DEGREES, _AXIAL_DEGREES = 60.0, 15.0


@dataclasses.dataclass
class StackSlice:
    """One slice: its images in time order; where refused, all that lie there."""

    images: tuple[Image, ...]
    account: Account
    refusal: UserError | None = None


@dataclasses.dataclass
class Stack:
    """The short-axis cine, slices along their normal, and what was left out beside it."""

    slices: list[StackSlice]
    account: Account

    @property
    def sound(self) -> dict[int, tuple[Image, ...]]:
        """Images of the slices that can be used, by their number."""
        return {z: one.images for z, one in enumerate(self.slices) if one.refusal is None}


class _Candidate:
    """Images of one examination, frame of reference, orientation and kind of sequence."""

    def __init__(self, images: list[Image], key: tuple, path: Path):
        self.images, self.key = images, key
        usual = Counter(image.orientation for image in images).most_common(1)[0][0]
        self.normal = None if usual is None else slice_normal(np.array(usual))
        self.places = _places(images, self.normal, path)
        self.cine = [there for there in self.places if len(there) >= MIN_PHASES]

    @property
    def is_steady_state(self) -> bool:
        return "SS" in self.key[3][1].split("\\")

    @property
    def is_typical(self) -> bool:
        """Whether it lies as the short axis does: oblique, its normal along the ventricle."""
        if self.normal is None:
            return False
        along = np.abs(self.normal) / np.linalg.norm(self.normal)
        lengths = np.linalg.norm(self.normal) * np.linalg.norm(_LONG_AXIS)
        towards = abs(self.normal @ _LONG_AXIS) / lengths
        is_oblique = along.max() < np.cos(np.radians(_AXIAL_DEGREES))
        return bool(is_oblique and towards >= np.cos(np.radians(_TYPICAL_DEGREES)))

    def __str__(self) -> str:
        name, shape = self.images[0].name, "x".join(map(str, self.images[0].shape))
        turn = self.images[0].orientation
        at = "" if turn is None else f" at ({', '.join(f'{v:.2f}' for v in turn)})"
        return f"{name} {shape}{at}: {len(self.places)} slices, {len(self.images)} images"


def read_stack(series: Series, options: Options, account: Account | None = None) -> Stack:
    """Headers of a patient's short-axis cine, slice by slice, each in time order.

    Images are told apart by examination, frame of reference, orientation and kind of sequence;
    slices by their position along the normal. A slice that cannot be used does not stop the others.

    Raises:
        UserError: no single cine stack was found, or no slice of it can be used.
    """
    account = account or Account()
    candidates = _candidates(find_images(series, options, account), series)
    chosen = _choose(series, candidates)
    for other in candidates:
        if other is not chosen:
            account.leave(other.images, _why_not(other, chosen))
    _check_one_kind(series, chosen, candidates)
    _check_turn(series, chosen)
    # Not one that has a single image there, as a localiser that crosses a slice of the cine.
    counts = (Counter(image.series for image in there) for there in chosen.cine)
    used = {name for one in counts for name, count in one.items() if count >= MIN_PHASES}
    out = Stack([], account)
    for there in chosen.places:
        if len(there) >= MIN_PHASES or any(image.series in used for image in there):
            out.slices.append(_slice(series, there, options))
        else:
            account.leave(there, "stills", f"fewer than {MIN_PHASES} images at one place")
    _check_even(series, out.slices)
    if not out.sound and (first := out.slices[0].refusal) is not None:
        raise UserError(f"{first.cause}. {_table(candidates)}", first.remedy)
    account.notes += notes_of([one.images for one in out.slices], [*out.sound.values()])
    return out


def _candidates(images: list[Image], series: Series) -> list[_Candidate]:
    study, frame = (_sound_key(images, name) for name in ("study", "frame_of_reference"))
    turns = _turns(images)
    groups = grouped(
        images, lambda i: (study(i), frame(i), turns[i.orientation], (i.sequence, i.variant))
    )
    return [_Candidate(them, key, series.path) for key, them in groups.items()]


def _sound_key(images: list[Image], name: str) -> Any:
    """Reads a UID; nothing where an anonymiser gave nearly every image its own."""
    counts = Counter(getattr(image, name) for image in images)
    shared = sum(n for n in counts.values() if n >= MIN_PHASES)
    return (lambda image: getattr(image, name)) if 2 * shared > len(images) else (lambda image: "")


def _turns(images: list[Image]) -> dict[tuple[float, ...] | None, int]:
    """Orientation -> number of its cluster, of those displayed as the most frequent one is."""
    leaders: list[np.ndarray] = []
    out: dict[tuple[float, ...] | None, int] = {None: -1}
    limit = np.cos(np.radians(SAME_TURN_DEGREES))
    for turn, _ in Counter(image.orientation for image in images).most_common():
        if turn is None:
            continue
        axes = unit_axes(turn)
        both = np.stack([axes, displayed_axes(axes)])
        cosines = [(leader * both).sum(axis=2) for leader in leaders]
        near = [i for i, of in enumerate(cosines) if (of >= limit).all(axis=1).any()]
        if not near:
            leaders.append(both)
        out[turn] = near[0] if near else len(leaders) - 1
    return out


def _places(images: list[Image], normal: np.ndarray | None, path: Path) -> list[list[Image]]:
    """Images by position along the normal, else by SliceLocation, else by file or folder."""
    at = [None if normal is None else image.along(normal) for image in images]
    if all(value is None for value in at):
        at = [image.location for image in images]
    known = [(value, i) for value, i in zip(at, images, strict=True) if value is not None]
    unknown = [image for value, image in zip(at, images, strict=True) if value is None]
    if len(unknown) == len(images):
        if len({image.position for image in images}) > 1 and len(images) >= MIN_PHASES:
            raise UserError(
                f"{printable(path)}: the images of {images[0].name} lie in several places and do "
                "not say how they are turned (ImageOrientationPatient is missing)",
                "export the series again with ImageOrientationPatient, or with SliceLocation",
            )
        by_file = grouped(images, lambda i: i.path.parent if i.frame is None else i.path)
        return [by_file[place] for place in sorted(by_file)]
    if unknown:
        raise UserError(
            f"{printable(path)}: {len(unknown)} of {len(images)} images of {unknown[0].name} have "
            f"no position ({printable(unknown[0].path.name)} for one)",
            "export the series again with ImagePositionPatient, or leave those files out",
        )
    out: list[list[Image]] = []
    first = last = -np.inf
    for value, image in sorted(known, key=operator.itemgetter(0)):
        if value - last > _SAME_PLACE_MM or value - first > 2 * _SAME_PLACE_MM:
            out.append([])
            first = value
        out[-1].append(image)
        last = value
    return [sorted(there, key=lambda image: (str(image.path), image.frame or 0)) for there in out]


def _choose(series: Series, candidates: list[_Candidate]) -> _Candidate:
    """The short-axis stack among those that are cine; refused where more than one may be it."""
    cine = [one for one in candidates if one.cine]
    if not cine:
        raise _ambiguous(series, candidates, f"no slice has {MIN_PHASES} phases or more: no cine")
    if any(one.is_steady_state for one in cine):  # tagging and flow are spoiled
        cine = [one for one in cine if one.is_steady_state or not one.key[3][1]]
    studies = {one.key[0]: one for one in cine}
    if len(studies) > 1:
        found = " | ".join(
            f"patient {printable(one.images[0].patient_id)!r}, {one.images[0].name} in "
            f"{printable(one.images[0].path.parent.name)}"
            for one in studies.values()
        )
        raise UserError(
            f"{printable(series.path)} holds cine of {len(studies)} examinations "
            f"(StudyInstanceUID), perhaps of several patients: {found}",
            "sort them into one folder an examination",
        )
    typical = [one for one in cine if one.is_typical]
    pool = typical if any(len(one.cine) >= 3 for one in typical) else cine
    pool = sorted(pool, key=lambda one: len(one.cine), reverse=True)
    first, sizes = pool[0], [len(one.cine) for one in pool]
    # A long-axis view is a slice or three of its own orientation beside the short-axis stack.
    if len(pool) > 1 and (sizes[0] < 3 or sizes[1] > sizes[0] / 2):
        raise _ambiguous(series, cine, "several stacks, and none is plainly the short axis")
    if typical and not first.is_typical:
        why = f"the largest stack ({first.images[0].name}) is no short axis"
        raise _ambiguous(series, cine, why)
    return first


def _check_turn(series: Series, chosen: _Candidate) -> None:
    """Refuse rows and columns that do not run in two directions at right angles."""
    for turn in {image.orientation for image in chosen.images if image.orientation is not None}:
        axes = np.array(turn).reshape(2, 3)
        if max(*abs(np.linalg.norm(axes, axis=1) - 1), abs(axes[0] @ axes[1])) > _SKEW:
            raise UserError(
                f"{printable(series.path)}: ImageOrientationPatient of {chosen.images[0].name} is "
                f"({', '.join(f'{v:g}' for v in turn)}), which are no two directions at right "
                "angles",
                "export the series again with its orientation",
            )


def _check_one_kind(series: Series, chosen: _Candidate, candidates: list[_Candidate]) -> None:
    """Refuse series of other names between one another: one may be another kind of sequence."""
    places: dict[str, dict[int, Image]] = defaultdict(dict)
    for z, there in enumerate(chosen.cine):
        for image in there:
            places[image.series].setdefault(z, image)
    for one, other in itertools.combinations(places.values(), 2):
        low, high = sorted((list(one), list(other)))
        between = high[0] < low[-1] and len(low) > 1 and len(high) > 1
        first, second = one[min(one)], other[min(other)]
        if between and not one.keys() & other.keys() and first.words != second.words:
            names = f"{first.name} and {second.name}"
            raise _ambiguous(series, candidates, f"the slices of {names} lie between one another")


def _why_not(other: _Candidate, chosen: _Candidate) -> str:
    if not other.cine:
        return "stills"
    if other.key[2] != chosen.key[2]:
        return "another orientation"
    if other.key[3] != chosen.key[3]:
        return "another kind of sequence"
    return "another frame of reference"


def _slice(series: Series, there: list[Image], options: Options) -> StackSlice:
    account = Account(found=len(there))
    where = f"{printable(series.path)}: the slice at {there[0].place}"
    try:
        images = order_phases(_one_source(there, options, account), options, account)
    except UserError as error:
        cause, remedy = f"{where}: {error.cause}", error.remedy
        if there[0].has_no_place and there[0].position:
            cause += " (its ImagePositionPatient is 0, 0, 0: it may be several slices)"
            remedy = f"export the series again with ImagePositionPatient; else {remedy}"
        return StackSlice(tuple(there), Account(len(there)), UserError(cause, remedy))
    return StackSlice(tuple(images), account)


def _one_source(there: list[Image], options: Options, account: Account) -> list[Image]:
    """Of several series at one place that of ``--repeats``; single images beside a cine go."""
    sources: list[list[Image]] = []
    for image in there:
        same = next((source for source in sources if _is_same_source(source[0], image)), None)
        if same is None:
            sources.append(same := [])
        same.append(image)
    _check_alike(sources)
    cine = [s for s in sources if len(s) >= MIN_PHASES]
    if not cine:
        differ = " of several series or kinds" if len(sources) > 1 else ""
        raise UserError(
            f"the slices have {list(map(len, sources))} images{differ}, {MIN_PHASES} are the least",
            "if these are the phases of a slice, export them as one series"
            if len(sources) >= MIN_PHASES
            else f"export {there[0].name} again, or leave that slice out",
        )
    if len(cine) > 1 and options.repeats is None:
        same = len({s[0].name for s in cine}) < len(cine)
        names = ", ".join(
            f"{s[0].name}{' ' + '/'.join(s[0].image_type) if same else ''} ({len(s)} images)"
            for s in cine
        )
        count = {2: "two", 3: "three"}.get(len(cine), str(len(cine)))
        raise UserError(
            f"{count} series show the same slice: {names}",
            "choose with --repeats=last or --repeats=first, or one series with --series, or leave "
            "only one in the folder",
        )
    cine.sort(key=_scanned)
    chosen = cine[0] if options.repeats == "first" else cine[-1]
    if list(map(_scanned, cine)).count(_scanned(chosen)) > 1:
        raise UserError(
            f"{len(cine)} series show the same slice, and neither SeriesNumber, AcquisitionNumber, "
            f"AcquisitionTime nor InstanceNumber says which was first: {chosen[0].name}",
            "leave only one in the folder",
        )
    for source in sources:
        if source is not chosen:
            reason = "repeats" if len(source) >= MIN_PHASES else "stills"
            account.leave(source, reason, f"{chosen[0].name} shows the same slice")
    return chosen


def _check_alike(sources: list[list[Image]]) -> None:
    """Refuse images of one series and slice that are not of one make."""
    pairs = itertools.product(itertools.combinations(sources, 2), _MAKE.items())
    for (one, other), (name, tag) in pairs:
        values = getattr(one[0], name), getattr(other[0], name)
        if one[0].series != other[0].series or values[0] == values[1]:
            continue
        # Of another ImageType stills are left out, and a second cine is a choice.
        if name == "image_type" and len(one) + len(other) != one[0].cardiac_images:
            continue
        few = min(one, other, key=len)[0].path.name
        raise UserError(
            f"its images of {one[0].name} differ in {tag}: {values[0] or 'none'} in {len(one)} "
            f"and {values[1] or 'none'} in {len(other)} ({printable(few)} for one)",
            f"export the series again with one {tag}, or leave the others out",
        )


def _scanned(source: list[Image]) -> tuple[float, ...]:
    """When a series was scanned, to be compared; its images may be in any order."""
    names = "acquisition", "clock", "instance"
    starts = (min(getattr(image, name) or 0.0 for image in source) for name in names)
    return source[0].series_number or 0, *starts


def _is_same_source(one: Image, other: Image) -> bool:
    if any(getattr(one, name) != getattr(other, name) for name in _OF_A_SOURCE):
        return False
    if one.spacing is None or other.spacing is None:
        return one.spacing == other.spacing
    return np.allclose(one.spacing, other.spacing, rtol=_SAME_SPACING, atol=0)


def _check_even(series: Series, stack: list[StackSlice]) -> None:
    """Refuse the slices that lack phases, as far as that can be known."""
    sound = [one for one in stack if one.refusal is None]
    counts = [len(one.images) for one in sound]
    for one in sound:
        first, count = one.images[0], len(one.images)
        # Of a real-time series it counts the images of all beats.
        stated = 0 if one.account.left["later beats"] else first.cardiac_images
        expected = stated or Counter(counts).most_common(1)[0][0]
        if count < expected or (not stated and count != expected):
            more = ", or leave that slice out" if count < expected else ": the others may lack some"
            one.refusal = UserError(
                f"{printable(series.path)}: the slices have {counts} images, {expected} are "
                f"expected at {first.place} ({first.name})",
                f"export the whole series again{more}",
            )
            one.account = Account(found=one.account.found)


def _ambiguous(series: Series, candidates: list[_Candidate], why: str) -> UserError:
    """A refusal with a table of what was found."""
    return UserError(
        f"{printable(series.path)}: {why}. {_table(candidates)}",
        "name the short-axis cine with --series (number or description), or leave only it in the "
        "folder",
    )


def _table(candidates: list[_Candidate]) -> str:
    found = sorted(map(str, candidates))
    return "Found: " + " | ".join(found[:8]) + (" | ..." if len(found) > 8 else "")
