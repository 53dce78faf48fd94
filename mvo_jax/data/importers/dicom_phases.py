"""The images of one slice: one beat, each phase once, in time order."""

import itertools
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from mvo_jax.data.importers.cine import Options
from mvo_jax.data.importers.dicom_files import Account, grouped
from mvo_jax.data.importers.dicom_headers import MIN_PHASES, Image
from mvo_jax.data.importers.dicom_pixels import check_greys, read_pixels
from mvo_jax.data.importers.orientation import unit_axes
from mvo_jax.errors import UserError

SAME_TURN_DEGREES = 6.0  # between images of one slice or stack; views are some 30 apart
_SEVERAL_BEATS = 1.5  # times of a slice span more than this many intervals from beat to beat
_MOST_OF_A_BEAT = 0.75  # prospective gating leaves out the last tenth or fifth
_LONGEST_BEAT_MS = 3000.0  # 20 beats a minute
_LONGEST_PHASE_MS = 150.0
_USUAL_BEAT_MS = 1200.0
_REAL_TIME = re.compile(r"real.?time|free.?breath|(?<![a-z])rt(?![a-z])")
_SAME_LOCATION_MM = 1.0  # slices are 5 mm apart and more; some round SliceLocation to 0.1 mm
# Correlation of the means over time of two scans of one slice; and where its place is all 0, as
# anonymisers write it: slices beside one another have up to 0.85 (35 of real cine).
_ALIKE, _SAME = 0.5, 0.95
_LARGEST_GAP = 1.7  # of the usual time between phases
_OFF_A_STEP = 0.2  # of it: clocks are rounded to some ms
_CLOSE = 0.3  # of it: a phase nearer to another is the same one, scanned again
# What distinguishes the phases of a slice, best first.
_TIMES = {
    "TriggerTime": "trigger",
    "NominalCardiacTriggerDelayTime": "delay",
    "ActualCardiacTriggerDelayTime": "actual_delay",
    "TemporalPositionIdentifier": "temporal",
    "AcquisitionTime": "clock",
    "InstanceNumber": "instance",
}
_IN_MS = (*[*_TIMES][:3], "AcquisitionTime")

Time = Callable[[Image], float]


def order_phases(images: Sequence[Image], options: Options, account: Account) -> list[Image]:
    """One beat of a slice in time order.

    Images, of one place and series, are cut by what distinguishes them, never by count: one echo
    (the first), one acquisition (the last whole one, or by ``--repeats``), one beat (the first).

    Raises:
        UserError: phases cannot be told apart or put in order, or some are missing. The cause goes
            on with "the slice".
    """
    _check_one_place(images)
    name, time = next(_times_of(images, _TIMES, MIN_PHASES), ("", None))
    if time is None:
        cause = "nothing tells the phases of a slice apart"
        raise UserError(cause, "export the series again with TriggerTime or InstanceNumber")
    kept = _one_echo(list(images), time, account)
    kept = _one_acquisition(kept, time, options, account)
    if _repeats(kept, time):
        kept = _without_equal_pixels(kept, time, account)
    if _repeats(kept, time):
        name, time = _finer(kept, name, time)
    if _repeats(kept, time) or (name in _IN_MS and _scanned_again(kept, time)):
        kept = _one_run(kept, time, name, options, account)
    kept.sort(key=time)
    kept = _one_beat(kept, time, account, in_ms=name in _IN_MS)
    _check_triggers(kept, name, account)
    if name == "InstanceNumber":
        what = name if kept[0].frame is None else "the order of the frames"
        account.notes.append(f"nothing but {what} puts the phases of a slice in order")
        _check_clock(kept, account)
    check_greys(kept)
    _check_gaps(name, np.array([time(image) for image in kept]), account)
    return kept


def _check_gaps(name: str, times: np.ndarray, account: Account) -> None:
    """Refuse a slice that lacks a phase, as far as what orders them says it.

    Numbers may leave out what is no phase, and the clock may wait for a beat: a note.
    """
    gaps = np.diff(times)
    usual = gaps.min() if name == "InstanceNumber" else np.median(gaps)
    if gaps.max() <= _LARGEST_GAP * usual:
        return
    before, after = times[gaps.argmax() :][:2]
    where = f"{name} {before:g} and {after:g}"
    if name == "AcquisitionTime":
        where = f"{before - times[0]:g} and {after - times[0]:g} ms after the first, by {name}"
    is_step = np.abs(gaps / usual - np.rint(gaps / usual)).max() < _OFF_A_STEP
    if name == "InstanceNumber" or (name == "AcquisitionTime" and not is_step):
        account.notes.append(f"a phase may be missing between {where}")
        return
    cause = f"a phase is missing between {where}"
    raise UserError(cause, "export the whole series again, or leave it out")


def _check_one_place(images: Sequence[Image]) -> None:
    """Refuse images of one position that differ in SliceLocation or in how they are turned."""
    places = sorted(i.location for i in images if i.location is not None and i.position is not None)
    if places and places[-1] - places[0] > _SAME_LOCATION_MM:
        raise UserError(
            f"its {len(images)} images have one ImagePositionPatient, and SliceLocation from "
            f"{places[0]:g} to {places[-1]:g} mm: which says where they lie is not sure",
            "export the series again; if SliceLocation is right, take ImagePositionPatient out",
        )
    turns = Counter(i.orientation for i in images if i.orientation is not None).most_common()
    limit = np.cos(np.radians(SAME_TURN_DEGREES))
    axes = [unit_axes(turn) for turn, _ in turns]
    alike = [(one * axes[0]).sum(axis=1).min() >= limit for one in axes]
    other = sum(n for (_, n), is_alike in zip(turns, alike, strict=True) if not is_alike)
    if other:
        raise UserError(
            f"{other} of its {len(images)} images are turned or mirrored against the others by "
            f"ImageOrientationPatient ({images[0].name})",
            "export the series again with one orientation for the images of a slice",
        )


def _check_triggers(images: Sequence[Image], name: str, account: Account) -> None:
    """Refuse an order by what stands in for TriggerTime where the known ones contradict it."""
    known, count = [i.trigger for i in images if i.trigger is not None], len(images)
    if known != sorted(known) and len(known) == count:
        raise UserError(
            f"its {count} images have {len(set(known))} times by TriggerTime, which contradicts "
            f"{name}, by which alone they could be told apart",
            "export the series again with TriggerTime, not rounded",
        )
    if known != sorted(known):
        raise UserError(
            f"{len(known)} of {count} images have a TriggerTime, and it contradicts {name}, by "
            "which the others could be put in order",
            "export the series again with TriggerTime in all images",
        )
    if 0 < len(known) < count:
        account.notes.append(
            f"{count - len(known)} of {count} images have no TriggerTime: phases are in the order "
            f"of {name}"
        )


def _check_clock(images: Sequence[Image], account: Account) -> None:
    """Refuse an order by InstanceNumber that AcquisitionTime, within a beat, contradicts.

    Times of many beats say when was scanned, not what: a note.
    """
    times = [image.clock for image in images if image.clock is not None]
    if times == sorted(times):
        return
    if max(times) - min(times) <= _LONGEST_BEAT_MS:
        raise UserError(
            "AcquisitionTime contradicts InstanceNumber, by which alone its images could be put in "
            "order",
            "export the series again with TriggerTime",
        )
    account.notes.append(
        f"{images[0].name}: phases are in the order of InstanceNumber, which is not that of "
        "AcquisitionTime"
    )


def _times_of(
    images: Sequence[Image], names: Iterable[str], least: int
) -> Iterator[tuple[str, Time]]:
    """Those tags that tell so many phases of a slice apart, and what reads them."""
    for name in names:
        time = operator.attrgetter(_TIMES[name])
        values = list(map(time, images))
        if None in values or len(set(values)) < least:
            continue
        # Else when the slice was scanned, over several beats.
        if name != "AcquisitionTime" or _is_one_run(values):
            yield name, time


def _finer(images: Sequence[Image], name: str, time: Time) -> tuple[str, Time]:
    """A time that tells apart what a rounded one does not, if the two agree; else the same."""
    names = [*_TIMES]
    for other, finer in _times_of(images, names[names.index(name) + 1 : -1], len(images)):
        course = list(map(time, sorted(images, key=finer)))
        if course == sorted(course):
            return other, finer
    return name, time


def _scanned_again(images: Sequence[Image], time: Time) -> bool:
    """Whether phases lie in twos or more, far closer than to the next: a slice scanned again."""
    gaps = np.diff(sorted(map(time, images)))
    close = (gaps < _CLOSE * np.quantile(gaps, 0.75)).sum() if len(gaps) else 0
    return bool(close >= MIN_PHASES - 1 or 4 * close > len(gaps))


def _is_one_run(times: Sequence[float]) -> bool:
    """Whether times of day follow one another as images of one beat or of a real-time series do."""
    gaps = np.diff(np.unique(times))
    steady = gaps.max() <= _LARGEST_GAP * np.median(gaps) and np.median(gaps) < _LONGEST_PHASE_MS
    return steady or max(times) - min(times) <= _LONGEST_BEAT_MS


def _is_located(image: Image) -> bool:
    return image.position is not None or image.location is not None


def _repeats(images: Sequence[Image], time: Time) -> bool:
    return len({time(image) for image in images}) < len(images)


def _parts(images: Sequence[Image], field: str, time: Time) -> dict[float, list[Image]]:
    """The images by a field, if that makes beats of them; else empty."""
    parts = grouped(images, operator.attrgetter(field))
    whole = [p for p in parts.values() if len({time(i) for i in p}) >= MIN_PHASES]
    return dict(sorted(parts.items())) if len(parts) > 1 and whole and None not in parts else {}


def _one_echo(images: list[Image], time: Time, account: Account) -> list[Image]:
    for name, field in (("EchoNumbers", "echo"), ("EchoTime", "echo_time")):
        parts = _parts(images, field, time)
        if len(parts) > 1 and min(len(p) for p in parts.values()) >= MIN_PHASES:
            first, *others = parts
            for other in others:
                account.leave(parts[other], "another echo", f"{name} {other:g}; {first:g} is used")
            images = parts[first]
    return images


def _one_acquisition(
    images: list[Image], time: Time, options: Options, account: Account
) -> list[Image]:
    parts = _parts(images, "acquisition", time)
    if len(parts) < 2:
        return images
    if not _is_located(images[0]):
        raise UserError(
            f"AcquisitionNumber tells {len(parts)} sets of images apart ({images[0].name}), slices "
            "or repeats, and neither position nor SliceLocation is there",
            "export the series again with ImagePositionPatient, or one slice a folder",
        )
    # One beat may be scanned in pieces: they are repeats only where their times lie in one another.
    starts = [(min(map(time, p)), max(map(time, p))) for p in parts.values()]
    apart = all(a[1] < b[0] or b[1] < a[0] for i, a in enumerate(starts) for b in starts[:i])
    if apart or (not _repeats(images, time) and len(images) == images[0].cardiac_images):
        return images
    chosen = _one_repeat(list(parts.values()), time, options)
    used = next(number for number, part in parts.items() if part is chosen)
    for number, part in parts.items():
        if part is not chosen:
            why = f"acquisition {number:g} of the same slice; {used:g} is used"
            account.leave(part, "repeats", why)
    return chosen


def _one_repeat(sets: list[list[Image]], time: Time, options: Options) -> list[Image]:
    """The last (or first) set of most phases; refused if sets look as unlike as phase maps do."""
    sizes = [len({time(i) for i in one}) for one in sets]
    whole = [one for one, size in zip(sets, sizes, strict=True) if size == max(sizes)]
    chosen = whole[0] if options.repeats == "first" else whole[-1]
    cine = [one for one in sets if len(one) >= MIN_PHASES]
    if options.repeats is not None or len(cine) < 2:
        return chosen
    means = [one.mean(axis=0).ravel() for one in read_pixels(cine)]
    own = next(mean for one, mean in zip(cine, means, strict=True) if one is chosen)
    with np.errstate(invalid="ignore", divide="ignore"):  # of one grey nothing is known
        alike = min(float(np.corrcoef(own, mean)[0, 1]) for mean in means)
    if len({bool((mean < 0).any()) for mean in means}) > 1:  # velocities have a sign
        alike = min(alike, 0.0)
    first = chosen[0]
    placed = any((*(first.position or ()), first.location or 0.0))
    if not alike >= (_ALIKE if placed else _SAME):
        raise UserError(
            f"{len(cine)} sets of images show it, and they do not look alike (correlation "
            f"{alike:.2f}): magnitude and phase maps, or two places? ({first.name})",
            "choose with --repeats=first or --repeats=last, or leave only one in the folder",
        )
    return chosen


def _without_equal_pixels(images: list[Image], time: Time, account: Account) -> list[Image]:
    """Images of one time that are equal in every pixel, as of two exports, once."""
    kept: dict[tuple[float, bytes], Image] = {}
    for image in images:
        ((pixels,),) = read_pixels([[image]])
        kept.setdefault((time(image), pixels.tobytes()), image)
    copies = len(images) - len(kept)
    note = f"{images[0].name}: {copies} copies (same time and pixels) left out"
    account.count(copies, "copies", note)
    return list(kept.values())


def _one_run(
    images: list[Image], time: Time, name: str, options: Options, account: Account
) -> list[Image]:
    """Of beats that follow one another by InstanceNumber, the last whole one."""
    slices = {image.in_stack for image in images}
    if len(slices) > 1:
        raise UserError(
            f"its {len(images)} images repeat {name} and have one ImagePositionPatient, and "
            f"{len(slices)} InStackPositionNumbers: several slices, or one again, is not sure",
            "export the series again with the position of every frame",
        )
    runs: list[list[Image]] = [[]]
    for image in sorted(images, key=lambda i: i.instance or 0.0):
        if runs[-1] and time(image) <= time(runs[-1][-1]):
            runs.append([])
        runs[-1].append(image)
    located = _is_located(images[0])
    numbered = len({image.instance for image in images}) == len(images)
    most = max(map(len, runs))
    # Where phases share a rounded time the numbers may go on within one beat.
    starts = [time(run[0]) for run in runs]
    again = max(starts) - min(starts) <= max(time(run[-1]) - time(run[0]) for run in runs) / 2
    again = again and all(time(a[-1]) > time(b[0]) for a, b in itertools.pairwise(runs))
    if not _repeats(images, time) and (len(runs) < 2 or most < MIN_PHASES):
        raise UserError(
            f"many of its {len(images)} images lie less than {_CLOSE:g} of a phase beside another "
            f"by {name} ({images[0].name}): the slice was scanned again, and InstanceNumber does "
            "not say which images belong together",
            "leave one scan of the slice in the folder",
        )
    if not (located and numbered and again) or most < MIN_PHASES:
        counts = sorted(set(Counter(map(time, images)).values()))
        which = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        lack = "" if located else ", and neither position nor SliceLocation is there"
        raise UserError(
            f"{name} repeats within a slice ({which} images a phase) and nothing tells the images "
            f"apart{lack} ({images[0].name}, {images[0].path.name})",
            f"export the series again, each image once, with its position, acquisition and {name}, "
            "not rounded",
        )
    chosen = _one_repeat(runs, time, options)
    why = f"the same slice again; the {options.repeats or 'last'} is used (--repeats chooses)"
    for run in runs:
        if run is not chosen:
            account.leave(run, "repeats", why)
    return chosen


def _one_beat(images: list[Image], time: Time, account: Account, *, in_ms: bool) -> list[Image]:
    """The first of several beats of a real-time series; images are in time order."""
    first, count, start = images[0], len(images), time(images[0])
    span = time(images[-1]) - start if in_ms else 0.0
    interval = first.interval if in_ms else 0.0
    step = span / max(count - 1, 1)
    if interval > 0 and span + step > _SEVERAL_BEATS * interval:
        beat = [i for i in images if time(i) - start < interval - step / 2]
        if len(beat) < MIN_PHASES:
            cause = f"a beat of {interval:g} ms has {len(beat)} of {count} phases"
            raise UserError(f"{cause} (real-time series?)", f"leave {first.name} out of the folder")
        account.leave(images[len(beat) :], "later beats", f"one beat of {interval:g} ms is used")
        return beat
    if interval > 0:
        if not first.cardiac_images and span + step < _MOST_OF_A_BEAT * interval:
            cover = f"{count} phases cover {span + step:.0f} ms of a beat of {interval:g} ms"
            account.notes.append(f"{first.name}: {cover}: some may be missing")
        return images
    expected = first.cardiac_images
    real_time = _REAL_TIME.search(first.words.casefold()) and span > _USUAL_BEAT_MS
    if span > _LONGEST_BEAT_MS or 0 < expected < count or real_time:
        raise UserError(
            f"it has {count} phases"
            + (f" over {span:g} ms" if in_ms else "")
            + (f" where CardiacNumberOfImages is {expected}" if expected else "")
            + ": several beats (a real-time series?), and no NominalInterval to cut them by"
            + (", or images that are no phase, as a mean" if count < 2 * expected else ""),
            f"export one beat of {first.name}, or leave what is none out of the folder",
        )
    return images
