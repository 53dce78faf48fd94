"""A series to clips: one spacing, one number of frames, one crop for clip, LGE mask and anatomy.

What is trained on and what is predicted come through here. The crop holds the whole myocardium or
the slice is refused.
"""

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mvo_jax.data.cohort.faults import label_fault, slice_fault
from mvo_jax.data.cohort.heart import Placed, find_heart, has_centre
from mvo_jax.data.cohort.resample import resample_mask, resample_space, resample_time
from mvo_jax.data.cohort.window import choose_window
from mvo_jax.data.importers.cine import Options, RefusedSeries, Series, printable, quiet_readers
from mvo_jax.data.importers.formats import load_series, series_label
from mvo_jax.data.intensity import displayed, intensity_range, to_uint8
from mvo_jax.data.labels import MVO, UNLABELLED, has_mvo, largest_cavity, middle_of, mvo_parts
from mvo_jax.data.slices import CineSlice, Clip, Overview, Rejected, Target, Window
from mvo_jax.errors import UserError


def read_series(
    load: Callable[[Series, Options], list[CineSlice]],
    series: Series,
    options: Options,
    target: Target,
    *,
    with_overview: bool = False,
) -> list[Clip | Rejected]:
    """Read and prepare a series. Whatever goes wrong with its file becomes a ``Rejected``.

    Returns:
        One entry a slice, in order, and one for each drawing that lies on none; a single one where
        the series cannot be read at all.
    """
    try:
        with quiet_readers():
            slices = load_series(load, series, options)
            results = prepare_series(
                slices,
                target,
                label=series_label(series, slices, options),
                still_images=options.still_images,
            )
            for i, done in enumerate(results):
                if with_overview and isinstance(done, Clip):
                    results[i] = _with_overview(done, slices[i])
            _keep_first_note(slices, results)
            return [*results, *(lost for one in slices for lost in one.unplaced)]
    except UserError as error:
        images = error.images if isinstance(error, RefusedSeries) else 0
        return [series.rejected(error.cause, error.remedy, images)]
    except ModuleNotFoundError as error:
        cause = f"{printable(series.path)} needs the package {error.name}, which is not installed"
        return [series.rejected(cause, "pip install 'mvo_jax[images]'")]
    except Exception as error:  # whatever a library makes of one bad file, the rest goes on
        cause = f"{printable(series.path)}: {type(error).__name__}: {printable(error)[:200]}"
        return [series.rejected(cause, "check the file, or leave it out")]


def lost_series(series: Series, status: int, remedy: str = "check it") -> Rejected:
    """A series whose reader crashed, or was killed for memory, with this exit status."""
    return series.rejected(
        f"{printable(series.path)}: the process that read it ended with status {status}",
        f"the file is damaged or too large for the memory; {remedy}",
    )


def _keep_first_note(slices: Sequence[CineSlice], results: list[Clip | Rejected]) -> None:
    """The first slice has the notes of its series: where it is refused the next one tells them."""
    for i, done in enumerate(results):
        if isinstance(done, Clip):
            if i and slices[0].note:
                results[i] = dataclasses.replace(done, note=_joined(slices[0].note, done.note))
            return


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def prepare_series(
    slices: Sequence[CineSlice],
    target: Target,
    *,
    label: int | None = None,
    still_images: bool = False,
) -> list[Clip | Rejected]:
    """One entry for each slice of a series; a bad slice does not stop the others.

    Args:
        slices: of one patient, in one orientation.
        label: what a table says of the whole series: 1 means MVO in at least one slice.
        still_images: accept a single image; it is repeated in every frame.
    """
    slices = _with_note_of_empty_masks(slices)
    fault = label_fault(slices, label)
    faults = [slice_fault(one, still_images=still_images) for one in slices]
    placed = _placed([one for one, wrong in zip(slices, faults, strict=True) if not wrong], target)
    out: list[Clip | Rejected] = []
    for one, wrong in zip(slices, faults, strict=True):
        try:
            if error := fault or wrong or label_fault([one], one.label):
                raise error
            out.append(_prepare(one, target, label, placed.get(id(one))))
        except UserError as error:
            names = one.case_id, one.patient_id, one.source
            out.append(Rejected(*names, error.cause, error.remedy, sum(one.images.values())))
    return out


def _with_note_of_empty_masks(slices: Sequence[CineSlice]) -> Sequence[CineSlice]:
    """The first slice says it where nothing is drawn in any: the export may have lost it."""
    masks = [one.lge_mask for one in slices if one.lge_mask is not None]
    if not masks or any(mask.any() for mask in masks) or any(one.has_mvo for one in slices):
        return slices
    note = _joined(slices[0].note, "nothing is drawn in its LGE mask")
    return [dataclasses.replace(slices[0], note=note), *slices[1:]]


def _placed(sound: Sequence[CineSlice], target: Target) -> dict[int, Placed]:
    """Where the heart is, by ``id`` of the slice, of each grid whose slices do not all say it."""
    grids: dict[Any, list[CineSlice]] = defaultdict(list)
    for one in sound:
        if one.pixel_mm is not None:
            grids[one.cine.shape[1:], one.pixel_mm].append(one)
    found = {}
    for them in grids.values():
        if not all(map(has_centre, them)):
            found.update(zip(map(id, them), find_heart(them, target.locator), strict=True))
    return found


def _prepare(one: CineSlice, target: Target, label: int | None, heart: Placed | None) -> Clip:
    if target.orientation < one.orientation_rule:
        raise UserError(
            f"{printable(one.source)}: {one.case_id} was turned otherwise when the run's data were "
            f"prepared (orientation rule {target.orientation}, now {one.orientation_rule})",
            "prepare those data again with this version and train on them, or predict with the "
            "version of mvo_jax that trained the run",
        )
    window = choose_window(one, target, heart)
    first, known = 0, end_diastole(one)  # one out of range is refused, used or not
    if target.end_diastole_first:
        if known is None:
            raise UserError(
                f"{printable(one.source)}: end-diastole is not known, so the cycle cannot be "
                "rolled to it",
                "give it in the table (column end_diastole) or leave out --end_diastole_first",
            )
        first = known
    frames = resample_time(resample_space(one.cine, window), target.frames, first=first)
    intensity = target.window or intensity_range(frames)
    video = to_uint8(frames, *intensity)
    if video.min() == video.max():
        raise UserError(
            f"{printable(one.source)}: the crop of {one.case_id} is one constant grey",
            "check the image, the crop's centre and --window",
        )
    mask = None if one.lge_mask is None else _crop_mask(one, one.lge_mask, window)
    # No scanner makes a phase twice: each has noise of its own.
    again = len(one.cine) - len({frame.tobytes() for frame in one.cine})
    told = f"{again} of {len(one.cine)} phases equal another in every pixel" if again else ""
    values = np.ascontiguousarray(one.cine, np.float32)  # whatever type they are stored in
    return Clip(
        **(one.identity | {"note": _joined(one.note, told)}),
        video=video[..., None],
        lge_mask=mask if mask is not None and mask.any() else None,
        label=_label(one, label),
        spacing_mm=None if one.pixel_mm is None else one.pixel_mm[0] * window.step[0],
        source_frames=len(one.cine),
        anatomy={k: resample_mask(m, window) for k, m in one.anatomy.items()},
        window=window,
        first_frame=first,
        intensity=intensity,
        source_pixels=hashlib.sha256(values.data).hexdigest()[:32],
    )


def _label(one: CineSlice, label: int | None) -> int:
    """Label of a slice. A mask on which nothing is drawn says nothing: it may be unread."""
    if one.has_mvo or (one.lge_mask is not None and one.lge_mask.any()):
        return int(bool(one.has_mvo))
    return 0 if 0 in (label, one.label) else UNLABELLED


def end_diastole(one: CineSlice) -> int | None:
    """Frame of end-diastole: as given, else the annotated frame with the largest cavity."""
    frame, frames = one.end_diastole, len(one.cine)
    if frame is not None and not 0 <= frame < frames:
        raise UserError(
            f"{printable(one.source)}: end-diastole is frame {frame} of {frames}",
            "frames count from 0",
        )
    return largest_cavity(one.anatomy) if frame is None else frame


def _crop_mask(one: CineSlice, lge_mask: np.ndarray, window: Window) -> np.ndarray:
    """The mask through the window; a part of the MVO that falls between its pixels keeps one."""
    mask = resample_mask(lge_mask, window)
    if not one.has_mvo:
        return mask
    parts = mvo_parts(lge_mask)
    if not parts.any():
        raise UserError(
            f"{printable(one.source)}: the MVO of {one.case_id} vanishes on the grid of the cine",
            "check that LGE and cine show the same slice; export the mask on the cine's grid",
        )
    for part in range(1, parts.max() + 1):
        row, column = np.floor(window.to_crop(middle_of(parts == part)) + 0.5).astype(int)
        inside = 0 <= row < window.size and 0 <= column < window.size
        if inside and not resample_mask(parts == part, window).any():
            mask[row, column] = MVO
    if not has_mvo(mask):  # all of it lies beside the crop
        row, column = np.floor(window.to_crop(middle_of(parts > 0)) + 0.5).astype(int)
        mask[row.clip(0, window.size - 1), column.clip(0, window.size - 1)] = MVO
    return mask


def _with_overview(clip: Clip, one: CineSlice) -> Clip:
    """The clip with the source's frame that it starts at."""
    assert clip.window is not None
    (top, left), (down, across), size = clip.window.start, clip.window.step, clip.window.size
    image = displayed(np.asarray(one.cine[clip.first_frame], np.float32))
    overview = Overview(image, top, left, top + size * down, left + size * across)
    return dataclasses.replace(clip, overview=overview)
