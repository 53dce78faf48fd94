"""What is missing, merged or not read is told or refused, whoever wrote the headers."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import UID

from tests.data.importers import writers
from tests.data.importers.test_causes import FRAMES, read, refusal

# Three slices of different places that move a little.
CINE = np.concatenate(
    [np.random.default_rng(z).integers(1, 900, (1, 1, 24, 20)) for z in range(3)], axis=1
)
CINE = (CINE + 3 * np.abs(np.arange(FRAMES) - 6)[:, None, None, None]).astype(np.uint16)
NO_PLACE: dict[str, Any] = {"ImagePositionPatient": [0, 0, 0], "SliceLocation": None}
NO_TIME: dict[str, Any] = {"TriggerTime": None, "CardiacNumberOfImages": None}


def clock(t: int, z: int) -> str:
    return f"1000{z:02d}.{40_000 * t:06d}"


@pytest.mark.parametrize("order", ["slices alternate", "by the clock", "slice by slice"])
def test_slices_that_all_lie_at_0_0_0_are_not_merged(order, tmp_path):
    tags = {**NO_PLACE, **NO_TIME}
    if order != "slice by slice":
        tags["InstanceNumber"] = lambda t, z: 1 + 3 * t + z
    if order == "by the clock":
        tags["AcquisitionTime"] = lambda t, z: f"100010.{40_000 * t + 12_000 * z:06d}"
    writers.write_series(tmp_path / "A17", CINE, **tags)
    assert "position (none, or 0, 0, 0)" in refusal(tmp_path).cause


@pytest.mark.parametrize("tags", [{}, {"TriggerTime": 0.0}])
def test_a_refusal_of_slices_at_0_0_0_names_the_position(tags, tmp_path):
    writers.write_series(tmp_path / "A17", CINE, **NO_PLACE, **tags)
    error = refusal(tmp_path)
    assert "its ImagePositionPatient is 0, 0, 0: it may be several slices" in error.cause
    assert error.remedy.startswith("export the series again with ImagePositionPatient; else")


def test_one_slice_at_0_0_0_is_read(tmp_path):
    writers.write_series(tmp_path / "A17", CINE[:, :1], **NO_PLACE)
    assert np.array_equal(read(tmp_path)[0].cine, CINE[:, 0])


@pytest.mark.parametrize("lost", [[5], [4, 5, 6], [2, 8]])
def test_a_phase_that_is_missing_by_the_clock(lost, tmp_path):
    paths = writers.write_series(tmp_path / "A17", CINE, **NO_TIME, AcquisitionTime=clock)
    assert len(read(tmp_path)) == 3
    for t in lost:
        paths[t].unlink()  # of the first slice
    first, *others = read(tmp_path)
    assert first.refusal is not None
    assert f"between {40 * lost[0] - 40} and" in first.refusal[0]
    assert "ms after the first, by AcquisitionTime" in first.refusal[0]
    assert [one.refusal for one in others] == [None, None]


def test_a_clock_that_waits_for_a_beat_is_told(tmp_path):
    def waits(t: int, z: int) -> str:
        return f"100010.{30_000 * t + (45_000 if t > 6 else 0):06d}"

    writers.write_series(tmp_path / "A17", CINE[:, :1], **NO_TIME, AcquisitionTime=waits)
    note = read(tmp_path)[0].note
    assert "a phase may be missing between 180 and 255 ms after the first" in note


def test_fewer_phases_than_temporal_positions_are_told(tmp_path):
    tags = {"CardiacNumberOfImages": None, "NumberOfTemporalPositions": FRAMES}
    writers.write_series(tmp_path / "A17", CINE, **tags)
    assert "NumberOfTemporalPositions" not in read(tmp_path)[0].note
    writers.write_series(tmp_path / "A17", CINE, **{**tags, "NumberOfTemporalPositions": 20})
    note = read(tmp_path)[0].note
    assert "3 slices have fewer phases than NumberOfTemporalPositions says (12 at" in note


def enhanced(folder: Path, order: Any, **about: Any) -> None:
    """One slice whose frames are stored in an order that only DimensionIndexValues tell."""
    path = writers.write_enhanced(folder, "A17", CINE[order, :1]) / "multi.dcm"
    image = pydicom.dcmread(path)
    for t, group in zip(order, image.PerFrameFunctionalGroupsSequence, strict=True):
        del group.CardiacSynchronizationSequence
        del group.FrameContentSequence[0].TemporalPositionIndex
        group.FrameContentSequence[0].DimensionIndexValues = [1, 1, int(t) + 1]
    for name, value in about.items():
        setattr(image, name, value)
    image.save_as(path)


def test_frames_that_only_their_dimensions_put_in_order(tmp_path):
    pointers = []
    for pointer in (0x00209056, 0x00209057, 0x00209128):  # stack, place in it, time
        pointers.append(pydicom.Dataset())
        pointers[-1].DimensionIndexPointer = pointer
    order = np.random.default_rng(5).permutation(FRAMES)
    enhanced(tmp_path, order, DimensionIndexSequence=pydicom.Sequence(pointers))
    assert np.array_equal(read(tmp_path)[0].cine, CINE[:, 0])
    enhanced(tmp_path, np.arange(FRAMES))
    assert "nothing but the order of the frames puts the phases" in read(tmp_path)[0].note


def test_contours_for_radiotherapy_are_told(tmp_path):
    writers.write_series(tmp_path / "A17", CINE)
    drawn = writers.dicom_header("P1", 2, 2, Modality="RTSTRUCT", StudyInstanceUID="1.2")
    drawn.SOPClassUID = drawn.file_meta.MediaStorageSOPClassUID = UID(
        "1.2.840.10008.5.1.4.1.1.481.3"
    )
    for name in ("Rows", "Columns"):
        delattr(drawn, name)
    drawn.save_as(tmp_path / "A17" / "rt.dcm", enforce_file_format=True)
    first = read(tmp_path)[0]
    assert "rt.dcm left out, contours (RTSTRUCT)" in first.note
    assert first.images["contours that are not read"] == 1


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("dicom", "B2/i00.dcm.gz"), ("dicom", "B2/0_0.jpg"), ("dicom", "A17/mvo.mha"),
        ("dicom", "A17/labels.tif"), ("dicom", "A17_mask.npy"), ("dicom", "A17_contours.json"),
        ("png", "img_dir/B2_00_input.jpg"), ("png", "img_dir/B2_frame0.png"),
        ("png", "ann_dir/A17_00_gt.tif"), ("png", "A17_gt.png"), ("png", "B2.nii.gz"),
        ("npz", "C3.npy"), ("nifti", "B2.mha"), ("nifti", "B2/b.jpeg"),
    ],
)  # fmt: skip
def test_images_and_drawings_in_other_forms_are_named(layout, name, tmp_path, caplog):
    cine = (CINE[:, 0] // 5).astype(np.uint8)
    if layout == "dicom":
        writers.write_series(tmp_path / "A17", CINE)
    elif layout == "png":
        writers.write_png(tmp_path, "A17", cine, None)
    elif layout == "npz":
        writers.write_npz(tmp_path, "A17", cine, None)
    else:
        writers.write_nifti(tmp_path, "A17", cine, None)
    (tmp_path / "dataset.json").write_text("{}")
    (tmp_path / "README.txt").write_text("of all")
    assert read(tmp_path)
    assert not caplog.messages
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    assert read(tmp_path)
    (told,) = caplog.messages
    assert told.startswith("1 files that look like images or drawings below")
    assert f"are not read: {name};" in told


def test_what_is_drawn_beside_the_images_is_counted(tmp_path):
    mask = np.zeros((3, 24, 20), np.uint8)
    mask[:, 8:12, 6:16], mask[1, 9, 14] = 1, 2
    writers.write_nifti(tmp_path, "A17", CINE, mask)
    assert "cut off" not in read(tmp_path)[0].note
    writers.write_nifti(tmp_path, "A17", CINE[..., :12], None)
    note = read(tmp_path)[0].note
    assert "A17_lge_mask.nii.gz: 48 of 120 drawn pixels, 1 of MVO, lie beside the images" in note


def test_mvo_within_a_sector_of_muscle_is_no_cavity(tmp_path):
    mask = np.zeros((3, 24, 20), np.uint8)
    mask[:, 4:20, 6:14], mask[1, 10:13, 9:11] = 3, 2
    writers.write_nifti(tmp_path, "A17", CINE, mask)
    assert [one.has_mvo for one in read(tmp_path)] == [False, True, False]


def test_a_gap_between_slices_is_told(tmp_path):
    four = np.concatenate([CINE, CINE[:, :1]], axis=1)
    paths = writers.write_series(tmp_path / "A17", four)
    (tmp_path / "A17" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")  # lists files, holds none
    assert "apart" not in read(tmp_path)[0].note
    for path in paths[FRAMES : 2 * FRAMES]:
        path.unlink()
    note = read(tmp_path)[0].note
    assert "the slices at 0.0 mm and 16.0 mm lie 16.0 mm apart, others 8.0" in note


def test_a_cine_that_is_there_whole_and_phase_by_phase(tmp_path):
    cine = (CINE[:, 0] // 5).astype(np.uint8)
    writers.write_nifti(tmp_path, "A17", cine, None)
    assert len(read(tmp_path)) == 1
    for t, phase in enumerate(cine):
        writers.write_nifti(tmp_path / "phases", f"A{t}", phase[None], None)
        (tmp_path / "phases" / f"A{t}_cine.nii.gz").rename(tmp_path / f"A17_cine_t{t:02d}.nii.gz")
    error = refusal(tmp_path)
    assert "'A17' is there whole and phase by phase" in error.cause


def test_slices_in_files_of_their_own_are_no_phases(tmp_path):
    for z in range(12):
        writers.write_nifti(tmp_path, f"A{z}", CINE[:8, 0], None)
        (tmp_path / f"A{z}_cine.nii.gz").rename(tmp_path / f"A17_cine_slice{z:02d}.nii.gz")
    assert "is named like a slice (slice00), not like a phase" in refusal(tmp_path).cause
    for path in sorted(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("slice", "t")))
    error = refusal(tmp_path)  # 4-D files with a number
    assert "by its number it is taken for one phase of case A17" in error.remedy


def test_phases_that_are_joined_are_told(tmp_path):
    for t in range(FRAMES):
        writers.write_nifti(tmp_path, f"A{t}", CINE[t : t + 1], None)
        (tmp_path / f"A{t}_cine.nii.gz").rename(tmp_path / f"A17_cine_{t}.nii.gz")
    first, *_ = read(tmp_path)
    assert np.array_equal(first.cine, CINE[:, 0])
    assert "12 files are joined as phases in the order of their numbers" in first.note


@pytest.mark.parametrize("patient", ["", "ANON", "P1"])
def test_folders_below_one_whose_patients_are_not_named(patient, tmp_path):
    tags = {"PatientID": patient, "PatientName": "", "StudyInstanceUID": "1.2.3"}
    for name, place in (("A17", 0), ("A18", 32)):
        folder = tmp_path / "Site1" / name
        writers.write_series(
            folder, CINE, origin=(0, 0, place), SliceLocation=None, **tags,
            SeriesInstanceUID=f"1.2.{place + 4}",
        )  # fmt: skip
    first = read(tmp_path)[0]
    assert ("images of 2 folders (A17, A18) are taken for" in first.note) == (patient != "P1")


@pytest.mark.parametrize("kind", ["permuted", "black is 3"])
def test_a_palette_of_colours_is_told_and_its_background_checked(kind, tmp_path):
    mask = np.zeros((24, 20), np.uint8)
    mask[8:14, 6:16], mask[9, 8:10], mask[10, 9] = 3, 2, 1
    stored = (3 - mask) if kind == "black is 3" else mask
    writers.write_png(tmp_path, "A17", (CINE[:, 0] // 5).astype(np.uint8), stored)
    (path,) = tmp_path.rglob("*_gt.png")
    image = Image.fromarray(stored)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(path)
    if kind == "black is 3":
        assert "the edge of its images is myocardium" in refusal(tmp_path).cause
    else:
        note = read(tmp_path)[0].note
        assert "the numbers of its palette are its labels (0 #000000, 1 #ff0000, 2" in note


@pytest.mark.parametrize("degrees", [15.0, 40.0])
def test_a_mask_whose_signs_are_those_of_dicom_is_refused(degrees, tmp_path):
    turn = np.radians(degrees)
    c, s = np.cos(turn), np.sin(turn)
    tilted = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ [[1, 0, 0], [0, c, -s], [0, s, c]]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = tilted @ np.diag([2.0, 2.0, 8.0]), (5, 7, 9)
    mask = np.zeros((3, 24, 20), np.uint8)
    mask[:, 8:12, 6:16] = 1
    cine = nibabel.Nifti1Image(CINE.transpose(3, 2, 1, 0), affine)
    nibabel.save(cine, tmp_path / "A17_cine.nii.gz")
    lost = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    nibabel.save(nibabel.Nifti1Image(mask.T, lost), tmp_path / "A17_lge_mask.nii.gz")
    error = refusal(tmp_path)
    assert "an orientation of DICOM or NRRD (LPS) written as that of NIfTI" in error.cause
    nibabel.save(nibabel.Nifti1Image(mask.T, affine), tmp_path / "A17_lge_mask.nii.gz")
    assert len(read(tmp_path)) == 3


@pytest.mark.parametrize("content", [b"1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", b"MATLAB 5.0"])
def test_a_matrix_beside_nifti_makes_it_no_segment(content, tmp_path):
    writers.write_nifti(tmp_path, "A17", CINE, None)
    (tmp_path / "A17_lge2cine.mat").write_bytes(content)
    assert len(read(tmp_path)) == 3
