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
from pydicom.dataelem import RawDataElement
from pydicom.uid import RLELossless

from mvo_jax.data.cohort.series import read_series
from mvo_jax.data.importers.cine import Options
from mvo_jax.data.importers.formats import choose_importer, load_series
from mvo_jax.data.slices import CineSlice, Clip, Rejected, Target
from mvo_jax.errors import UserError
from tests.data.importers import writers


def images(frames: int = 12, slices: int = 2, size: int = 16) -> np.ndarray:
    """``[T, Z, H, W]``, slices that differ more than their phases."""
    random = np.random.default_rng(0)
    still = random.integers(0, 200, (1, slices, size, size))
    return (still + random.integers(0, 40, (frames, slices, size, size))).astype(np.uint16)


def change(path: Path, **tags) -> None:
    data = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path)


def read(source: Path) -> list[CineSlice]:
    importer = choose_importer(source)
    found = importer.find(source, Options())
    return [one for series in found for one in load_series(importer.load, series, Options())]


def test_the_uid_of_a_copy_with_other_pixels(tmp_path):
    """A filtered series that kept the UIDs is no copy: nothing says which of the two is meant."""
    folder, cine = tmp_path / "A17", images()
    for path in writers.write_series(folder, cine):
        shutil.copy(path, folder / f"again_{path.name}")
    assert np.array_equal(read(tmp_path)[0].cine, cine[:, 0])
    for path in folder.glob("again_*"):
        data = pydicom.dcmread(path)
        writers.set_pixels(data, data.pixel_array[::-1].copy())
        data.save_as(path)
    with pytest.raises(UserError, match="nothing tells the images apart"):
        read(tmp_path)


def second_export(folder: Path, cine: np.ndarray) -> None:
    """With UIDs, numbers and a name of its own."""
    writers.write_series(
        folder, cine, name="b", StudyInstanceUID="1.9", FrameOfReferenceUID="1.9.1",
        SeriesInstanceUID="1.9.5", SeriesNumber=905, SeriesDescription="cine_sax again",
        InstanceNumber=lambda t, z: 900 + t + 100 * z,
    )  # fmt: skip


def test_a_copy_of_a_series_under_other_uids_is_told(tmp_path):
    cine = images(slices=3)
    writers.write_series(tmp_path / "A17", cine, FrameOfReferenceUID="1.2.1")
    second_export(tmp_path / "A17", cine[:, :2])  # of slices 0 and 1 alone
    slices = read(tmp_path)
    assert np.array_equal([one.cine for one in slices], cine.swapaxes(0, 1))
    assert "series 905 'cine_sax again': 24 images left out, copies of series 5" in slices[0].note
    assert slices[0].images["copies"] == 24


def test_a_series_of_which_one_image_differs_is_no_copy(tmp_path):
    cine = images()
    writers.write_series(tmp_path / "A17", cine, FrameOfReferenceUID="1.2.1")
    other = cine.copy()
    other[7, 1, 3, 3] += 1
    second_export(tmp_path / "A17", other)
    with pytest.raises(UserError, match="2 examinations"):
        read(tmp_path)


def padding(files: list[Path], low: int, high: int) -> None:
    for path in files:
        data = pydicom.dcmread(path)
        for tag, value in ((0x00280120, low), (0x00280121, high)):
            data.add_new(tag, "SS" if low < 0 else "US", value)
        data.save_as(path)


@pytest.mark.parametrize("stored", [np.uint16, np.int16])
def test_padding_moves_no_grey_window(stored, tmp_path):
    """Values of PixelPaddingValue to PixelPaddingRangeLimit are as dark as the darkest pixel."""
    cine = (images() + 300).astype(stored)
    padded = cine.copy()
    padded[:, :, :3], padded[:, :, -1] = 60_000 if stored is np.uint16 else -2000, 20
    low = int(padded[0, 0, 0, 0])
    padding(writers.write_series(tmp_path / "A17", padded), low, low + 100)
    first, _ = read(tmp_path)
    assert first.cine.min() == 20  # outside the range that is padding
    assert (first.cine[:, :3] == 20).all()
    assert np.array_equal(first.cine[:, 3:-1], cine[:, 0, 3:-1])


def test_nothing_but_padding_is_refused(tmp_path):
    padding(writers.write_series(tmp_path / "A17", images()), 0, 60_000)
    with pytest.raises(UserError, match="every pixel of its slice is padding"):
        read(tmp_path)


def test_compression_with_loss_is_told(tmp_path):
    files = writers.write_series(tmp_path / "A17", images())
    for path in files[:5]:
        change(
            path, LossyImageCompression="01", LossyImageCompressionRatio=[2.5, 12],
            LossyImageCompressionMethod=["ISO_10918_1", "ISO_15444_1"],
        )  # fmt: skip
    change(files[-1], LossyImageCompression="01")
    for path in files[5:-1]:
        change(path, LossyImageCompression="00")
    note = read(tmp_path)[0].note
    assert (
        "5 of 24 images were compressed with loss (ISO_10918_1, ISO_15444_1, 2.5:1, 12.0:1)" in note
    )
    assert "1 of 24 images were compressed with loss (how is not said)" in note


@pytest.mark.parametrize("rows", [1, -1])
@pytest.mark.parametrize("columns", [1, -1])
def test_mirrored_rows_number_the_slices_as_nifti_of_the_volume_does(rows, columns, tmp_path):
    cine = images(slices=3)
    turn = (columns, 0, 0, 0, rows, 0)
    normal = np.cross(turn[:3], turn[3:])
    writers.write_series(tmp_path / "dicom" / "A17", cine, turn=turn)
    affine = np.diag([-2.0 * columns, -2.0 * rows, 8.0 * normal[2], 1.0])
    (tmp_path / "nifti").mkdir()
    nibabel.save(
        nibabel.Nifti1Image(cine.transpose(3, 2, 1, 0), affine), tmp_path / "nifti/A17_cine.nii"
    )
    dicom, nifti = ([one.cine for one in read(tmp_path / form)] for form in ("dicom", "nifti"))
    assert np.array_equal(dicom, nifti)


def test_a_copy_that_is_compressed(tmp_path):
    folder, cine = tmp_path / "A17", images()
    for path in writers.write_series(folder, cine):
        data = pydicom.dcmread(path)
        data.compress(RLELossless, generate_instance_uid=False)
        data.save_as(folder / f"again_{path.name}")
    (first, _) = read(tmp_path)
    assert np.array_equal(first.cine, cine[:, 0])
    assert first.images["copies"] == cine.shape[0] * cine.shape[1]


def test_bits_that_do_not_lie_low(tmp_path):
    """12 bits at the top of 16: read from the low bits they wrap around."""
    for path in writers.write_series(tmp_path / "A17", images() << 8):
        change(path, BitsStored=12, HighBit=15)
    with pytest.raises(UserError, match="HighBit"):
        read(tmp_path)


def test_values_that_are_larger_than_bits_stored(tmp_path):
    """Cut to their low bits they wrap around; of an overlay the bits are meant to go."""
    cine = images().clip(0, 255)
    paths = writers.write_series(tmp_path / "A17", cine | 0x1000)
    for path in paths:
        change(path, BitsStored=12, HighBit=11)
    with pytest.raises(UserError, match=r"12 bits \(BitsStored\) can hold"):
        read(tmp_path)
    for path in paths:
        data = pydicom.dcmread(path)
        data.add_new(0x60000102, "US", 12)
        data.save_as(path)
    assert np.array_equal(read(tmp_path)[0].cine, cine[:, 0])


def test_a_slice_that_moves_in_its_plane_is_told(tmp_path):
    writers.write_series(
        tmp_path / "A17", images(), ImagePositionPatient=lambda t, z: [20.0 * (t > 5), 0, 8 * z]
    )
    assert "up to 20.0 mm beside one another" in read(tmp_path)[0].note


def test_a_slice_of_two_spacings_says_so(tmp_path):
    writers.write_series(
        tmp_path / "A17", images(), PixelSpacing=lambda t, z: [1.0 + (t > 5), 1.0 + (t > 5)]
    )
    said = r"PixelSpacing: \(1.0, 1.0\) in 6 and \(2.0, 2.0\) in 6"
    with pytest.raises(UserError, match=said):
        read(tmp_path)


@pytest.mark.parametrize("name", ["Anonymous^Patient", "ANON_ID", "REDACTED", "null"])
def test_more_names_of_nobody(name, tmp_path):
    for patient, study in (("A17", "1.2.1"), ("B02", "1.2.2")):
        writers.write_series(
            tmp_path / patient, images(slices=1), PatientID=name, StudyInstanceUID=study
        )
    assert [one.patient_id for one in read(tmp_path)] == ["A17", "B02"]


@pytest.mark.parametrize("form", ["nifti", "dicom"])
@pytest.mark.parametrize("suffix", ["nhdr", "seg.nhdr", "mha", "nii.bz2", "tif"])
def test_a_mask_or_cine_in_a_form_that_is_not_read(form, suffix, tmp_path):
    cine = images()
    if form == "nifti":
        writers.write_nifti(tmp_path, "A17", cine, None)
    else:
        writers.write_series(tmp_path / "A17", cine)
    (tmp_path / f"A17_lge_mask.{suffix}").touch()
    with pytest.raises(UserError, match=r"like a mask, in a form that is not read") as refused:
        read(tmp_path)
    assert f"A17_lge_mask.{suffix}" in refused.value.cause
    nibabel.save(  # a picture beside the mask that is read is none of our business
        nibabel.Nifti1Image(np.full((16, 16, 2), 3, np.uint8), writers.affine(2.0)),
        tmp_path / "A17_lge_mask.nii.gz",
    )
    assert len(list(choose_importer(tmp_path).find(tmp_path, Options()))) == 1
    (tmp_path / "B02_cine.mha").touch()
    _, other = choose_importer(tmp_path).find(tmp_path, Options())
    assert "like a cine, in a form that is not read" in other.detail["refused"][0]


def test_a_cine_of_slanting_axes(tmp_path):
    affine = writers.affine(2.0)
    affine[0, 1] = 1.0
    image = nibabel.Nifti1Image(images().transpose(3, 2, 1, 0), affine)
    nibabel.save(image, tmp_path / "A17_cine.nii.gz")
    with pytest.raises(UserError, match="not at right angles"):
        read(tmp_path)


def test_frames_of_8_and_16_bits(tmp_path):
    for t, frame in enumerate(images()[:, 0]):
        stored = frame * 257 if t % 2 else frame.astype(np.uint8)
        Image.fromarray(stored).save(tmp_path / f"A17_{t:02d}_input.png")
    with pytest.raises(UserError, match="8 bits and 16 bits"):
        read(tmp_path)


def test_files_of_another_format_are_told(tmp_path, caplog):
    writers.write_nifti(tmp_path, "A17", images(), None)
    with caplog.at_level(logging.WARNING):
        read(tmp_path)
    assert not caplog.messages
    writers.write_npz(tmp_path, "B02", images()[:, 0], None)
    (tmp_path / "C03.zip").touch()
    with caplog.at_level(logging.WARNING):
        read(tmp_path)
    assert "formats npz, which are not read" in caplog.messages[0]
    assert "1 archives" in caplog.messages[1]


def write_mask(path: Path, mvo_at: int, slices: int = 3) -> None:
    """Slices 8 mm apart on the cine's grid; MVO in one, myocardium in all."""
    mask = np.full((slices, 16, 16), 3, np.uint8)
    mask[mvo_at, 4:6, 4:6] = 2
    grid = np.diag([-2.0, -2.0, 8.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(mask.transpose(2, 1, 0), grid), path)


def test_the_drawing_of_a_refused_slice_stays_with_it(tmp_path):
    """Left to the slices that remain it would lie in the middle of two and label both."""
    files = writers.write_series(tmp_path / "A17", images(slices=3))
    files[12 + 5].unlink()
    write_mask(tmp_path / "A17_lge_mask.nii.gz", mvo_at=1)
    low, refused, high = read(tmp_path)
    assert refused.refusal is not None
    assert [low.has_mvo, high.has_mvo] == [False, False]


def test_a_drawing_beside_a_gap_of_the_cine(tmp_path):
    """Slices at 0, 8 and 40 mm; the MVO at 16 mm is that of none of them."""
    writers.write_series(
        tmp_path / "A17", images(slices=3), ImagePositionPatient=lambda t, z: [0, 0, (0, 8, 40)[z]]
    )
    write_mask(tmp_path / "A17_lge_mask.nii.gz", mvo_at=2)
    slices = read(tmp_path)
    assert not any(one.has_mvo for one in slices)
    assert "slice 2 of 3 has MVO and lies 8.0 mm" in slices[0].unplaced[0].cause


@pytest.mark.parametrize("name", ["", "ANON"])
def test_folders_of_nobody_that_state_one_examination(name, tmp_path):
    """As of an anonymiser that gives everybody the same UIDs: nothing tells two patients apart."""
    for patient, at in (("A17", 0.0), ("B02", 60.0)):
        writers.write_series(tmp_path / patient, images(), PatientID=name, origin=(0, 0, at))
    first, *_ = read(tmp_path)
    assert "the folders A17, B02 state one examination" in first.note


def test_a_wrapped_folder_that_a_mask_is_named_after(tmp_path):
    writers.write_series(tmp_path / "export" / "A17", images(slices=3))
    write_mask(tmp_path / "export" / "A17_lge_mask.nii.gz", mvo_at=1)
    assert [(one.case_id, one.has_mvo) for one in read(tmp_path)] == [
        ("A17_s00", False),
        ("A17_s01", True),
        ("A17_s02", False),
    ]


def test_nifti_cines_beside_dicom_are_told_with_the_choice(tmp_path, caplog):
    writers.write_series(tmp_path / "A17", images())
    for case in ("A17", "B02"):
        writers.write_nifti(tmp_path, case, images(), None)
    for t, frame in enumerate(images()):
        phase = nibabel.Nifti1Image(frame.T, writers.affine(2.0))
        nibabel.save(phase, tmp_path / f"C03_cine_t{t:02d}.nii.gz")
    with caplog.at_level(logging.WARNING):
        _, *refused = choose_importer(tmp_path).find(tmp_path, Options())
    (told,) = caplog.messages
    assert "A17_cine.nii.gz not read: A17 is read from its DICOM files (--format=nifti" in told
    assert [one.name for one in refused] == ["B02", "C03"]
    causes = [one.detail["refused"][0] for one in refused]
    assert "B02_cine.nii.gz: a NIfTI cine by its name" in causes[0]
    assert "and 11 more" in causes[1]


def refusal(source: Path) -> str:
    with pytest.raises(UserError) as refused:
        read(source)
    return refused.value.cause


def test_a_mosaic_is_no_slice(tmp_path):
    writers.write_series(tmp_path / "A17", images(), ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"])
    assert "24 images of mosaics" in refusal(tmp_path)


def test_one_position_and_several_locations(tmp_path):
    """Taken by their position the slices would pass as repeats of one."""
    writers.write_series(tmp_path / "A17", images(slices=3), ImagePositionPatient=[0, 0, 0])
    assert "SliceLocation from 0 to 16 mm" in refusal(tmp_path)


def test_phases_of_8_and_16_bits(tmp_path):
    for path in writers.write_series(tmp_path / "A17", images())[::2]:
        data = pydicom.dcmread(path)
        writers.set_pixels(data, data.pixel_array.astype(np.uint8))
        data.save_as(path)
    assert "differ in BitsAllocated: 8 in 6 and 16 in 6" in refusal(tmp_path)


@pytest.mark.parametrize("order", [1, -1])
def test_trigger_times_of_some(order, tmp_path):
    """InstanceNumber stands in for them, unless those that are there contradict it."""
    cine = images(slices=1)
    writers.write_series(
        tmp_path / "A17",
        cine,
        TriggerTime=lambda t, z: None if t % 4 == 1 else 40.0 * t,
        InstanceNumber=lambda t, z: 50 + order * t,
    )
    if order < 0:
        assert "9 of 12 images have a TriggerTime, and it contradicts" in refusal(tmp_path)
    else:
        (one,) = read(tmp_path)
        assert np.array_equal(one.cine, cine[:, 0])
        assert "3 of 12 images have no TriggerTime: phases are in the order of Inst" in one.note


def test_a_sform_and_a_qform_that_lie_apart_are_told(tmp_path):
    path = writers.write_nifti(tmp_path, "A17", images(), None)
    stored: Any = nibabel.load(path)
    aside = stored.affine.copy()
    for move, words in ((0.1, ""), (30.0, "lie up to 30.0 mm apart; the sform is taken")):
        aside[0, 3] = move
        stored.header.set_qform(aside, 1)
        stored.header.set_sform(stored.affine, 1)
        nibabel.save(nibabel.Nifti1Image(np.asarray(stored.dataobj), None, stored.header), path)
        note = read(tmp_path)[0].note
        assert words in note
        assert bool(note) is bool(words)


def test_a_mask_of_exchanged_axes(tmp_path):
    cine = images()[..., :12]
    writers.write_nifti(tmp_path, "A17", cine, np.full((2, 12, 16), 3, np.uint8))
    assert "rows and columns of one of them look exchanged" in refusal(tmp_path)


@pytest.mark.parametrize("wrong", ["cine", "mask"])
def test_slices_that_are_too_far_apart_for_one_heart(wrong, tmp_path):
    """All drawings would reach the same slice."""
    step_mm = 8000.0 if wrong == "cine" else 8.0
    writers.write_series(tmp_path / "A17", images(slices=3), step_mm=step_mm)
    grid = np.diag([-2.0, -2.0, 8000.0 if wrong == "mask" else 8.0, 1.0])
    mask = nibabel.Nifti1Image(np.full((16, 16, 3), 2, np.uint8), grid)
    nibabel.save(mask, tmp_path / "A17_lge_mask.nii.gz")
    cause = refusal(tmp_path)
    assert "slices are 8000 mm apart" in cause
    assert ("A17_lge_mask" in cause) is (wrong == "mask")


def test_a_cine_that_is_one_still(tmp_path):
    still = np.repeat(images(1), 12, axis=0)
    writers.write_series(tmp_path / "A17", still)
    (series,) = choose_importer(tmp_path).find(tmp_path, Options())
    done = read_series(choose_importer(tmp_path).load, series, Options(), Target())
    assert all(isinstance(one, Rejected) and "are one image" in one.cause for one in done)


@pytest.mark.parametrize("tag", ["TriggerTime", "ImagePositionPatient", "PixelSpacing"])
def test_a_number_of_the_header_that_is_none(tag, tmp_path):
    """The library reads "nan", and what is sorted by it lies anywhere."""
    files = writers.write_series(tmp_path / "A17", images())
    data = pydicom.dcmread(files[3])
    count = {"TriggerTime": 1, "ImagePositionPatient": 3}.get(tag, 2)
    raw = "\\".join(["nan"] * count).encode()
    data[tag] = RawDataElement(data[tag].tag, "DS", len(raw), raw, 0, False, True)
    data.save_as(files[3])
    assert "i00_003.dcm cannot be read as DICOM (ValueError: a number of the header" in refusal(
        tmp_path
    )


@pytest.mark.parametrize("form", ["nifti", "nrrd", "npz", "png"])
def test_a_mask_of_one_value_says_what_it_is_taken_for(form, tmp_path):
    mask = np.zeros((16, 16), np.uint8)
    mask[4:8, 4:8] = 1
    cine = images(slices=1)[:, 0]
    if form == "npz":
        writers.write_npz(tmp_path, "A17", cine, mask > 0)
    elif form == "png":
        writers.write_png(tmp_path, "A17", cine.astype(np.uint8), mask)
    else:
        writers.write_nifti(tmp_path, "A17", cine, mask if form == "nifti" else None)
    if form == "nrrd":
        grid = {"space": "RAS", "space directions": np.diag([-2.0, -2.0, 8.0])}
        nrrd.write(
            str(tmp_path / "A17_lge_mask.nrrd"), mask.T[..., None], grid | {"space origin": [0] * 3}
        )
    (only,) = read(tmp_path)
    assert "no other value than 1, which is taken as infarct" in only.note
    assert only.has_mvo is False


@pytest.mark.parametrize(("order", "again"), [([*range(12), 0], 1), (np.repeat(range(8), 2), 8)])
def test_phases_that_are_there_again_are_told(order, again, tmp_path):
    writers.write_nifti(tmp_path, "A17", images()[list(order), :1], None)
    importer = choose_importer(tmp_path)
    (series,) = importer.find(tmp_path, Options())
    (clip,) = read_series(importer.load, series, Options(), Target())
    assert isinstance(clip, Clip)
    assert f"{again} of {len(order)} phases equal another in every pixel" in clip.note
