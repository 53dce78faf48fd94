"""Clips of any origin one by one: a source of images, a prepared cohort, a simulated cohort.

What training reads as a split, ``predict`` and ``inspect`` read from here; only a few series
are in memory at a time.
"""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.accounting import Reading
from mvo_jax.data.cohort.ahead import read_in_order
from mvo_jax.data.cohort.series import prepare_series
from mvo_jax.data.importers.archive import named_after, renamed, unpack
from mvo_jax.data.importers.cine import Options, printable
from mvo_jax.data.importers.formats import choose_importer
from mvo_jax.data.labels import UNLABELLED
from mvo_jax.data.slices import LOCATOR, CineSlice, Clip, Rejected, Target, Window
from mvo_jax.errors import UserError

log = logging.getLogger(__name__)

COHORT_INDEX, TFDS_INDEX = "cohort.json", "dataset_info.json"
# Simulated fields of view are 115 to 128 mm, whatever the number of pixels.
SIMULATED_FIELD_OF_VIEW_MM = 121.5
_SOUGHT = "locator", "motion"  # what places crops where nothing is drawn or given
_SAME_SPACING = 0.01  # relative; headers round
_LEAST_COVER = 0.9  # of the crop a model was trained on; less would be filled up with edge pixels


@dataclasses.dataclass(frozen=True)
class Source:
    """What a path holds."""

    path: Path  # as given
    kind: str  # ``cohort`` (prepared), ``simulated``, or the name of a format
    opened: Any  # the cohort, its TFDS builder, or (importer, folder, options)
    rejected: int = 0  # cases that could not be prepared, of a prepared cohort

    @property
    def is_cohort(self) -> bool:
        """Whether the clips are stored as they are trained on."""
        return self.kind in ("cohort", "simulated")


def open_source(path: Path, *, form: str, options: Options, scratch: Path) -> Source:
    """Find out what a path holds, without reading images.

    Args:
        path: folder or file; a ``.zip`` is unpacked into ``scratch``, which may be made for it.

    Raises:
        UserError: the path does not exist, is empty or is not recognised, or a cohort is damaged.
    """
    path = path.expanduser()
    if form == "auto" and path.is_dir():
        if (path / COHORT_INDEX).is_file():
            from mvo_jax.data.cohort.storage import REJECTED, open_cohort, read_rows  # imports TFDS

            cohort = open_cohort(path)
            if not sum(cohort.cases.values()):
                raise UserError(f"the cohort {path} has no case", "prepare it again")
            return Source(path, "cohort", cohort, len(read_rows(path / REJECTED)))
        # The path itself, or below it as they are stored.
        patterns = (f"{below}/{TFDS_INDEX}" for below in (".", "*", "*/*", "phantom/*/*"))
        found = next(filter(None, (sorted(path.glob(one)) for one in patterns)), [])
        simulated = [index.parent for index in found]
        if len(simulated) > 1:
            names = ", ".join(str(folder.relative_to(path)) for folder in simulated[:4])
            raise UserError(
                f"{path} holds {len(simulated)} simulated cohorts", f"name one of them: {names}"
            )
        if simulated:
            from mvo_jax.data.phantom import storage  # imports TFDS

            return Source(simulated[0], "simulated", storage.open_cohort(simulated[0]))
    folder = unpack(path, scratch)
    with named_after(path, folder):
        importer = choose_importer(folder, form)
    return Source(path, importer.name, (importer, folder, options))


def read_clips(source: Source, target: Target | None) -> Iterator[Clip | Rejected]:
    """Read every slice of a source; what cannot be read is reported and does not stop the rest.

    Args:
        target: None leaves a cohort's clips as they are stored.

    Raises:
        UserError: a cohort is damaged or too small for the target, or nothing is there at all.
    """
    if source.is_cohort:
        yield from _stored_clips(source, target)
        return
    importer, folder, options = source.opened
    found, sought, reading = False, False, Reading()
    with named_after(source.path, folder):
        todo = importer.find(folder, options)
        for results in read_in_order(importer, options, target or Target(), todo):
            found = True
            for one in results:
                one = dataclasses.replace(
                    one,
                    case_id=printable(one.case_id),
                    patient_id=printable(one.patient_id),
                    source=renamed(printable(one.source), folder, source.path),
                )
                if isinstance(one, Rejected):
                    cause = renamed(one.cause, folder, source.path)
                    one = dataclasses.replace(one, cause=cause)
                    reading.add_rejected([one])
                else:
                    sought |= one.centre_from in _SOUGHT
                    reading.add(one.case_id, one.note, one.images)
                yield one
    reading.log()
    if sought and target is not None and 0 < target.locator < LOCATOR:
        _warn_of_locator(source.path, LOCATOR, target.locator)
    if not found:
        raise UserError(
            f"{printable(source.path)} holds nothing to read as {importer.title}",
            "check the folder, or name its format with --format",
        )


def _stored_clips(source: Source, target: Target | None) -> Iterator[Clip | Rejected]:
    manifest: Mapping[str, Mapping[str, str]] = {}
    if source.kind == "cohort":
        cohort = source.opened
        builder, verify, splits = cohort.builder(), cohort.verify, cohort.cases
        frames, size, spacing = cohort.frames, cohort.image_size, cohort.spacing_mm
        manifest = cohort.manifest()
        if target is not None:
            _warn_of_versions(source.path, cohort, target, manifest)
    else:
        from mvo_jax.data.phantom.storage import verify_split

        builder, verify = source.opened, functools.partial(verify_split, source.opened)
        frames, size = builder.info.features["video"].shape[:2]
        splits = builder.info.splits
        spacing = SIMULATED_FIELD_OF_VIEW_MM / size
    fits = target is None or (
        (frames, size) == (target.frames, target.image_size)
        and abs(spacing / target.spacing_mm - 1) <= _SAME_SPACING
    )
    if target is not None and not fits:
        have, need = size * spacing, target.image_size * target.spacing_mm
        if have < _LEAST_COVER * need:
            raise UserError(
                f"the cohort {source.path} shows {have:.0f} mm of each slice, the model was "
                f"trained on {need:.0f} mm",
                f"prepare the images again with --image_size={target.image_size} "
                f"--spacing_mm={target.spacing_mm:.4g}",
            )
    for split in splits:
        verify(split)
        for case in builder.as_data_source(split=split):
            known = manifest.get(case["case_id"].decode(), {})
            mask, window = case["lge_mask"], None
            if known:
                corner = float(known["start_row"]), float(known["start_column"])
                step = float(known["step_row"]), float(known["step_column"])
                confidence = float(known["confidence"]) if known.get("confidence") else None
                window = Window(corner, step, size, known["centre_from"], confidence)
            clip = Clip(
                case_id=case["case_id"].decode(),
                patient_id=case["patient_id"].decode(),
                slice_index=int(case["slice_index"]),
                source=f"{source.path} [{split}]",
                note=known.get("note", ""),
                video=case["video"],
                lge_mask=mask if mask.any() else None,
                label=int(case["label"]),
                spacing_mm=None if known.get("spacing_mm") == "" else spacing,
                source_frames=int(known.get("source_frames", frames)),
                window=window,
                split=split,
            )
            yield clip if target is None or fits else _refit(clip, target)


def _warn_of_versions(
    path: Path, cohort: Any, target: Target, manifest: Mapping[str, Mapping[str, str]]
) -> None:
    stored = _geometry(cohort)
    if stored.orientation != target.orientation:
        log.warning(
            f"{path} was prepared by version {stored.orientation} of the orientation rule, the "
            f"run's data by {target.orientation}: images whose axes were exchanged differ; prepare "
            "both by one version"
        )
    sought = any(row["centre_from"] in _SOUGHT for row in manifest.values())
    if stored.locator != target.locator and sought:
        _warn_of_locator(path, stored.locator, target.locator)


def _warn_of_locator(path: Path, placed: int, trained: int) -> None:
    log.warning(
        f"crops of {path} were placed by version {placed} of the locator, those of the run's data "
        f"by {trained}: they may lie a little apart; prepare both by one version"
    )


def _refit(clip: Clip, target: Target) -> Clip | Rejected:
    """A stored clip in another geometry, its grey values kept."""
    height, width = clip.video.shape[1:3]
    one = CineSlice(
        **clip.identity,
        cine=clip.video[..., 0],
        pixel_mm=None if clip.spacing_mm is None else (clip.spacing_mm, clip.spacing_mm),
        lge_mask=clip.lge_mask,
        centre=((height - 1) / 2, (width - 1) / 2),
        label=None if clip.label == UNLABELLED else clip.label,
    )
    stored = dataclasses.replace(target, window=(0.0, 255.0), end_diastole_first=False)
    (result,) = prepare_series([one], stored)
    if isinstance(result, Rejected):
        return result
    kept = {key: getattr(clip, key) for key in ("split", "source_frames", "window")}
    return dataclasses.replace(result, **kept)


def geometry_of(data_config: Any) -> Target:
    """How clips of a training cohort, see ``splits.load_split``, were made."""
    if data_config.name == "cohort":
        from mvo_jax.data.cohort.storage import open_cohort  # imports TFDS

        return _geometry(open_cohort(data_config.dir))
    return Target(
        frames=data_config.frames,
        image_size=data_config.image_size,
        spacing_mm=SIMULATED_FIELD_OF_VIEW_MM / data_config.image_size,
    )


def _geometry(cohort: Any) -> Target:
    settings = cohort.settings
    window = settings["window"]
    return Target(
        **{key: settings[key] for key in ("frames", "image_size", "spacing_mm")},
        window=None if window is None else (window[0], window[1]),
        end_diastole_first=settings["end_diastole_first"],
        orientation=settings.get("orientation", 1),  # cohorts of version 1 do not say it
        locator=settings.get("locator", 0),  # nor those of crops by motion
    )


def clip_batch(video: np.ndarray, clip_shape: tuple[int, ...], *, taken_by: str) -> np.ndarray:
    """Clips as a model takes them, ``[B, T, H, W, 1]``.

    Args:
        video: uint8; the last axis may be left out.
        clip_shape: (T, H, W, 1).
        taken_by: in messages.

    Raises:
        UserError: clips of another type or shape, or none.
    """
    clips = np.asarray(video)
    if clips.ndim == 4:
        clips = clips[..., None]
    if clips.dtype != np.uint8 or clips.shape[1:] != clip_shape or not len(clips):
        frames, height, width, _ = clip_shape
        raise UserError(
            f"video is {clips.dtype} {list(np.shape(video))}",
            f"{taken_by} takes uint8 [B, {frames}, {height}, {width}] with B of 1 or more",
        )
    return clips


def in_batches(
    predict: Callable[[np.ndarray], Mapping[str, np.ndarray]], clips: np.ndarray, size: int
) -> dict[str, Any]:
    """What a model gives for clips ``[B, ...]``, ``size`` at once; 'coarse_mask' may be None."""
    parts = [predict(clips[first : first + size]) for first in range(0, len(clips), size)]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return {"coarse_mask": None, **joined}


def batched(clips: Iterator[Clip], size: int) -> Iterator[list[Clip]]:
    """Clips in lists of ``size``; the last may be shorter."""
    while batch := list(itertools.islice(clips, size)):
        yield batch
