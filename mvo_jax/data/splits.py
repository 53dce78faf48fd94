"""One split of a cohort, checked, in memory or on disk, whatever the cohort it comes from."""

import dataclasses
import hashlib
import itertools
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from mvo_jax.data.labels import MASK_NAMES, UNLABELLED, has_mvo
from mvo_jax.data.phantom.cohort import CohortSpec
from mvo_jax.errors import UserError

_COHORTS = ("phantom", "cohort")


@dataclasses.dataclass(frozen=True)
class Cases:
    """What is small of the cases of one split, ordered by case; always in memory.

    Attributes:
        name: train, validation, test or test_large.
        label: int32 [N], 1 where the case has MVO, 0 where not, -1 where nobody knows.
        case_id: N names, all different.
        patient_id: N names; cases of one patient share one.
        features: float32 [N] by name, known of simulated cases; empty for real data.
    """

    name: str
    label: np.ndarray
    case_id: tuple[str, ...]
    patient_id: tuple[str, ...]
    features: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.case_id)


@dataclasses.dataclass(frozen=True)
class Split(Cases):
    """A split whose images are in memory.

    Attributes:
        video: uint8 [N, T, H, W, 1].
        lge_mask: uint8 [N, H, W], 0 background, 1 infarct, 2 MVO, 3 myocardium.
    """

    video: np.ndarray
    lge_mask: np.ndarray

    @property
    def size_bytes(self) -> int:
        """Memory that the arrays take."""
        arrays = (self.video, self.lge_mask, self.label, *self.features.values())
        return sum(array.nbytes for array in arrays)

    def read(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """'video' and 'lge_mask' of some cases, in the order asked for."""
        return {"video": self.video[indices], "lge_mask": self.lge_mask[indices]}


@dataclasses.dataclass(frozen=True)
class StreamedSplit(Cases):
    """A split whose images stay on disk until they are read.

    Attributes:
        records: random access to the stored cases: ``__getitems__(places)``.
        place: int64 [N], where each case is among the records.
        size_bytes: memory that the images would take.
        content: hash of all cases, images included, as ``content_hash`` gives it.
    """

    records: Any
    place: np.ndarray
    size_bytes: int
    content: str

    def read(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """'video' and 'lge_mask' of some cases, in the order asked for.

        Raises:
            UserError: the files have gone or changed since they were opened.
        """
        try:
            cases = self.records.__getitems__(self.place[np.asarray(indices)].tolist())
        except Exception as error:  # a lost block may surface as any kind, down to TFDS's decoding
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"Split {self.name!r} can no longer be read: {reason}.",
                "Check the disk and the data folder; the same command goes on from the last "
                "checkpoint.",
            ) from error
        return {key: np.stack([case[key] for case in cases]) for key in ("video", "lge_mask")}


AnySplit = Split | StreamedSplit


def content_hash(split: AnySplit) -> str:
    """SHA-256 of all cases of a split, the same whether it is in memory or on disk.

    Reads no file: images on disk were read, and hashed, when the split was opened.
    """
    if isinstance(split, StreamedSplit):
        return split.content
    columns = split.case_id, split.patient_id, split.label.tolist(), split.video, split.lge_mask
    return _joined(list(map(_case_hash, *columns)))


def _case_hash(
    case_id: str, patient_id: str, label: int, video: np.ndarray, lge_mask: np.ndarray
) -> bytes:
    about = f"{case_id}\0{patient_id}\0{label}\0{video.shape}".encode()
    digest = hashlib.sha256(about)
    digest.update(np.ascontiguousarray(video).data)
    digest.update(np.ascontiguousarray(lge_mask).data)
    return digest.digest()


def _joined(cases: Sequence[bytes]) -> str:
    """Of the hashes of the cases, in the order of the split."""
    return hashlib.sha256(b"".join(cases)).hexdigest()


def split_bytes(data_config: Any, name: str) -> int:
    """Memory that the images of a split will take, known before anything is generated or read.

    Args:
        data_config: see ``load_split``.

    Raises:
        UserError: the cohort or the split does not exist, or a value is out of range.
    """
    if data_config.name == "cohort":
        shape, stored, only = _prepared(data_config, name)
        cases = sum(shape.cases[split] for split in stored) if only is None else len(only)
    else:
        shape = phantom_spec(data_config)
        cases = shape.split_size(name).patients * shape.slices_per_patient
    return cases * (shape.frames + 1) * shape.image_size**2


def load_split(data_config: Any, name: str) -> AnySplit:
    """Load a split, generating a simulated cohort where it is missing.

    A split larger than ``device_budget_mb`` stays on disk; only what ``Cases`` holds is in memory.

    Args:
        data_config: has the fields ``name`` (``phantom`` simulated, ``cohort`` prepared from real
            images), ``dir`` (the folder that holds simulated cohorts, or the prepared cohort
            itself; may start with ``~``), ``frames``, ``image_size`` and ``device_budget_mb``
            (10^6 bytes); for the simulated one ``preset``, ``seed``, ``size``,
            ``slices_per_patient`` and ``misregistration_mm``; for a prepared one ``fold`` and
            ``folds``.
        name: train, validation, test, test_large or validation_large.

    Raises:
        UserError: the cohort or split does not exist, a value is out of range, the data folder
            cannot be written, or the stored data are damaged, inconsistent or unlabelled.
    """
    size = split_bytes(data_config, name)
    streamed_bytes = size if size > 1e6 * data_config.device_budget_mb else None
    if data_config.name == "cohort":
        cohort, stored, only = _prepared(data_config, name)
        for part in stored:
            cohort.verify(part)
        return _load(cohort.builder(), stored, name, only, streamed_bytes)

    # Here, because TFDS takes a second to import and most of this package does without it.
    from mvo_jax.data.phantom.storage import ensure_cohort, verify_split

    spec = phantom_spec(data_config).holding(name)
    builder = ensure_cohort(data_config.dir, **dataclasses.asdict(spec))
    verify_split(builder, name)
    return _load(builder, [name], name, None, streamed_bytes)


def _load(
    builder: Any,
    stored: Sequence[str],
    name: str,
    only: frozenset[str] | None,
    streamed_bytes: int | None,
) -> AnySplit:
    """Read and check a split of a TFDS builder with the schema of ``case_features``.

    ``only`` names the cases to take of the stored splits, None takes all; ``streamed_bytes`` is the
    memory of images that stay on disk.
    """
    streamed = streamed_bytes is not None
    records = builder.as_data_source(split="+".join(stored))
    features = tuple(builder.info.features["features"])
    images: dict[int, Any] = {}
    cases: list[_Case] = []
    title = f"Checking split {name!r}"
    shown = streamed and sys.stderr.isatty()
    for place in tqdm(range(len(records)), desc=title, unit="case", disable=not shown):
        case = records[place]
        case_id, patient_id = case["case_id"].decode(), case["patient_id"].decode()
        if only is not None and case_id not in only:
            continue
        label, video, lge_mask, digest = int(case["label"]), case["video"], case["lge_mask"], b""
        check_mask(name, case_id, label, lge_mask)
        if streamed:
            digest = _case_hash(case_id, patient_id, label, video, lge_mask)
        else:
            images[place] = video, lge_mask
        values = [float(case["features"][key]) for key in features]
        cases.append(_Case(case_id, place, patient_id, label, values, digest))
    cases.sort()
    table = np.array([case.features for case in cases], np.float32)
    small: dict[str, Any] = {
        "name": name,
        "label": np.array([case.label for case in cases], np.int32),
        "case_id": tuple(case.case_id for case in cases),
        "patient_id": tuple(case.patient_id for case in cases),
        "features": {key: table[:, i] for i, key in enumerate(features)},
    }
    check_cases(Cases(**small))
    places = [case.place for case in cases]
    if streamed_bytes is None:
        video, lge_mask = map(np.stack, zip(*(images[place] for place in places), strict=True))
        return Split(**small, video=video, lge_mask=lge_mask)
    return StreamedSplit(
        **small,
        records=records,
        place=np.array(places, np.int64),
        size_bytes=streamed_bytes,
        content=_joined([case.digest for case in cases]),
    )


class _Case(NamedTuple):
    """What is small of a case; sorts by its id."""

    case_id: str
    place: int
    patient_id: str
    label: int
    features: list[float]
    digest: bytes


def _inconsistent(name: str, what: str) -> UserError:
    return UserError(
        f"Split {name!r}: {what}.",
        "Rebuild the data of this split: what is stored is not a cohort of this project.",
    )


def check_cases(split: Cases) -> None:
    """Check everything of a split but the images; cases of one class are only warned about.

    Raises:
        UserError: something does not fit; the message names the split and the case.
    """
    label = split.label
    if not len(split):
        raise _inconsistent(split.name, "it has no case")
    if len(set(split.case_id)) < len(split):
        raise _inconsistent(split.name, "two cases have the same case_id")
    known = label != UNLABELLED
    if not known.all():
        raise UserError(
            f"Split {split.name!r} has {int(np.sum(~known))} unlabelled cases, "
            f"{split.case_id[int(np.argmin(known))]} for one: nothing can be learned or scored.",
            "Prepare them with LGE masks, or use them for prediction only.",
        )
    if label.min() == label.max():
        warnings.warn(
            f"All {len(split)} cases of split {split.name!r} have label {label[0]}: "
            "AUC and specificity or recall are undefined there.",
            stacklevel=3,
        )


def check_mask(name: str, case_id: str, label: int, lge_mask: np.ndarray) -> None:
    """Check the values of the mask of a case of the split ``name``, and that its label agrees.

    Raises:
        UserError: they do not fit.
    """
    if lge_mask.max() >= len(MASK_NAMES):
        raise _inconsistent(name, f"lge_mask of case {case_id} has values above 3")
    if has_mvo(lge_mask) != (0 if label == UNLABELLED else label):
        raise _inconsistent(name, f"label {label} of case {case_id} denies its lge_mask")


def check_patients_disjoint(*splits: Cases) -> None:
    """Check that no patient is in two splits.

    Raises:
        UserError: naming the patient and the two splits.
    """
    for first, second in itertools.combinations(splits, 2):
        shared = sorted(set(first.patient_id) & set(second.patient_id))
        if shared:
            raise UserError(
                f"Patient {shared[0]} ({len(shared)} in all) is in split {first.name!r} and in "
                f"split {second.name!r}.",
                "Divide the cases by patient: a patient's cases belong to one split.",
            )


def phantom_spec(data_config: Any) -> CohortSpec:
    """The simulated cohort that a config asks for."""
    if data_config.name not in _COHORTS:
        raise UserError(
            f"data.name is {data_config.name!r}, which is no cohort of this project.",
            f"Set data.name to one of: {', '.join(_COHORTS)}.",
        )
    fields: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(CohortSpec)}
    # The config of a run of an earlier revision lacks keys that were added since.
    return CohortSpec(**{key: getattr(data_config, key, value) for key, value in fields.items()})


def _prepared(data_config: Any, name: str) -> tuple[Any, list[str], frozenset[str] | None]:
    """(Prepared cohort, stored splits that hold a split, its cases among theirs or None for all)"""
    from mvo_jax.data.cohort.folds import split_of_fold  # imports TFDS
    from mvo_jax.data.cohort.storage import UNLABELLED_SPLIT, open_cohort

    cohort = open_cohort(data_config.dir)
    for key in ("frames", "image_size"):
        wanted, there = getattr(data_config, key), getattr(cohort, key)
        if wanted != there:
            raise UserError(
                f"data.{key} is {wanted}, but the cohort {cohort.path} was prepared with {there}.",
                f"Set --config.data.{key}={there}, or prepare the cohort with --{key}={wanted}.",
            )
    folds = getattr(data_config, "folds", 0)  # the config of an earlier run lacks the key
    if folds and name != UNLABELLED_SPLIT:
        only = split_of_fold(cohort, name, fold=data_config.fold, folds=folds)
        stored = [split for split in cohort.cases if split != UNLABELLED_SPLIT]
        return cohort, stored, only
    fold = data_config.fold if cohort.folds else 0
    return cohort, cohort.stored_splits(name, fold), None


def describe(split: AnySplit) -> str:
    """One line on a split: cases, patients, positives, memory and where the images are."""
    streamed = ", read from disk" if isinstance(split, StreamedSplit) else ""
    return (
        f"{split.name}: {len(split.label)} cases of {len(set(split.patient_id))} patients, "
        f"{int(np.sum(split.label))} with MVO, {split.size_bytes / 1e6:.1f} MB{streamed}"
    )


def dataset_line(data: Any) -> str:
    """One line on the cohort that a config names."""
    if data.name == "cohort":
        from mvo_jax.data.cohort.storage import open_cohort  # imports TFDS

        folds = getattr(data, "folds", 0) or open_cohort(data.dir).folds
        fold = f", test fold {data.fold} of 0 to {folds - 1}" if folds else ""
        return f"prepared cohort {Path(data.dir).name!r}{fold}"
    return f"simulated cohort, preset {data.preset!r}, seed {data.seed}, size {data.size!r}"
