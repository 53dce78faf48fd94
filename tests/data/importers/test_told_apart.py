"""Spellings of names, and what headers say of phases, that were once taken silently."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from mvo_jax.data.checks import Inspection
from mvo_jax.data.cohort.partition import Partition
from mvo_jax.data.cohort.prepare import prepare
from mvo_jax.data.cohort.series import read_series
from mvo_jax.data.importers.cine import Options
from mvo_jax.data.importers.formats import choose_importer, load_series
from mvo_jax.data.importers.table import read_table
from mvo_jax.data.names import spelt_alike
from mvo_jax.data.slices import CineSlice, Clip, Target
from mvo_jax.errors import UserError
from tests.data.importers import writers

FRAMES = 12
STILL = np.random.default_rng(0).integers(1, 900, (1, 2, 16, 16))
CINE = (STILL + np.random.default_rng(1).integers(0, 60, (FRAMES, 2, 16, 16))).astype(np.uint16)
COMPOSED, DECOMPOSED = "Zo\u00eb", "Zoe\u0308"  # equal on the screen


def read(source: Path, **options) -> list[CineSlice]:
    importer, given = choose_importer(source), Options(**options)
    found = importer.find(source, given)
    return [one for series in found for one in load_series(importer.load, series, given)]


def test_patients_that_differ_in_capital_letters_are_named(cine, mask, tmp_path, caplog):
    source = tmp_path / "images"
    writers.write_nifti(source / "P1", "P1", cine, mask)
    writers.write_nifti(source / "p1", "p1", 255 - cine, mask)
    target = Target(frames=16, image_size=64, spacing_mm=2.0)
    with caplog.at_level(logging.WARNING):
        partition = Partition(fractions=(1.0, 0.0, 0.0))
        prepare(
            source, tmp_path / "out", options=Options(), target=target, partition=partition, jobs=1
        )
    assert "names of patients differ in capital letters" in caplog.text
    assert "'P1' and 'p1'" in caplog.text
    inspection, importer = Inspection(), choose_importer(source)
    for series in importer.find(source, Options()):
        for clip in read_series(importer.load, series, Options(), target):
            assert isinstance(clip, Clip)
            inspection.add(clip)
    (found,) = [one for one in inspection.findings() if one.check == "patients spelt alike"]
    assert found.cases == ("P1 (source) and p1 (source)",)


def test_names_that_are_spelt_alike():
    names = ["P1", "p1 ", "P2", COMPOSED, DECOMPOSED, "P1"]
    assert spelt_alike(names) == [["P1", "p1 "], sorted([COMPOSED, DECOMPOSED])]


@pytest.mark.parametrize("form", ["nifti", "dicom", "png"])
def test_the_two_forms_of_an_accent_are_one_name(form, mask, tmp_path):
    """As where the cine is from a Mac and mask and table are from elsewhere."""
    clip = np.random.default_rng(2).integers(0, 255, (FRAMES, *mask.shape)).astype(np.uint8)
    write = {"nifti": writers.write_nifti, "dicom": writers.write_dicom, "png": writers.write_png}
    write[form](tmp_path, COMPOSED, clip, mask)
    for path in [*tmp_path.glob("*"), *tmp_path.glob("img_dir/*")]:
        if "_lge_mask" not in path.name:
            path.rename(path.with_name(path.name.replace(COMPOSED, DECOMPOSED)))
    table = tmp_path / "cases.csv"
    table.write_text(f"case_id,label\n{DECOMPOSED},1\n")
    (one,) = read(tmp_path, table=read_table(table))
    assert one.lge_mask is not None
    assert (one.lge_mask == 2).any()
    assert one.case_id == COMPOSED


def test_a_path_in_a_table_in_the_other_form(cine, mask, tmp_path):
    writers.write_nifti(tmp_path, COMPOSED, cine, mask)
    table = tmp_path / "cases.csv"
    table.write_text(f"case_id,cine\nA,{DECOMPOSED}_cine.nii.gz\n")
    (one,) = read(tmp_path, table=read_table(table))
    assert np.array_equal(one.cine, cine)


def clock(seconds):
    return lambda t, z: f"1000{seconds(t):02d}"


def test_times_of_whole_seconds_contradict_the_numbers(tmp_path):
    """Seven images in one second and five in the next say that the numbers run backwards."""
    tags: Any = {"TriggerTime": None, "AcquisitionTime": clock(lambda t: 10 + t // 7)}
    writers.write_series(tmp_path / "A17", CINE, **tags)
    assert np.array_equal(read(tmp_path)[0].cine, CINE[:, 0])
    numbers: Any = {"InstanceNumber": lambda t, z: 50 - t}
    writers.write_series(tmp_path / "A17", CINE, **tags, **numbers)
    with pytest.raises(UserError, match="AcquisitionTime contradicts InstanceNumber"):
        read(tmp_path)
    scanned = {"AcquisitionTime": clock(lambda t: 10 + 4 * (t % 3))}  # one after another
    writers.write_series(tmp_path / "A17", CINE, **tags | scanned)
    one, _ = read(tmp_path)
    assert np.array_equal(one.cine, CINE[:, 0])
    assert "which is not that of AcquisitionTime" in one.note


@pytest.mark.parametrize("nominal", [0.0, None])
def test_actual_trigger_delays_where_the_nominal_ones_are_equal(nominal, tmp_path):
    cine = CINE.astype(np.uint16)
    path = writers.write_enhanced(tmp_path, "A17", cine) / "multi.dcm"
    data = pydicom.dcmread(path)
    for n, group in enumerate(data.PerFrameFunctionalGroupsSequence):
        heart = group.CardiacSynchronizationSequence[0]
        heart.ActualCardiacTriggerDelayTime = 30.0 * (FRAMES - n // 2)
        del group.FrameContentSequence[0].TemporalPositionIndex
        if nominal is None:
            del heart.NominalCardiacTriggerDelayTime
        else:
            heart.NominalCardiacTriggerDelayTime = nominal
    data.save_as(path)
    shown = sorted(read(tmp_path), key=lambda one: -(one.position_mm or 0.0))
    assert np.array_equal(shown[0].cine, CINE[::-1, 0])


@pytest.mark.parametrize("lost", ["empty", "link"])
@pytest.mark.parametrize("name", ["00_099.dcm", "IM0099"])
def test_an_empty_file_or_lost_link(lost, name, tmp_path):
    """An image by its name is damage; what has no name of an image is told."""
    folder = tmp_path / "A17"
    writers.write_series(folder, CINE)
    if lost == "empty":
        (folder / name).touch()
    else:
        (folder / name).symlink_to(folder / "nowhere")
    if name.endswith(".dcm"):
        with pytest.raises(UserError, match=f"{name} (is empty|does not exist)"):
            read(tmp_path)
    else:
        assert f"may be images: {name}" in read(tmp_path)[0].note


@pytest.mark.parametrize("acquisition", [None, 2])
def test_phase_maps_that_no_header_calls_so(acquisition, tmp_path):
    phases = np.random.default_rng(3).integers(0, 4096, CINE.shape).astype(np.uint16)
    writers.write_series(tmp_path / "A17", CINE, AcquisitionNumber=acquisition and 1)
    writers.write_series(
        tmp_path / "A17", phases, name="p", AcquisitionNumber=acquisition,
        InstanceNumber=lambda t, z: 500 + t + FRAMES * z, CardiacNumberOfImages=FRAMES,
    )  # fmt: skip
    with pytest.raises(UserError, match="2 sets of images show it, and they do not look alike"):
        read(tmp_path)
    (one, _) = read(tmp_path, repeats="first")
    assert np.array_equal(one.cine, CINE[:, 0])


@pytest.mark.parametrize("tag", ["AcquisitionTime", "InstanceNumber", None])
@pytest.mark.parametrize("name", ["a", "z"])  # of the files, which says nothing
def test_of_two_series_of_one_number_file_names_do_not_choose_the_last(tag, name, tmp_path):
    for cine, one, uid, start in (
        (CINE, "i", "1.2.5", 100_100),
        (CINE[:, ::-1], name, "1.2.4", 100_500),
    ):
        tags: dict[str, Any] = {}
        if tag is not None:
            tags[tag] = lambda t, _, start=start: str(start + t)
        writers.write_series(tmp_path / "A", cine, name=one, SeriesInstanceUID=uid, **tags)
    if tag is None:
        with pytest.raises(UserError, match="says which was first"):
            read(tmp_path, repeats="last")
    else:
        assert np.array_equal(read(tmp_path, repeats="last")[0].cine, CINE[:, 1])
