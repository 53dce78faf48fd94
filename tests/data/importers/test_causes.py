"""Refusals say the true cause, and what headers order well is not refused."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import UID

from mvo_jax.data.importers.cine import Options
from mvo_jax.data.importers.formats import choose_importer, load_series
from mvo_jax.data.importers.png_layout import read_png
from mvo_jax.data.importers.sunnybrook import read_contours
from mvo_jax.data.importers.table import read_table
from mvo_jax.data.slices import CineSlice
from mvo_jax.errors import UserError
from tests.data.importers import writers

FRAMES = 12
STILL = np.random.default_rng(0).integers(1, 900, (1, 2, 16, 16))
CINE = (STILL + np.random.default_rng(1).integers(0, 60, (FRAMES, 2, 16, 16))).astype(np.uint16)


def read(source: Path) -> list[CineSlice]:
    importer = choose_importer(source)
    found = importer.find(source, Options())
    return [one for series in found for one in load_series(importer.load, series, Options())]


def refusal(source: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        read(source)
    return caught.value


@pytest.mark.parametrize(
    "tag", ["ImageOrientationPatient", "ImagePositionPatient", "FrameOfReferenceUID"]
)
def test_a_tag_that_some_images_lack_is_named(tag, tmp_path):
    paths = writers.write_series(tmp_path / "A17", CINE, FrameOfReferenceUID="1.2.9")
    lacking = paths[:FRAMES]
    for path in lacking:
        image = pydicom.dcmread(path)
        del image[tag]
        image.save_as(path)
    error = refusal(tmp_path)
    assert f"12 of 24 images of series 5 'cine_sax' have no {tag}" in error.cause
    assert tag in error.remedy


@pytest.mark.parametrize("apart_ms", [0.0, 3.0, 8.0])
def test_a_slice_scanned_again_a_little_later(apart_ms, tmp_path):
    """The last whole scan is used and the other told, be its times equal or some ms later."""
    paths = writers.write_series(tmp_path / "A17", CINE)
    again = (CINE.astype(int) + 5).astype(np.uint16)
    writers.write_series(
        tmp_path / "A17", again, name="again", InstanceNumber=lambda t, z: 100 + t + FRAMES * z,
        TriggerTime=lambda t, z: 40.0 * t + apart_ms,
    )  # fmt: skip
    assert len(paths) == 2 * FRAMES
    slices = read(tmp_path)
    assert np.array_equal(np.stack([one.cine for one in slices], axis=1), again)
    assert "the same slice again" in slices[0].note


@pytest.mark.parametrize("days", [True, False])
def test_acquisition_times_that_pass_midnight(days, tmp_path):
    def clock(t: int, z: int) -> str:
        seconds = 86_400 - 0.2 + 0.04 * t
        seconds %= 86_400
        return f"{int(seconds // 3600):02d}{int(seconds // 60 % 60):02d}{seconds % 60:09.6f}"

    tags: dict[str, Any] = {"TriggerTime": None, "InstanceNumber": 1, "AcquisitionTime": clock}
    if days:
        tags["AcquisitionDate"] = lambda t, z: "20260102" if t > 5 else "20260101"
    writers.write_series(tmp_path / "A17", CINE[:, :1], **tags)
    assert np.array_equal(read(tmp_path)[0].cine, CINE[:, 0])


def test_rounded_trigger_times_beside_true_acquisition_times(tmp_path):
    writers.write_series(
        tmp_path / "A17", CINE[:, :1], TriggerTime=lambda t, z: 100.0 * (t // 2),
        InstanceNumber=1, AcquisitionTime=lambda t, z: f"100010.{45 * t:06d}",
    )  # fmt: skip
    assert np.array_equal(read(tmp_path)[0].cine, CINE[:, 0])


@pytest.mark.parametrize("clock", [True, False])
def test_rounded_trigger_times_and_numbers_that_run_backwards(clock, tmp_path):
    tags: dict[str, Any] = {"AcquisitionTime": lambda t, z: f"100010.{45_000 * t:06d}"}
    writers.write_series(
        tmp_path / "A17", CINE[:, :1], TriggerTime=lambda t, z: 100.0 * (t // 2),
        InstanceNumber=lambda t, z: 50 - t, **(tags if clock else {}),
    )  # fmt: skip
    if clock:
        assert np.array_equal(read(tmp_path)[0].cine, CINE[:, 0])
    else:
        error = refusal(tmp_path)
        assert "TriggerTime" in error.cause
        assert "not rounded" in error.remedy


@pytest.mark.parametrize("tie", [1, 3, 5])
def test_two_phases_of_one_rounded_time_are_no_repeat(tie, tmp_path):
    """The numbers go on after them: what lies before is part of the beat."""
    steps = np.arange(FRAMES) * 45.0
    steps[tie:] -= 45.0 - 15.0 * (np.arange(FRAMES - tie) > 0)
    writers.write_series(
        tmp_path / "A17", CINE[:, :1], TriggerTime=lambda t, z: float(steps[t]),
        CardiacNumberOfImages=None,
    )  # fmt: skip
    assert "TriggerTime repeats within a slice" in refusal(tmp_path).cause


@pytest.mark.parametrize("tag", ["ComplexImageComponent", "ImageType"])
def test_velocities_that_look_like_the_cine_are_set_aside(tag, tmp_path):
    writers.write_series(tmp_path / "A17", CINE)
    value: Any = "PHASE" if tag == "ComplexImageComponent" else ["ORIGINAL", "PRIMARY", "VELOCITY"]
    writers.write_series(
        tmp_path / "A17", CINE + np.uint16(9), name="velocity",
        InstanceNumber=lambda t, z: 100 + t + FRAMES * z, **{tag: value},
    )  # fmt: skip
    slices = read(tmp_path)
    assert np.array_equal(slices[0].cine, CINE[:, 0])
    assert "phase maps" in slices[0].note


def test_a_grey_image_with_an_opacity(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    opaque, path = np.full_like(grey, 255), tmp_path / "a.png"
    Image.merge("LA", [Image.fromarray(grey), Image.fromarray(opaque)]).save(path)
    assert np.array_equal(read_png(path), grey)
    opaque[3, 3] = 0
    Image.merge("LA", [Image.fromarray(grey), Image.fromarray(opaque)]).save(path)
    with pytest.raises(UserError, match="transparent"):
        read_png(path)


@pytest.mark.parametrize("separator", [",", ";"])
def test_decimal_commas_in_a_table(separator, tmp_path):
    (tmp_path / "cases.csv").write_text(
        separator.join(["cine", "patient_id", "label", "centre_row", "centre_column"])
        + "\n"
        + separator.join(["a.nii", "a", "1", "31,5", "30"])
        + "\n"
    )
    with pytest.raises(UserError) as caught:
        read_table(tmp_path / "cases.csv")
    assert "line 2" in caught.value.cause
    assert "decimal point" in caught.value.remedy


def test_decimal_commas_in_contours(tmp_path):
    folder = tmp_path / "i-contours"
    folder.mkdir()
    (folder / "IM-0001-0020-icontour-manual.txt").write_text("1,5 2,5\n3,5 4,5\n5,5 6,5\n")
    with pytest.raises(UserError) as caught:
        read_contours(tmp_path)
    assert "decimal point" in caught.value.remedy


@pytest.mark.parametrize("flipped", [False, True])
def test_a_mask_on_the_grid_numbered_from_the_other_end(flipped, tmp_path):
    cine = CINE.repeat(2, axis=2).repeat(2, axis=3)
    mask = np.zeros(cine.shape[1:], np.uint8)
    mask[0, 4:9, 5:10], mask[1, 20:25, 12:17] = 2, 2
    writers.write_series(tmp_path / "A17", cine)
    grid, values = np.diag([-2.0, -2.0, 8.0, 1.0]), mask.transpose(2, 1, 0)
    if flipped:
        grid[2, 2], grid[2, 3], values = -8.0, 8.0, values[..., ::-1]
    nibabel.save(nibabel.Nifti1Image(values, grid), tmp_path / "A17_lge_mask.nii.gz")
    slices = read(tmp_path)
    for one, drawn in zip(slices, mask, strict=True):
        assert one.lge_mask is not None
        assert np.array_equal(one.lge_mask, drawn)
        assert "another grid" not in one.note


def test_loose_files_beside_the_folder_of_their_examination(tmp_path):
    for name, study in (("A", "1.2.1"), ("B", "1.2.2")):
        writers.write_series(
            tmp_path / name, CINE, StudyInstanceUID=study, PatientID=name, FrameOfReferenceUID=study
        )
    writers.write_series(
        tmp_path, CINE, StudyInstanceUID="1.2.1", PatientID="A", FrameOfReferenceUID="1.2.1"
    )
    notes = {one.case_id: one.note for one in read(tmp_path) if one.slice_index == 0}
    assert len(notes) == 3
    (told,) = [note for note in notes.values() if "same examination" in note]
    assert "beside A, which" in told


@pytest.mark.parametrize("part", ["cine", "lge_mask"])
def test_a_flipped_bit_of_a_packed_nifti(part, tmp_path):
    """Most flips leave a stream that unpacks to other values; the sum at its end says so."""
    cine = CINE.repeat(2, axis=2).repeat(2, axis=3)
    mask = np.random.default_rng(2).integers(0, 3, cine.shape[1:]).astype(np.uint8)
    writers.write_nifti(tmp_path, "a", cine, mask)
    assert len(read(tmp_path)) == 2
    path = tmp_path / f"a_{part}.nii.gz"
    whole = path.read_bytes()
    for place in np.linspace(len(whole) // 3, len(whole) - 9, 12).astype(int):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        assert path.name in refusal(tmp_path).cause


@pytest.mark.parametrize("order", ["exchanged", "spread", "colours"])
def test_the_palette_of_a_mask(order, tmp_path):
    labels, path = np.arange(4, dtype=np.uint8).repeat(4).reshape(4, 4), tmp_path / "a.png"
    image = Image.fromarray(labels).convert("P")
    greys = {"exchanged": [0, 2, 1, 3], "spread": [0, 80, 160, 240], "colours": [9, 0, 5, 1]}[order]
    colours = np.array(greys)[:, None] * [1, 1, 1 if order != "colours" else 0]
    image.putpalette(colours.astype(np.uint8).ravel().tolist())
    image.save(path)
    if order == "exchanged":
        with pytest.raises(UserError, match="its palette shows them as the greys"):
            read_png(path, is_mask=True)
    else:
        assert np.array_equal(read_png(path, is_mask=True), labels)


@pytest.mark.parametrize("tag", ["PatientBirthDate", "PatientSex"])
def test_two_people_of_one_number_in_a_folder(tag, tmp_path):
    values = ("19500101", "19600101") if tag == "PatientBirthDate" else ("F", "M")
    for i, value in enumerate(values):
        person: dict[str, Any] = {tag: value}
        writers.write_series(
            tmp_path / "A17", CINE, name=value, origin=(0, 0, 24.0 * i),
            SeriesInstanceUID=f"1.5.{i}", **person,
        )  # fmt: skip
    error = refusal(tmp_path)
    assert "several people" in error.cause
    assert "19" not in error.cause.replace(str(tmp_path), "")  # what is compared is not shown


@pytest.mark.parametrize("zones", [("", ""), ("+0100", "+0000")])
def test_acquisition_times_with_dates_and_zones(zones, tmp_path):
    def clock(t: int, z: int) -> str:
        zone = zones[t > 5]
        hour = 13 if zone == "+0000" or not zone else 14
        return f"20200101{hour}00{10 + 0.04 * t:09.6f}{zone}"

    tags: dict[str, Any] = {"TriggerTime": None, "AcquisitionDateTime": clock}
    writers.write_series(tmp_path / "A17", CINE[:, :1], **tags, InstanceNumber=1)
    assert np.array_equal(read(tmp_path)[0].cine, CINE[:, 0])
    scrambled: Any = {"InstanceNumber": lambda t, z: 1 + (5 * t + 3) % FRAMES}
    writers.write_series(tmp_path / "A17", CINE[:, :1], **tags, **scrambled)
    assert np.array_equal(read(tmp_path)[0].cine, CINE[:, 0])


def test_axes_that_look_exchanged(tmp_path):
    """More slices than frames is told, [H, W, T] of square images is refused."""
    cine = np.random.default_rng(0).integers(0, 900, (20, 9, 16, 24)).astype(np.uint16)
    np.savez(tmp_path / "a.npz", cine=cine)
    assert "20 slices of 9 frames" in read(tmp_path)[0].note
    np.savez(tmp_path / "a.npz", cine=cine.swapaxes(0, 1))
    assert "slices of" not in read(tmp_path)[0].note
    np.savez(tmp_path / "a.npz", cine=cine[:16, 0, :, :12].transpose(1, 0, 2))
    assert "looks like [H, W, T]" in refusal(tmp_path).cause
    (tmp_path / "a.npz").unlink()
    writers.write_nifti(tmp_path, "a", cine.swapaxes(0, 1), None)
    assert "20 slices of 9 frames" in read(tmp_path)[0].note


def of(value):
    """A tag of the middle one of three slices."""
    return lambda t, z: value[1] if z == 1 else value[0]


HEART = np.concatenate([CINE, CINE[:, :1]], axis=1)
OBLIQUE = (0.6, 0.74, -0.304, 0.309, -0.562, -0.767)


@pytest.mark.parametrize(
    ("tags", "cause"),
    [
        ({"PatientName": of(["Doe^John", "Roe^Jane"])}, "differ in names: several people"),
        ({"PatientBirthDate": of(["19500101", "19600101"])}, "differ in dates of birth"),
        ({"SequenceVariant": of(["SS", None])}, "12 of 36 images .* have no SequenceVariant"),
        ({"PixelSpacing": of([[2, 2], None])}, "12 of 36 images .* have no PixelSpacing"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "no cine: 36 images of projections"),
        (
            {"ImagePositionPatient": [0, 0, 0], "SliceLocation": 0},
            "they do not look alike .* or two places",
        ),
    ],
)
def test_slices_that_do_not_go_together(tags, cause, tmp_path):
    other = np.random.default_rng(5).integers(0, 900, (1, 3, 16, 16)).astype(np.uint16)
    writers.write_series(tmp_path / "A17", HEART // 2 + other, **tags)
    with pytest.raises(UserError, match=cause):
        read(tmp_path)


@pytest.mark.parametrize("names", [("Doe^John", "DOE^JOHN^M"), ("Doe^John", ""), ("Doe", "ANON")])
def test_names_that_may_be_of_one_person(names, tmp_path):
    writers.write_series(tmp_path / "A17", HEART, PatientName=of(names))
    assert len(read(tmp_path)) == 3


def test_people_of_one_number_and_other_names_are_two_patients(tmp_path):
    writers.write_series(tmp_path / "A", HEART, PatientName="Doe^John")
    writers.write_series(tmp_path / "B", HEART, PatientName="Roe^Jane", StudyInstanceUID="1.3")
    found = read(tmp_path)
    assert [one.patient_id for one in found] == ["A"] * 3 + ["B"] * 3
    assert "in 2 examinations of several people (names differ)" in found[0].note


@pytest.mark.parametrize("born", [False, True])
def test_a_name_that_changed_is_one_person_where_the_date_of_birth_is_one(born, tmp_path):
    tags: Any = {"PatientBirthDate": "19500101"} if born else {}
    writers.write_series(tmp_path / "A", HEART, PatientName="Doe^Jane", **tags)
    writers.write_series(
        tmp_path / "B", HEART, PatientName="Roe^Jane", StudyInstanceUID="1.3", **tags
    )
    assert {one.patient_id for one in read(tmp_path)} == ({"P1"} if born else {"A", "B"})


@pytest.mark.parametrize("flips", [(1, 1), (1, 0), (0, 1)])
def test_a_slice_that_is_stored_turned_is_one_of_its_stack(flips, tmp_path):
    """In a series of its own, its rows, columns or both running the other way."""
    straight = writers.write_series(tmp_path / "straight" / "A17", HEART, turn=OBLIQUE)
    signs = np.repeat([-1 if flip else 1 for flip in flips], 3)
    axes = np.array(OBLIQUE).reshape(2, 3)
    start = sum((30.0 * axis for axis, flip in zip(axes, flips, strict=True) if flip), np.zeros(3))
    across, down = (slice(None, None, -1 if flip else 1) for flip in flips)
    for path in straight:
        image = pydicom.dcmread(path)
        if path.name.startswith("i01"):
            image.ImageOrientationPatient = list(signs * np.array(OBLIQUE))
            position = np.array(image.ImagePositionPatient, float) + start
            image.ImagePositionPatient = [round(v, 6) for v in position]
            image.SeriesInstanceUID, image.SeriesNumber = "1.2.4", 6
            writers.set_pixels(image, image.pixel_array[down, across].copy())
        (tmp_path / "turned" / "A17").mkdir(parents=True, exist_ok=True)
        image.save_as(tmp_path / "turned" / "A17" / path.name)
    one, other = read(tmp_path / "straight"), read(tmp_path / "turned")
    assert len(one) == len(other) == 3
    assert all(np.array_equal(a.cine, b.cine) for a, b in zip(one, other, strict=True))


def test_phases_of_a_slice_that_are_turned_are_named(tmp_path):
    paths = writers.write_series(tmp_path / "A17", HEART, turn=OBLIQUE)
    for path in paths[FRAMES : FRAMES + 5]:
        image = pydicom.dcmread(path)
        image.ImageOrientationPatient = [-v for v in OBLIQUE]
        position = np.array(image.ImagePositionPatient, float)
        position += 30.0 * np.array(OBLIQUE[:3]) + 30.0 * np.array(OBLIQUE[3:])
        image.ImagePositionPatient = [round(v, 6) for v in position]
        image.save_as(path)
    first, second, third = read(tmp_path)
    assert first.refusal is None
    assert third.refusal is None
    assert second.refusal is not None
    assert "5 of its 12 images are turned or mirrored" in second.refusal[0]


def test_a_constant_time_beside_the_time_of_each_image(tmp_path):
    writers.write_series(
        tmp_path / "A17", CINE, TriggerTime=None, AcquisitionTime="101010",
        InstanceNumber=lambda t, z: 90 - t,
        AcquisitionDateTime=lambda t, z: f"2020010110{10 + z}10.{40 * t:03d}000",
    )  # fmt: skip
    assert np.array_equal(read(tmp_path)[0].cine, CINE[:, 0])


def test_phases_that_numbers_alone_order_and_derived_images_are_told(tmp_path):
    writers.write_series(
        tmp_path / "A17", CINE, TriggerTime=None, ContentTime="101010",
        ImageType=["DERIVED", "SECONDARY"],
    )  # fmt: skip
    note = read(tmp_path)[0].note
    assert "nothing but InstanceNumber puts the phases of a slice in order" in note
    assert "24 of 24 images are derived from others" in note


def test_folders_of_nobody_that_share_all_numbers_name_the_remedy(tmp_path):
    for name in "AB":
        cine = CINE if name == "A" else CINE[::-1]
        writers.write_series(tmp_path / name, cine, PatientID="ANON")
    assert "if A, B are several patients, --patient_from=folder" in refusal(tmp_path).remedy


def test_a_trigger_time_with_a_comma(tmp_path):
    (path, *_) = writers.write_series(tmp_path / "A17", CINE, TriggerTime=lambda t, z: 40.5 + t)
    path.write_bytes(path.read_bytes().replace(b"40.5", b"40,5", 1))
    error = refusal(tmp_path)
    assert "'40,5'" in error.cause
    assert "decimal point" in error.remedy


@pytest.mark.parametrize("cavity", [2, 0])
def test_a_mask_whose_mvo_is_the_cavity(cavity, tmp_path):
    away = np.hypot(*(np.mgrid[:32, :32] - 15.5))
    mask = np.where(away < 8, cavity, np.where(away < 12, 3, 0)).astype(np.uint8)
    mask[14:18, 25:27] = 2  # MVO in the wall
    cine = np.random.default_rng(0).integers(0, 255, (FRAMES, 32, 32)).astype(np.uint8)
    writers.write_nifti(tmp_path, "A17", cine, mask)
    if cavity == 0:
        (one,) = read(tmp_path)
        assert one.lge_mask is not None
        assert (one.lge_mask == 2).sum() == 8
        return
    error = refusal(tmp_path)
    assert "fills all that value 3 encloses, as the cavity does" in error.cause
    assert "--mask_values" in error.remedy


@pytest.mark.parametrize(("interval", "is_told"), [(960, True), (600, False)])
def test_phases_that_cover_half_a_beat_are_told(interval, is_told, tmp_path):
    """Twelve phases of 40 ms; prospective gating leaves out some of a beat, too."""
    tags: Any = {"CardiacNumberOfImages": None, "NominalInterval": interval}
    writers.write_series(tmp_path / "A17", CINE, **tags)
    assert ("12 phases cover 480 ms of a beat" in read(tmp_path)[0].note) == is_told


def test_a_series_for_each_phase_names_the_remedy(tmp_path):
    writers.write_series(
        tmp_path / "A17", CINE, SeriesInstanceUID=lambda t, z: f"1.2.{50 + t}"
    )  # fmt: skip
    assert "export them as one series" in refusal(tmp_path).remedy


def test_a_directory_file_beside_the_folder_of_a_patient(tmp_path):
    (path, *_) = writers.write_series(tmp_path / "A17", CINE)
    image = pydicom.dcmread(path)
    image.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.1.3.10")
    for tag in ("Rows", "Columns", "PixelData"):
        del image[tag]
    image.save_as(tmp_path / "DICOMDIR")
    assert [one.case_id for one in read(tmp_path)] == ["A17_s00", "A17_s01"]


def test_directions_of_two_digits_are_no_other_turn(tmp_path):
    """Their lengths are 0.99 and 0.98, which says nothing of how the images are turned."""
    turn = (0.59, 0.73, -0.31, 0.31, -0.55, -0.76)
    writers.write_series(tmp_path / "A17", HEART, turn=turn)
    found = read(tmp_path)
    assert [one.refusal for one in found] == [None] * 3
    assert "turned" not in found[0].note


@pytest.mark.parametrize(("place", "is_read"), [(8.0, True), (0.0, False)])
def test_scans_of_one_slice_that_are_alike_by_half(place, is_read, tmp_path):
    """As two breath-holds are; where its place is 0 they may be two slices beside one another."""
    random = np.random.default_rng(7)
    shared, own = random.normal(500, 100, (1, 1, 24, 24)), random.normal(0, 60, (2, 1, 1, 24, 24))
    for i, name in enumerate("ij"):
        cine = (shared + own[i] + random.normal(0, 5, (FRAMES, 1, 24, 24))).clip(0)
        writers.write_series(
            tmp_path / "A17", cine.astype(np.uint16), name=name, ImagePositionPatient=None,
            SliceLocation=place, InstanceNumber=lambda t, z, i=i: 1 + t + FRAMES * i,
        )  # fmt: skip
    if is_read:
        (one,) = read(tmp_path)
        assert "the same slice again" in one.note
    else:
        assert "they do not look alike" in refusal(tmp_path).cause


def test_a_png_mask_of_255_alone_is_refused(tmp_path):
    """The layout ignores 255; drawn alone it is what somebody drew."""
    cine = (CINE[:, 0] // 5).astype(np.uint8)
    mask = np.zeros((16, 16), np.uint8)
    writers.write_png(tmp_path, "A17", cine, mask)
    assert read(tmp_path)[0].has_mvo is False
    mask[4:6, 4:7] = 255
    writers.write_png(tmp_path, "A17", cine, mask)
    error = refusal(tmp_path)
    assert "no other value than 255" in error.cause
    assert "255=mvo" in error.remedy
    mask[8, 8] = 2
    writers.write_png(tmp_path, "A17", cine, mask)
    assert read(tmp_path)[0].has_mvo


@pytest.mark.parametrize("within", [0, 1, 3])
def test_a_mask_whose_2_is_the_myocardium_is_refused(within, tmp_path):
    """As ACDC (3 within) and M&Ms (1 within) number a ventricle."""
    y, x = np.mgrid[:48, :48] - 24
    away = np.hypot(y, x)
    mask = np.zeros((2, 48, 48), np.uint8)
    mask[:, away < 12] = 2
    mask[:, away < 8] = within
    cine = np.random.default_rng(3).integers(1, 900, (FRAMES, 2, 48, 48)).astype(np.uint16)
    writers.write_nifti(tmp_path, "A17", cine, mask)
    assert "value 2, which is MVO, surrounds what lies within" in refusal(tmp_path).cause
    mask[:, :24] = 0  # half of it surrounds nothing
    writers.write_nifti(tmp_path, "A17", cine, mask)
    assert len(read(tmp_path)) == 2


@pytest.mark.parametrize("kind", ["npz", "nifti"])
def test_more_frames_than_rows_are_told(kind, tmp_path):
    cine = np.random.default_rng(3).integers(1, 250, (44, 40, 20)).astype(np.uint8)
    if kind == "npz":
        writers.write_npz(tmp_path, "A17", cine, None)
    else:
        writers.write_nifti(tmp_path, "A17", cine, None)
    assert "44 frames of 40x20 pixels: if these are exchanged" in read(tmp_path)[0].note


@pytest.mark.parametrize("name", ["masks.tar.gz", "masks.7z", "A.RAR", "b.tgz", "c.zip"])
def test_archives_beside_the_images_are_named(name, tmp_path, caplog):
    writers.write_nifti(tmp_path, "A17", CINE, None)
    (tmp_path / name).write_bytes(b"x")
    assert len(read(tmp_path)) == 2
    assert f"1 archives below {tmp_path} are not read: {name}; unpack them" in caplog.text


def test_pixels_that_are_no_whole_numbers_are_refused_by_name(tmp_path):
    for path in writers.write_series(tmp_path / "A17", CINE):
        image = pydicom.dcmread(path)
        image.FloatPixelData = image.pixel_array.astype(np.float32).tobytes()
        image.BitsAllocated = 32
        del image.PixelData, image.BitsStored, image.HighBit
        image.save_as(path)
    assert "has FloatPixelData, which no scanner writes" in refusal(tmp_path).cause


def test_a_leap_in_the_numbers_that_alone_order_the_phases_is_told(tmp_path):
    tags: dict[str, Any] = {"TriggerTime": None, "CardiacNumberOfImages": None}
    paths = writers.write_series(tmp_path / "A17", CINE, **tags)
    assert "may be missing" not in read(tmp_path)[0].note
    for path in paths:
        if pydicom.dcmread(path).InstanceNumber % FRAMES == 7:
            path.unlink()
    note = read(tmp_path)[0].note
    assert "a phase may be missing between InstanceNumber 6 and 8" in note
