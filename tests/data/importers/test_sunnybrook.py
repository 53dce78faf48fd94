"""Real cine with expert contours, read, cropped and resampled: what is in the files stays there."""

import csv
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from mvo_jax.data.cohort.heart import heart_region
from mvo_jax.data.cohort.partition import Partition
from mvo_jax.data.cohort.prepare import prepare, read_rejected
from mvo_jax.data.cohort.series import prepare_series
from mvo_jax.data.importers import sunnybrook
from mvo_jax.data.importers.cine import Options, Series, quiet_readers
from mvo_jax.data.importers.dicom_stack import read_stack
from mvo_jax.data.importers.formats import choose_importer, load_series
from mvo_jax.data.importers.npz import NPZ
from mvo_jax.data.slices import CineSlice, Clip, Target, Window

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = Path(os.environ.get("MVO_JAX_SAMPLES", ROOT.parent / "shared" / "samples"))
SOURCE = SAMPLES / "sunnybrook"
STACK = SOURCE / "short_axis_cine.npz"
DICOM_PATIENTS = ("SCD0000101", "SCD0000301")
PATIENTS = ("SCD0000101", "SCD0000201", "SCD0000301")
SPACING_MM = 10.0  # of neighbouring slices; EF of several slices is a sum of areas

pytestmark = pytest.mark.skipif(
    not STACK.is_file(), reason=f"the Sunnybrook samples are not at {SAMPLES} (MVO_JAX_SAMPLES)"
)


@pytest.fixture(scope="module")
def read() -> Mapping[str, list[CineSlice]]:
    """Patient -> slices of the DICOM files, with contours."""
    importer = choose_importer(SOURCE)
    assert importer.name == "sunnybrook"
    with quiet_readers():
        series = list(importer.find(SOURCE, Options()))
        return {one.name: load_series(importer.load, one, Options()) for one in series}


@pytest.fixture(scope="module")
def stacks(tmp_path_factory) -> Mapping[str, list[CineSlice]]:
    """Patient -> all slices of ``short_axis_cine.npz``, 112x112 pixels about the ventricle."""
    folder = tmp_path_factory.mktemp("stacks")
    content = np.load(STACK)
    out = {}
    for patient in PATIENTS:
        of = np.flatnonzero(content["patient"] == patient)
        path = folder / f"{patient}.npz"
        np.savez(
            path,
            cine=content["cine"][of],
            anatomy=content["label"][of],
            pixel_mm=content["pixel_mm"][of[0]],
            patient_id=patient,
        )
        out[patient] = load_series(NPZ.load, Series(patient, path), Options())
    return out


def without_contours(slices: Sequence[CineSlice]) -> list[CineSlice]:
    return [dataclasses.replace(one, anatomy={}) for one in slices]


def prepared(slices: Sequence[CineSlice]) -> list[Clip]:
    out = prepare_series(slices, Target())
    assert all(isinstance(one, Clip) for one in out)
    return [one for one in out if isinstance(one, Clip)]


def where(clip: Clip) -> Window:
    assert clip.window is not None
    return clip.window


def outside(one: CineSlice, result: Clip) -> float:
    """Share of the pixels within the epicardium, over all annotated frames, not in the crop."""
    region = heart_region(one)
    assert region is not None
    at = where(result).to_crop(np.argwhere(region))
    return float(((at < -0.5) | (at > where(result).size - 0.5)).any(axis=1).mean())


def ejection_fraction(areas: Mapping[int, float]) -> float:
    """Per cent, of the largest and the smallest area by frame."""
    return 100 * (1 - min(areas.values()) / max(areas.values()))


def total(of_slices: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Sum over the slices, of the frames that are annotated in all of them."""
    frames = set.intersection(*(set(one) for one in of_slices))
    assert len(frames) >= 2
    return {frame: sum(one[frame] for one in of_slices) for frame in frames}


def polygon_area(points: np.ndarray) -> float:
    """By the trapezoid rule, so that no rasterisation is in it."""
    following = np.roll(points, -1, axis=0)
    return abs(float(np.sum(points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]))) / 2


def test_the_folder_splits_into_slices_and_phases(read):
    slices = read["SCD0000101"]
    assert [one.case_id for one in slices] == [f"SCD0000101_s{z:02d}" for z in range(3)]
    assert all(one.cine.shape == (20, 256, 256) for one in slices)
    positions = [one.position_mm for one in slices]
    # SliceLocation steps by 6.7 mm; the positions along the normal do by 10.
    assert np.diff(positions) == pytest.approx([SPACING_MM] * 2, abs=0.01)
    assert len({one.patient_id for one in slices}) == 1
    assert [one.cine.shape for one in read["SCD0000301"]] == [(20, 256, 256)]


@pytest.mark.parametrize("patient", DICOM_PATIENTS)
def test_phases_are_in_time_order_and_none_is_lost(patient):
    folder = SOURCE / "dicom" / patient
    with quiet_readers():
        stack = [one.images for one in read_stack(Series(patient, folder), Options()).slices]
        times = {p: float(pydicom.dcmread(p).TriggerTime) for p in folder.glob("*.dcm")}
    for one in stack:
        mine = [times[image.path] for image in one]
        assert len(mine) == 20
        assert mine == sorted(set(mine))
    assert {image.path for one in stack for image in one} == set(times)


def test_pixels_are_those_of_the_files(read):
    slices = read["SCD0000101"]
    with quiet_readers():
        folder = SOURCE / "dicom" / "SCD0000101"
        stack = [one.images for one in read_stack(Series("a", folder), Options()).slices]
        for one, images in zip(slices, stack, strict=True):
            for frame, image in zip(one.cine, images, strict=True):
                stored = pydicom.dcmread(image.path).pixel_array
                assert np.array_equal(frame, image.shown(stored))


@pytest.mark.parametrize("patient", DICOM_PATIENTS)
def test_ejection_fraction_of_the_contours(read, patient):
    """Polygons in the original pixels against masks of 2 mm in the crop: within 5 points."""
    slices = read[patient]
    with quiet_readers():
        folder = SOURCE / "dicom" / patient
        stack = [one.images for one in read_stack(Series(patient, folder), Options()).slices]
    names = {"SCD0000101": "SC-HF-I-1", "SCD0000301": "SC-HF-I-4"}
    contours = sunnybrook.read_contours(SOURCE / "contours" / names[patient])
    original = []
    for one in stack:
        drawn = {t: contours.get(int(image.path.stem), {}) for t, image in enumerate(one)}
        original.append({t: polygon_area(d["i"]) for t, d in drawn.items() if "i" in d})
    mine = [
        {t: float((mask == 1).sum()) for t, mask in one.anatomy.items()} for one in prepared(slices)
    ]
    before, after = ejection_fraction(total(original)), ejection_fraction(total(mine))
    print(f"{patient}: EF {before:.1f} % in the files, {after:.1f} % prepared")
    assert 5 < before < 60  # heart failure after infarction
    assert after == pytest.approx(before, abs=1)  # points; 0.4 seen, 5 promised


@pytest.mark.parametrize("patient", PATIENTS)
def test_ejection_fraction_of_whole_ventricles(stacks, patient):
    """All slices; a slice that is contoured at end-diastole only is empty at end-systole."""

    def volumes(of: Sequence[CineSlice] | Sequence[Clip]) -> tuple[float, float]:
        found = [[int((m == 1).sum()) for m in one.anatomy.values()] for one in of if one.anatomy]
        return (
            float(sum(max(areas) for areas in found)),
            float(sum(min(areas) for areas in found if len(areas) > 1)),
        )

    (large, small), (large2, small2) = volumes(stacks[patient]), volumes(prepared(stacks[patient]))
    before, after = 100 * (1 - small / large), 100 * (1 - small2 / large2)
    print(f"{patient}: EF {before:.1f} % in the archive, {after:.1f} % prepared")
    assert 5 < before < 70
    assert after == pytest.approx(before, abs=1)  # points; 0.4 seen, 5 promised


@pytest.mark.parametrize("which", ["dicom", "archive"])
def test_the_whole_epicardium_is_in_every_crop(read, stacks, which):
    for slices in (read if which == "dicom" else stacks).values():
        for one, result in zip(slices, prepared(slices), strict=True):
            if one.anatomy:
                assert result.centre_from == "contours"
                assert outside(one, result) == 0
                # The masks that went through the same window agree: nothing is cut off there.
                for mask in result.anatomy.values():
                    assert not mask[[0, -1]].any()
                    assert not mask[:, [0, -1]].any()


def shifted(one: CineSlice, rows: int, columns: int) -> CineSlice:
    """The archive's images have the ventricle in the middle; whole images do not."""

    def move(image: np.ndarray) -> np.ndarray:
        widths = [(0, 0)] * (image.ndim - 2) + [
            (40 + rows, 40 - rows),
            (40 + columns, 40 - columns),
        ]
        return np.pad(image, widths)

    anatomy = {t: move(mask) for t, mask in one.anatomy.items()}
    return dataclasses.replace(one, cine=move(one.cine), anatomy=anatomy)


@pytest.mark.parametrize("together", [True, False], ids=["the stack", "slice by slice"])
def test_the_locator_places_the_crop_without_contours(read, stacks, together):
    """The epicardium is inside, and the centre within what a crop of 128 mm forgives.

    The weights that ship have seen these patients: docs/locator.md has figures of those that have
    not. This holds reading, locating and cropping together.
    """
    cases = list(read.values())
    for slices in stacks.values():
        cases += [[shifted(s, *by) for s in slices] for by in ((-12, 4), (12, 12))]
    apart, lost = [], []
    for slices in cases:
        bare = without_contours(slices)
        results = prepared(bare) if together else [prepared([one])[0] for one in bare]
        for one, result in zip(slices, results, strict=True):
            region = heart_region(one)
            if region is None:
                continue
            assert result.centre_from == "locator"
            assert result.confidence is not None
            assert one.pixel_mm is not None
            corners = np.argwhere(region)
            middle = (corners.min(axis=0) + corners.max(axis=0)) / 2
            centre = where(result).to_source(np.full(2, (where(result).size - 1) / 2))
            apart.append(float(np.hypot(*((centre - middle) * one.pixel_mm))))
            lost.append(outside(one, result))
    print(f"{len(apart)} slices: {np.median(apart):.1f} mm, at most {max(apart):.1f} mm off")
    assert max(lost) == 0
    assert np.median(apart) < 5
    assert max(apart) < 12


def test_prepared_as_a_cohort(tmp_path):
    cohort = prepare(
        SOURCE,
        tmp_path / "out",
        options=Options(),
        target=Target(),
        partition=Partition(),
        jobs=1,
        strict=True,
    )
    assert dict(cohort.cases) == {"unlabelled": 4}
    assert read_rejected(cohort.path) == []
    with (cohort.path / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case_id"] for row in rows] == [
        "SCD0000101_s00", "SCD0000101_s01", "SCD0000101_s02", "SCD0000301"
    ]  # fmt: skip
    assert {row["centre_from"] for row in rows} == {"contours"}
    assert {row["source_frames"] for row in rows} == {"20"}
    builder: Any = cohort.builder()
    cases = list(builder.as_data_source(split="unlabelled"))
    assert all(case["video"].shape == (30, 64, 64, 1) for case in cases)
    assert len({case["patient_id"] for case in cases}) == 2
