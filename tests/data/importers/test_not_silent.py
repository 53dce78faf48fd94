"""What once changed or lost pixels, masks or patients without a word."""

import logging
import shutil
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import RLELossless

from mvo_jax.data.cohort.series import read_series
from mvo_jax.data.importers.cine import Options
from mvo_jax.data.importers.formats import choose_importer
from mvo_jax.data.slices import Clip, Rejected, Target
from tests.data.importers import writers
from tests.data.importers.reading import (
    GRID,
    change,
    check_cine,
    images,
    note,
    read,
    refusal,
    save,
)

CINE, HEART = images(), images(3)


def test_the_uid_of_a_copy_with_other_pixels(tmp_path):
    """A filtered series that kept the UIDs is no copy: nothing says which of the two is meant."""
    folder = tmp_path / "A17"
    for path in writers.write_series(folder, CINE):
        shutil.copy(path, folder / f"again_{path.name}")
    check_cine(read(tmp_path), CINE)
    change(
        folder.glob("again_*"),
        lambda image: writers.set_pixels(image, image.pixel_array[::-1].copy()),
    )
    assert "nothing tells the images apart" in refusal(tmp_path).cause


def second_export(folder: Path, cine: np.ndarray) -> None:
    """With UIDs, numbers and a name of its own."""
    writers.write_series(
        folder, cine, name="b", StudyInstanceUID="1.9", FrameOfReferenceUID="1.9.1",
        SeriesInstanceUID="1.9.5", SeriesNumber=905, SeriesDescription="cine_sax again",
        InstanceNumber=lambda t, z: 900 + t + 100 * z,
    )  # fmt: skip


def test_a_copy_of_a_series_under_other_uids_is_told(tmp_path):
    writers.write_series(tmp_path / "A17", HEART, FrameOfReferenceUID="1.2.1")
    second_export(tmp_path / "A17", HEART[:, :2])  # of slices 0 and 1 alone
    slices = read(tmp_path)
    check_cine(slices, HEART)
    assert "series 905 'cine_sax again': 24 images left out, copies of series 5" in slices[0].note
    assert slices[0].images["copies"] == 24


def test_a_series_of_which_one_image_differs_is_no_copy(tmp_path):
    writers.write_series(tmp_path / "A17", CINE, FrameOfReferenceUID="1.2.1")
    other = CINE.copy()
    other[7, 1, 3, 3] += 1
    second_export(tmp_path / "A17", other)
    assert "2 examinations" in refusal(tmp_path).cause


def padding(files: list[Path], low: int, high: int) -> None:
    def edit(image: Any) -> None:
        for tag, value in ((0x00280120, low), (0x00280121, high)):
            image.add_new(tag, "SS" if low < 0 else "US", value)

    change(files, edit)


@pytest.mark.parametrize("stored", [np.uint16, np.int16])
def test_padding_moves_no_grey_window(stored, tmp_path):
    """Values of PixelPaddingValue to PixelPaddingRangeLimit are as dark as the darkest pixel."""
    padded = (CINE + 300).astype(stored)
    padded[:, :, :3], padded[:, :, -1] = 60_000 if stored is np.uint16 else -2000, 20
    low = int(padded[0, 0, 0, 0])
    padding(writers.write_series(tmp_path / "A17", padded), low, low + 100)
    first, _ = read(tmp_path)
    assert first.cine.min() == 20  # outside the range that is padding
    assert (first.cine[:, :3] == 20).all()
    assert np.array_equal(first.cine[:, 3:-1], CINE[:, 0, 3:-1] + 300)


def test_nothing_but_padding_is_refused(tmp_path):
    padding(writers.write_series(tmp_path / "A17", CINE), 0, 60_000)
    assert "every pixel of its slice is padding" in refusal(tmp_path).cause


def test_compression_with_loss_is_told(tmp_path):
    files = writers.write_series(tmp_path / "A17", CINE)
    change(
        files[:5], LossyImageCompression="01", LossyImageCompressionRatio=[2.5, 12],
        LossyImageCompressionMethod=["ISO_10918_1", "ISO_15444_1"],
    )  # fmt: skip
    change(files[-1:], LossyImageCompression="01")
    change(files[5:-1], LossyImageCompression="00")
    told, lossy = note(tmp_path), "of 24 images were compressed with loss"
    assert f"5 {lossy} (ISO_10918_1, ISO_15444_1, 2.5:1, 12.0:1)" in told
    assert f"1 {lossy} (how is not said)" in told


@pytest.mark.parametrize("rows", [1, -1])
@pytest.mark.parametrize("columns", [1, -1])
def test_mirrored_rows_number_the_slices_as_nifti_of_the_volume_does(rows, columns, tmp_path):
    writers.write_series(tmp_path / "dicom" / "A17", HEART, turn=(columns, 0, 0, 0, rows, 0))
    affine = np.diag([-2.0 * columns, -2.0 * rows, 8.0 * rows * columns, 1.0])
    save(tmp_path / "nifti" / "A17_cine.nii", HEART, affine)
    dicom, nifti = ([one.cine for one in read(tmp_path / form)] for form in ("dicom", "nifti"))
    assert np.array_equal(dicom, nifti)


def test_a_copy_that_is_compressed(tmp_path):
    folder = tmp_path / "A17"
    for path in writers.write_series(folder, CINE):
        data = pydicom.dcmread(path)
        data.compress(RLELossless, generate_instance_uid=False)
        data.save_as(folder / f"again_{path.name}")
    slices = read(tmp_path)
    check_cine(slices, CINE)
    assert slices[0].images["copies"] == CINE.shape[0] * CINE.shape[1]


def test_values_that_are_larger_than_bits_stored(tmp_path):
    """Cut to their low bits they wrap around; of an overlay the bits are meant to go."""
    paths = writers.write_series(tmp_path / "A17", CINE | 0x1000)
    change(paths, BitsStored=12, HighBit=11)
    assert "12 bits (BitsStored) can hold" in refusal(tmp_path).cause
    change(paths, lambda image: image.add_new(0x60000102, "US", 12))
    check_cine(read(tmp_path), CINE)


@pytest.mark.parametrize("name", ["Anonymous^Patient", "ANON_ID", "REDACTED", "null"])
def test_more_names_of_nobody(name, tmp_path):
    for patient, study in (("A17", "1.2.1"), ("B02", "1.2.2")):
        tags = {"PatientID": name, "StudyInstanceUID": study}
        writers.write_series(tmp_path / patient, CINE[:, :1], **tags)
    assert [one.patient_id for one in read(tmp_path)] == ["A17", "B02"]


@pytest.mark.parametrize("form", ["nifti", "dicom"])
@pytest.mark.parametrize("suffix", ["nhdr", "seg.nhdr", "mha", "nii.bz2", "tif"])
def test_a_mask_or_cine_in_a_form_that_is_not_read(form, suffix, tmp_path):
    if form == "nifti":
        writers.write_nifti(tmp_path, "A17", CINE, None)
    else:
        writers.write_series(tmp_path / "A17", CINE)
    (tmp_path / f"A17_lge_mask.{suffix}").touch()
    cause = refusal(tmp_path).cause
    assert "like a mask, in a form that is not read" in cause
    assert f"A17_lge_mask.{suffix}" in cause
    # A picture beside the mask that is read is none of our business.
    save(tmp_path / "A17_lge_mask.nii.gz", np.full((2, 16, 16), 3, np.uint8))
    assert len(list(choose_importer(tmp_path).find(tmp_path, Options()))) == 1
    (tmp_path / "B02_cine.mha").touch()
    _, other = choose_importer(tmp_path).find(tmp_path, Options())
    assert "like a cine, in a form that is not read" in other.detail["refused"][0]


def test_a_cine_of_slanting_axes(tmp_path):
    affine = GRID.copy()
    affine[0, 1] = 1.0
    save(tmp_path / "A17_cine.nii.gz", CINE, affine)
    assert "not at right angles" in refusal(tmp_path).cause


def test_frames_of_8_and_16_bits(tmp_path):
    for t, frame in enumerate(CINE[:, 0]):
        stored = frame * 257 if t % 2 else frame.astype(np.uint8)
        Image.fromarray(stored).save(tmp_path / f"A17_{t:02d}_input.png")
    assert "8 bits and 16 bits" in refusal(tmp_path).cause


def test_files_of_another_format_are_told(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    writers.write_nifti(tmp_path, "A17", CINE, None)
    read(tmp_path)
    assert not caplog.messages
    writers.write_npz(tmp_path, "B02", CINE[:, 0], None)
    (tmp_path / "C03.zip").touch()
    read(tmp_path)
    assert "formats npz, which are not read" in caplog.messages[0]
    assert "1 archives" in caplog.messages[1]


def write_mask(path: Path, mvo_at: int) -> None:
    mask = np.full((3, 16, 16), 3, np.uint8)
    mask[mvo_at, 4:6, 4:6] = 2
    save(path, mask)


def test_the_drawing_of_a_refused_slice_stays_with_it(tmp_path):
    """Left to the slices that remain it would lie in the middle of two and label both."""
    writers.write_series(tmp_path / "A17", HEART)[12 + 5].unlink()
    write_mask(tmp_path / "A17_lge_mask.nii.gz", mvo_at=1)
    low, refused, high = read(tmp_path)
    assert refused.refusal is not None
    assert [low.has_mvo, high.has_mvo] == [False, False]


def test_a_drawing_beside_a_gap_of_the_cine(tmp_path):
    """Slices at 0, 8 and 40 mm; the MVO at 16 mm is that of none of them."""
    places = [[0, 0, 0], [0, 0, 8], [0, 0, 40]]
    writers.write_series(tmp_path / "A17", HEART, ImagePositionPatient=lambda t, z: places[z])
    write_mask(tmp_path / "A17_lge_mask.nii.gz", mvo_at=2)
    slices = read(tmp_path)
    assert not any(one.has_mvo for one in slices)
    assert "slice 2 of 3 has MVO and lies 8.0 mm" in slices[0].unplaced[0].cause


@pytest.mark.parametrize("name", ["", "ANON"])
def test_folders_of_nobody_that_state_one_examination(name, tmp_path):
    """As of an anonymiser that gives everybody the same UIDs: nothing tells two patients apart."""
    for patient, at in (("A17", 0.0), ("B02", 60.0)):
        writers.write_series(tmp_path / patient, CINE, PatientID=name, origin=(0, 0, at))
    assert "the folders A17, B02 state one examination" in note(tmp_path)


def test_a_wrapped_folder_that_a_mask_is_named_after(tmp_path):
    writers.write_series(tmp_path / "export" / "A17", HEART)
    write_mask(tmp_path / "export" / "A17_lge_mask.nii.gz", mvo_at=1)
    found = {one.case_id: one.has_mvo for one in read(tmp_path)}
    assert found == {"A17_s00": False, "A17_s01": True, "A17_s02": False}


def test_nifti_cines_beside_dicom_are_told_with_the_choice(tmp_path, caplog):
    writers.write_series(tmp_path / "A17", CINE)
    for case in ("A17", "B02"):
        writers.write_nifti(tmp_path, case, CINE, None)
    for t, frame in enumerate(CINE):
        save(tmp_path / f"C03_cine_t{t:02d}.nii.gz", frame)
    with caplog.at_level(logging.WARNING):
        _, *refused = choose_importer(tmp_path).find(tmp_path, Options())
    (told,) = caplog.messages
    assert "A17_cine.nii.gz not read: A17 is read from its DICOM files (--format=nifti" in told
    assert [one.name for one in refused] == ["B02", "C03"]
    causes = [one.detail["refused"][0] for one in refused]
    assert "B02_cine.nii.gz: a NIfTI cine by its name" in causes[0]
    assert "and 11 more" in causes[1]


def test_a_sform_and_a_qform_that_lie_apart_are_told(tmp_path):
    path = writers.write_nifti(tmp_path, "A17", CINE, None)
    stored: Any = nibabel.load(path)
    aside = stored.affine.copy()
    for move, words in ((0.1, ""), (30.0, "lie up to 30.0 mm apart; the sform is taken")):
        aside[0, 3] = move
        stored.header.set_qform(aside, 1)
        stored.header.set_sform(stored.affine, 1)
        nibabel.save(nibabel.Nifti1Image(np.asarray(stored.dataobj), None, stored.header), path)
        told = note(tmp_path)
        assert words in told
        assert bool(told) is bool(words)


def test_a_mask_of_exchanged_axes(tmp_path):
    writers.write_nifti(tmp_path, "A17", CINE[..., :12], np.full((2, 12, 16), 3, np.uint8))
    assert "rows and columns of one of them look exchanged" in refusal(tmp_path).cause


@pytest.mark.parametrize("wrong", ["cine", "mask"])
def test_slices_that_are_too_far_apart_for_one_heart(wrong, tmp_path):
    """All drawings would reach the same slice."""
    writers.write_series(tmp_path / "A17", HEART, step_mm=8000.0 if wrong == "cine" else 8.0)
    grid = np.diag([-2.0, -2.0, 8000.0 if wrong == "mask" else 8.0, 1.0])
    save(tmp_path / "A17_lge_mask.nii.gz", np.full((3, 16, 16), 2, np.uint8), grid)
    cause = refusal(tmp_path).cause
    assert "slices are 8000 mm apart" in cause
    assert ("A17_lge_mask" in cause) is (wrong == "mask")


def clips(source: Path) -> list[Clip | Rejected]:
    importer = choose_importer(source)
    (series,) = importer.find(source, Options())
    return read_series(importer.load, series, Options(), Target())


def test_a_cine_that_is_one_still(tmp_path):
    writers.write_series(tmp_path / "A17", np.repeat(CINE[:1], 12, axis=0))
    done = clips(tmp_path)
    assert all(isinstance(one, Rejected) and "are one image" in one.cause for one in done)


@pytest.mark.parametrize("form", ["nifti", "nrrd", "npz", "png"])
def test_a_mask_of_one_value_says_what_it_is_taken_for(form, tmp_path):
    mask, cine = np.zeros((16, 16), np.uint8), CINE[:, 0].astype(np.uint8)
    mask[4:8, 4:8] = 1
    if form == "npz":
        writers.write_npz(tmp_path, "A17", cine, mask > 0)
    elif form == "png":
        writers.write_png(tmp_path, "A17", cine, mask)
    else:
        writers.write_nifti(tmp_path, "A17", cine, mask if form == "nifti" else None)
    if form == "nrrd":
        grid = {"space": "RAS", "space directions": GRID[:3, :3], "space origin": [0] * 3}
        nrrd.write(str(tmp_path / "A17_lge_mask.nrrd"), mask.T[..., None], grid)
    (only,) = read(tmp_path)
    assert "no other value than 1, which is taken as infarct" in only.note
    assert only.has_mvo is False


@pytest.mark.parametrize(("order", "again"), [([*range(12), 0], 1), (np.repeat(range(8), 2), 8)])
def test_phases_that_are_there_again_are_told(order, again, tmp_path):
    writers.write_nifti(tmp_path, "A17", CINE[list(order), :1], None)
    (clip,) = clips(tmp_path)
    assert isinstance(clip, Clip)
    assert f"{again} of {len(order)} phases equal another in every pixel" in clip.note
