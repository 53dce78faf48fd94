"""Spellings of names, and what headers say of phases, that were once taken silently."""

import logging
from typing import Any

import numpy as np
import pydicom
import pytest

from mvo_jax.data.checks import Inspection
from mvo_jax.data.cohort.series import read_series
from mvo_jax.data.importers.cine import Options
from mvo_jax.data.importers.formats import choose_importer
from mvo_jax.data.importers.table import read_table
from mvo_jax.data.names import spelt_alike
from mvo_jax.data.slices import Clip, Target
from tests.data.importers import writers
from tests.data.importers.reading import images, note, prepared, read, refusal

FRAMES = 12
CINE = images()
COMPOSED, DECOMPOSED = "Zo\u00eb", "Zoe\u0308"  # equal on the screen


def test_patients_that_differ_in_capital_letters_are_named(cine, mask, tmp_path, caplog):
    source = tmp_path / "images"
    writers.write_nifti(source / "P1", "P1", cine, mask)
    writers.write_nifti(source / "p1", "p1", 255 - cine, mask)
    target = Target(frames=16, image_size=64, spacing_mm=2.0)
    with caplog.at_level(logging.WARNING):
        prepared(source, tmp_path / "out", target)
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


@pytest.mark.parametrize("nominal", [0.0, None])
def test_actual_trigger_delays_where_the_nominal_ones_are_equal(nominal, tmp_path):
    path = writers.write_enhanced(tmp_path, "A17", CINE) / "multi.dcm"
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
        said = {"empty": f"{name} is empty", "link": f"{name} does not exist"}
        assert said[lost] in refusal(tmp_path).cause
    else:
        assert f"may be images: {name}" in note(tmp_path)


@pytest.mark.parametrize("acquisition", [None, 2])
def test_phase_maps_that_no_header_calls_so(acquisition, tmp_path):
    phases = np.random.default_rng(3).integers(0, 4096, CINE.shape).astype(np.uint16)
    writers.write_series(tmp_path / "A17", CINE, AcquisitionNumber=acquisition and 1)
    writers.write_series(
        tmp_path / "A17", phases, name="p", AcquisitionNumber=acquisition,
        InstanceNumber=lambda t, z: 500 + t + FRAMES * z, CardiacNumberOfImages=FRAMES,
    )  # fmt: skip
    said = "2 sets of images show it, and they do not look alike"
    assert said in refusal(tmp_path).cause
    (one, _) = read(tmp_path, repeats="first")
    assert np.array_equal(one.cine, CINE[:, 0])


@pytest.mark.parametrize("tag", ["AcquisitionTime", "InstanceNumber", None])
@pytest.mark.parametrize("name", ["a", "z"])  # of the files, which says nothing
def test_of_two_series_of_one_number_file_names_do_not_choose_the_last(tag, name, tmp_path):
    both = (CINE, "i", "1.2.5", 100_100), (CINE[:, ::-1], name, "1.2.4", 100_500)
    for cine, one, uid, start in both:
        tags: dict[str, Any] = {}
        if tag is not None:
            tags[tag] = lambda t, _, start=start: str(start + t)
        writers.write_series(tmp_path / "A", cine, name=one, SeriesInstanceUID=uid, **tags)
    if tag is None:
        assert "says which was first" in refusal(tmp_path, repeats="last").cause
    else:
        assert np.array_equal(read(tmp_path, repeats="last")[0].cine, CINE[:, 1])
