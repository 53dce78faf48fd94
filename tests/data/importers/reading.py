"""Sources as the package reads them, and what it says of them. Only tests use this."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from mvo_jax.data.cohort.partition import Partition
from mvo_jax.data.cohort.prepare import prepare
from mvo_jax.data.cohort.storage import CohortFolder
from mvo_jax.data.importers.cine import Options
from mvo_jax.data.importers.formats import choose_importer, load_series
from mvo_jax.data.slices import CineSlice, Target
from mvo_jax.errors import UserError

_AT = np.hypot(*(np.mgrid[:32, :32] - 15.5))
_RADIUS = 7 + 2 * np.cos(2 * np.pi * np.arange(10) / 10)
_NOISE = np.random.default_rng(0).integers(0, 50, (10, 32, 32))
# Ten phases of a disc that beats, 32x32 pixels of 2 mm; its myocardium, and that with MVO.
BEAT = np.clip(200 * (_RADIUS[:, None, None] > _AT) + _NOISE, 0, 255).astype(np.uint8)
RING = np.where((_AT > 6) & (_AT < 10), 3, 0).astype(np.uint8)
MVO_RING = np.where((RING == 3) & (np.arange(32) > 20), 2, RING).astype(np.uint8)
GRID = np.diag([-2.0, -2.0, 8.0, 1.0])  # of ``writers.write_series``, as NIfTI counts


def images(slices: int = 2, frames: int = 12, seed: int = 0) -> np.ndarray:
    """``[T, Z, 16, 16]`` below 240, slices that differ more than their phases."""
    random = np.random.default_rng(seed)
    still = random.integers(1, 200, (1, slices, 16, 16))
    return (still + random.integers(0, 40, (frames, slices, 16, 16))).astype(np.uint16)


def save(path: Path, values: np.ndarray, affine: np.ndarray = GRID) -> None:
    """NIfTI of ``[Z, H, W]`` or ``[T, Z, H, W]``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values.T, affine), path)


def change(
    paths: Iterable[Path], edit: Callable[[Any], object] = lambda image: None, **tags: Any
) -> None:
    """Set tags of DICOM files, None takes one out; ``edit`` may do more."""
    for path in paths:
        image = pydicom.dcmread(path)
        edit(image)
        for name, value in tags.items():
            if value is None:
                delattr(image, name)
            else:
                setattr(image, name, value)
        image.save_as(path)


def read(source: Path, **options: Any) -> list[CineSlice]:
    """The slices of all series."""
    importer, given = choose_importer(source), Options(**options)
    found = importer.find(source, given)
    return [one for series in found for one in load_series(importer.load, series, given)]


def note(source: Path) -> str:
    return read(source)[0].note


def refusal(source: Path, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        read(source, **options)
    assert caught.value.remedy
    return caught.value


def check_cine(slices: Sequence[CineSlice], cine: np.ndarray) -> None:
    assert np.array_equal(np.stack([one.cine for one in slices], axis=1), cine)


def check_masks(slices: Sequence[CineSlice], masks: np.ndarray) -> None:
    for one, mask in zip(slices, masks, strict=True):
        assert one.lge_mask is not None
        assert np.array_equal(one.lge_mask, mask)


def prepared(
    source: Path, out: Path, target: Target, *, format: str = "auto", jobs: int = 1,
    strict: bool = False, **options: Any,
) -> CohortFolder:  # fmt: skip
    """A cohort with no split but ``train``."""
    return prepare(
        source, out, format=format, options=Options(**options), target=target, jobs=jobs,
        strict=strict, partition=Partition(fractions=(1.0, 0.0, 0.0)),
    )  # fmt: skip
