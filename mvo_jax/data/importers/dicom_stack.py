"""Which of a folder's DICOM images are the short-axis cine, and in which order."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import Options, Series, printable
from mvo_jax.data.importers.dicom_headers import MAX_FILES, Image, is_dicom, read_headers
from mvo_jax.data.importers.walk import files_below
from mvo_jax.errors import UserError

_MIN_PHASES = 8  # fewer images at one place are a localiser or a map, no cine
_PHASE_IMAGES = {"P", "PHASE", "PHASE MAP", "VELOCITY"}
# What distinguishes the phases of a slice, best first.
_TIMES = (
    ("TriggerTime", "trigger"),
    ("NominalCardiacTriggerDelayTime", "delay"),
    ("TemporalPositionIdentifier", "temporal"),
    ("InstanceNumber", "instance"),
)


def read_stack(series: Series, options: Options) -> list[tuple[Image, ...]]:
    """Headers of a patient's short-axis cine, slice by slice, each in time order.

    Groups images by series, orientation, size, spacing and kind; orders slices along their normal
    and phases by trigger time (or what stands in for it).

    Raises:
        UserError: nothing, or no single cine stack, was found; incomplete slices. The message
            lists what is there.
    """
    groups: dict[tuple, list[Image]] = defaultdict(list)
    for image in _images(series):
        if not _PHASE_IMAGES & set(image.image_type):
            groups[image.group].append(image)
    if not groups:
        raise UserError(
            f"{printable(series.path)} holds no DICOM image", "leave it out of the source"
        )
    stacks: dict[tuple, dict[Any, list[Image]]] = defaultdict(dict)
    for key, images in groups.items():
        places: dict[Any, list[Image]] = defaultdict(list)
        for image in images:
            distance = image.distance
            place = (
                round(distance * 2) / 2  # half a millimetre
                if distance is not None
                else (str(image.path) if image.frame is not None else str(image.path.parent))
            )
            places[place].append(image)
        for place, there in places.items():
            if len(there) >= _MIN_PHASES:
                stack = stacks[key[1:4]]
                if place in stack:
                    raise _ambiguous(series, groups, "two series show the same slice")
                stack[place] = there
    if not stacks:
        raise _ambiguous(series, groups, f"no slice has {_MIN_PHASES} phases or more: no cine")
    sizes = sorted((len(stack) for stack in stacks.values()), reverse=True)
    # A long-axis view is a slice or three of its own orientation beside the short-axis stack.
    if len(sizes) > 1 and (sizes[0] < 3 or sizes[1] > sizes[0] / 2):
        raise _ambiguous(series, groups, "several orientations, and none is plainly the short axis")
    stack = max(stacks.values(), key=len)
    patients = sorted({i.patient_id.strip() for images in stack.values() for i in images} - {""})
    if len(patients) > 1 and options.patient_from == "header":
        raise UserError(
            f"{printable(series.path)} holds images of {len(patients)} patients: "
            f"{', '.join(printable(p) for p in patients[:4])}",
            "sort them into one folder a patient; if the headers are wrong, --patient_from=folder",
        )
    ordered = [stack[place] for place in sorted(stack)]
    _check_even(series, ordered)
    return [tuple(_in_time(series, images, groups)) for images in ordered]


def _check_even(series: Series, stack: list[list[Image]]) -> None:
    """Check that no slice lacks phases, as far as that can be known."""
    counts = [len(images) for images in stack]
    usual = Counter(counts).most_common(1)[0][0]
    for images in stack:
        expected = images[0].cardiac_images or usual
        if len(images) % expected:
            raise UserError(
                f"{printable(series.path)}: the slices have {counts} images, {expected} are "
                f"expected at {images[0].position}",
                "export the whole series again, or leave that slice out",
            )


def _in_time(series: Series, images: list[Image], groups: dict) -> list[Image]:
    """Phases of one slice in time order; of repeated acquisitions the last complete one."""
    expected = images[0].cardiac_images or len(images)
    if len(images) > expected:
        last = sorted(images, key=lambda i: (i.acquisition, i.instance or 0.0))[-expected:]
        images = last
    for name, field in _TIMES:
        values = [getattr(image, field) for image in images]
        if any(value is None for value in values) or len(set(values)) == 1:
            continue
        repeats = set(Counter(values).values())
        if len(repeats) > 1:
            raise _ambiguous(series, groups, f"{name} repeats unevenly within a slice")
        kept = {}
        for image in sorted(images, key=lambda i: (i.acquisition, i.instance or 0.0)):
            kept[getattr(image, field)] = image  # the last of each time
        if len(kept) < _MIN_PHASES:
            continue
        times = np.array(sorted(kept))
        gaps = np.diff(times)
        if field != "instance" and gaps.max() > 1.7 * np.median(gaps):
            raise UserError(
                f"{printable(series.path)}: a phase is missing between {name} "
                f"{times[gaps.argmax()]:g} and {times[gaps.argmax() + 1]:g}",
                "export the whole series again, or leave it out",
            )
        return [kept[time] for time in sorted(kept)]
    raise _ambiguous(series, groups, "nothing tells the phases of a slice apart")


def _ambiguous(series: Series, groups: dict[tuple, list[Image]], why: str) -> UserError:
    """A refusal with a table of what was found."""
    found = []
    for key, images in groups.items():
        places = len({round(i.distance or 0.0, 1) for i in images})
        found.append(
            f"{printable(images[0].description) or 'series'} {key[2][0]}x{key[2][1]} at "
            f"{key[1]}: {places} slices, {len(images)} images"
        )
    table = " | ".join(sorted(found)[:8]) + (" | ..." if len(found) > 8 else "")
    return UserError(
        f"{printable(series.path)}: {why}. Found: {table}",
        "leave only the short-axis cine in the folder",
    )


def _images(series: Series) -> Iterator[Image]:
    """Headers of all DICOM images of a series; files of other kinds are passed over."""
    if series.path.is_file():
        yield from read_headers(series.path)
        return
    paths: Any = files_below(series.path)
    if series.detail.get("loose"):
        paths = sorted(p for p in series.path.iterdir() if not p.is_dir() and p.name[0] != ".")
    count = 0
    for path in paths:
        if not is_dicom(path):
            continue
        count += 1
        if count > MAX_FILES:
            raise UserError(
                f"{printable(series.path)} holds more than {MAX_FILES:,} DICOM files",
                "sort them into one folder a patient below the source",
            )
        yield from read_headers(path)
