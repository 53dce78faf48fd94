"""Refusals say the true cause, what headers order well is read, and what is doubtful is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataelem import RawDataElement
from pydicom.uid import UID

from mvo_jax.data.importers.png_layout import read_png
from mvo_jax.data.importers.sunnybrook import read_contours
from mvo_jax.data.importers.table import read_table
from mvo_jax.errors import UserError
from tests.data.importers import writers
from tests.data.importers.reading import (
    GRID,
    change,
    check_cine,
    check_masks,
    images,
    note,
    read,
    refusal,
    save,
)

FRAMES = 12
HEART = images(3)
CINE = HEART[:, :2]
OBLIQUE = (0.6, 0.74, -0.304, 0.309, -0.562, -0.767)
Write = Callable[[Path], Any]


def series(slices: int = 3, **tags: Any) -> Write:
    return lambda source: writers.write_series(source / "A17", HEART[:, :slices], **tags)


def some(value: Any, other: Any) -> Callable[[int, int], Any]:
    """A tag of the middle one of three slices."""
    return lambda t, z: other if z == 1 else value


def again(aside: int, slices: int = 3, **tags: Any) -> Write:
    """The cine and further images at its places."""

    def write(source: Path) -> None:
        series(slices)(source)
        writers.write_series(
            source / "A17", HEART[:, :slices] + np.uint16(aside), name="p",
            InstanceNumber=lambda t, z: 100 + t + FRAMES * z, **tags,
        )  # fmt: skip

    return write


def edited(
    edit: Callable[[Any], object] = lambda image: None, to: Any = None, **tags: Any
) -> Write:
    """The cine of which the files ``to`` (a slice) are changed."""
    return lambda source: change(series()(source)[to or slice(None)], edit, **tags)


def raw(tag: str, value: str) -> Write:
    """A value that the library would not write."""
    text = value.encode()

    def edit(image: Any) -> None:
        image[tag] = RawDataElement(image[tag].tag, "DS", len(text), text, 0, False, True)

    return edited(edit, slice(3, 4))


def eight_bits(image: Any) -> None:
    writers.set_pixels(image, image.pixel_array.astype(np.uint8))


def float_pixels(image: Any) -> None:
    image.FloatPixelData = image.pixel_array.astype(np.float32).tobytes()
    image.BitsAllocated = 32
    del image.PixelData, image.BitsStored, image.HighBit


def rounded(t: int, z: int) -> float:
    return 100.0 * (t // 2)


def rounded_tie(tie: int) -> Callable[[int, int], float]:
    """Two phases of one time; the numbers go on after them, so that neither is a repeat."""
    steps = np.arange(FRAMES) * 45.0
    steps[tie:] -= 45.0 - 15.0 * (np.arange(FRAMES - tie) > 0)
    return lambda t, z: float(steps[t])


def by_clock(first: float, step: float) -> Callable[[int, int], str]:
    """Seconds of the day; it passes midnight."""

    def clock(t: int, z: int) -> str:
        at = (first + step * t) % 86_400
        return f"{int(at // 3600):02d}{int(at // 60 % 60):02d}{at % 60:09.6f}"

    return clock


def whole_seconds(second: Callable[[int], int]) -> Callable[[int, int], str]:
    return lambda t, z: f"1000{second(t):02d}"


def with_zones(*zones: str) -> dict[str, Any]:
    """The clock was put back an hour after the fifth phase."""

    def clock(t: int, z: int) -> str:
        zone = zones[t > 5]
        hour = 13 if zone == "+0000" or not zone else 14
        return f"20200101{hour}00{10 + 0.04 * t:09.6f}{zone}"

    return {"TriggerTime": None, "AcquisitionDateTime": clock}


def scrambled(t: int, z: int) -> int:
    return 1 + (5 * t + 3) % FRAMES


NO_TIME: dict[str, Any] = {"TriggerTime": None, "CardiacNumberOfImages": None}
NO_PLACE: dict[str, Any] = {"ImagePositionPatient": [0, 0, 0], "SliceLocation": None}
ALTERNATING: dict[str, Any] = {"InstanceNumber": lambda t, z: 1 + 3 * t + z}
MIXED: dict[str, Any] = {"TriggerTime": lambda t, z: None if t % 4 == 1 else 40.0 * t}
SECONDS: dict[str, Any] = {
    "TriggerTime": None, "AcquisitionTime": whole_seconds(lambda t: 10 + t // 7)
}  # fmt: skip
MIDNIGHT: dict[str, Any] = {
    "TriggerTime": None, "InstanceNumber": 1, "AcquisitionTime": by_clock(86_399.8, 0.04)
}  # fmt: skip
REPEATS = "TriggerTime repeats within a slice"
NOT_A_NUMBER = "i00_003.dcm cannot be read as DICOM (ValueError: a number of the header"
AT_ZERO = "its ImagePositionPatient is 0, 0, 0: it may be several slices"
POSITION = "export the series again with ImagePositionPatient; else"

# What is written, words of the cause (... stands for anything), words of the remedy.
REFUSED: dict[str, tuple[Write, str] | tuple[Write, str, str]] = {
    "names": (series(PatientName=some("Doe^John", "Roe^Jane")), "differ in names: several people"),
    "births": (series(PatientBirthDate=some("19500101", "19600101")), "differ in dates of birth"),
    "variant": (series(SequenceVariant=some("SS", None)), "12 of 36 ... have no SequenceVariant"),
    "some spacing": (series(PixelSpacing=some([2, 2], None)), "12 of 36 ... have no PixelSpacing"),
    "orientation of some": (
        series(ImageOrientationPatient=some([1, 0, 0, 0, 1, 0], None)),
        "12 of 36 images of series 5 'cine_sax' have no ImageOrientationPatient",
        "ImageOrientationPatient",
    ),
    "position of some": (
        series(ImagePositionPatient=lambda t, z: [0, 0, 8 * z] if z else None),
        "12 of 36 images of series 5 'cine_sax' have no ImagePositionPatient",
        "ImagePositionPatient",
    ),
    "frame of reference of some": (
        series(FrameOfReferenceUID=some("1.2.9", None)),
        "12 of 36 images of series 5 'cine_sax' have no FrameOfReferenceUID",
        "FrameOfReferenceUID",
    ),
    "a projection": (
        series(ImageType=["DERIVED", "SECONDARY", "MIP"]), "no cine: 36 images of projections",
    ),
    "a mosaic": (series(ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]), "36 images of mosaics"),
    "all at 0": (
        series(ImagePositionPatient=[0, 0, 0], SliceLocation=0),
        "they do not look alike ... or two places",
    ),
    "one position, several locations": (
        series(ImagePositionPatient=[0, 0, 0]), "SliceLocation from 0 to 16 mm"
    ),
    "no position, slice by slice": (series(**NO_PLACE, **NO_TIME), "position (none, or 0, 0, 0)"),
    "no position, alternating": (
        series(**NO_PLACE, **NO_TIME, **ALTERNATING), "position (none, or 0, 0, 0)"
    ),
    "no position, by the clock": (
        series(
            **NO_PLACE, **NO_TIME, **ALTERNATING,
            AcquisitionTime=lambda t, z: f"100010.{40_000 * t + 12_000 * z:06d}",
        ),
        "position (none, or 0, 0, 0)",
    ),
    "at 0, 0, 0": (series(**NO_PLACE), AT_ZERO, POSITION),
    "at 0, 0, 0 and at once": (series(**NO_PLACE, TriggerTime=0.0), AT_ZERO, POSITION),
    "positions without orientation": (
        series(ImageOrientationPatient=None, SliceLocation=None),
        "ImageOrientationPatient is missing",
    ),
    "two spacings": (
        series(PixelSpacing=lambda t, z: [1.0 + (t > 5), 1.0 + (t > 5)]),
        "PixelSpacing: (1.0, 1.0) in 6 and (2.0, 2.0) in 6",
    ),
    "a tie at 1": (series(1, TriggerTime=rounded_tie(1), CardiacNumberOfImages=None), REPEATS),
    "a tie at 3": (series(1, TriggerTime=rounded_tie(3), CardiacNumberOfImages=None), REPEATS),
    "a tie at 5": (series(1, TriggerTime=rounded_tie(5), CardiacNumberOfImages=None), REPEATS),
    "rounded times, numbers that run backwards": (
        series(1, TriggerTime=rounded, InstanceNumber=lambda t, z: 50 - t),
        "TriggerTime",
        "not rounded",
    ),
    "whole seconds, numbers that run backwards": (
        series(**SECONDS, InstanceNumber=lambda t, z: 50 - t),
        "AcquisitionTime contradicts InstanceNumber",
    ),
    "some times, numbers that run backwards": (
        series(1, **MIXED, InstanceNumber=lambda t, z: 50 - t),
        "9 of 12 images have a TriggerTime, and it contradicts",
    ),
    "a series for each phase": (
        series(SeriesInstanceUID=lambda t, z: f"1.2.{50 + t}"), "", "export them as one series"
    ),
    "a decimal comma": (raw("TriggerTime", "40,5"), "'40,5'", "decimal point"),
    "a time of nan": (raw("TriggerTime", "nan"), NOT_A_NUMBER),
    "a position of nan": (raw("ImagePositionPatient", "nan\\nan\\nan"), NOT_A_NUMBER),
    "a spacing of nan": (raw("PixelSpacing", "nan\\nan"), NOT_A_NUMBER),
    "8 and 16 bits": (
        edited(eight_bits, slice(None, None, 2)), "differ in BitsAllocated: 8 in 6 and 16 in 6"
    ),
    "floats": (edited(float_pixels), "has FloatPixelData, which no scanner writes"),
    "bits at the top of 16, of which the low ones wrap around": (
        lambda f: change(
            writers.write_series(f / "A17", HEART << 8), BitsStored=12, HighBit=15
        ),
        "HighBit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_the_true_cause_and_remedy(name, tmp_path):
    write, cause, *remedy = REFUSED[name]
    write(tmp_path)
    error = refusal(tmp_path)
    assert all(words in error.cause for words in cause.split(" ... "))
    assert all(words in error.remedy for words in remedy)


# What is written, words of the note (None: there is none), words that are not in it.
READ: dict[str, tuple[Write, str | None] | tuple[Write, str, str]] = {
    "nothing odd": (series(NominalInterval=1000), None),
    "interpolated to half": (series(NominalInterval=1000, SliceThickness=16), None),
    "a beat of unknown length": (series(CardiacNumberOfImages=None), "taken for one"),
    "past midnight": (series(1, **MIDNIGHT), ""),
    "past midnight, dated": (
        series(1, **MIDNIGHT, AcquisitionDate=lambda t, z: f"2026010{1 + (t > 5)}"), ""
    ),
    "rounded times beside true ones": (
        series(1, TriggerTime=rounded, InstanceNumber=1, AcquisitionTime=by_clock(36_010, 45e-6)),
        "",
    ),
    "rounded times, numbers that run backwards, a clock": (
        series(
            1, TriggerTime=rounded, InstanceNumber=lambda t, z: 50 - t,
            AcquisitionTime=by_clock(36_010, 0.045),
        ),
        "",
    ),
    "dates": (series(1, **with_zones("", ""), InstanceNumber=1), ""),
    "zones": (series(1, **with_zones("+0100", "+0000"), InstanceNumber=1), ""),
    "dates, scrambled": (series(1, **with_zones("", ""), InstanceNumber=scrambled), ""),
    "zones, scrambled": (series(1, **with_zones("+0100", "+0000"), InstanceNumber=scrambled), ""),
    "a constant time beside that of each image": (
        series(
            TriggerTime=None, AcquisitionTime="101010", InstanceNumber=lambda t, z: 90 - t,
            AcquisitionDateTime=lambda t, z: f"2020010110{10 + z}10.{40 * t:03d}000",
        ),
        "",
    ),
    "one slice at 0, 0, 0": (series(1, **NO_PLACE), ""),
    "whole seconds": (series(**SECONDS), ""),
    "scanned one after another": (
        series(**SECONDS | {"AcquisitionTime": whole_seconds(lambda t: 10 + 4 * (t % 3))}),
        "which is not that of AcquisitionTime",
    ),
    "some times": (
        series(1, **MIXED, InstanceNumber=lambda t, z: 50 + t),
        "3 of 12 images have no TriggerTime: phases are in the order of Inst",
    ),
    "numbers alone": (
        series(TriggerTime=None, ContentTime="101010"),
        "nothing but InstanceNumber puts the phases of a slice in order",
        "may be missing",
    ),
    "numbers alone, uncounted": (series(**NO_TIME), "", "may be missing"),
    "derived": (series(ImageType=["DERIVED", "SECONDARY"]), "36 of 36 images are derived from oth"),
    "half a beat": (
        series(CardiacNumberOfImages=None, NominalInterval=960), "12 phases cover 480 ms of a beat"
    ),
    "most of a beat, as prospective gating leaves": (
        series(CardiacNumberOfImages=None, NominalInterval=600), "", "12 phases cover 480 ms of a"
    ),
    "a clock that waits for a beat": (
        series(
            1, **NO_TIME,
            AcquisitionTime=lambda t, z: f"100010.{30_000 * t + 45_000 * (t > 6):06d}",
        ),
        "a phase may be missing between 180 and 255 ms after the first",
    ),
    "all temporal positions": (
        series(CardiacNumberOfImages=None, NumberOfTemporalPositions=FRAMES),
        "",
        "NumberOfTemporalPositions",
    ),
    "fewer phases than temporal positions": (
        series(CardiacNumberOfImages=None, NumberOfTemporalPositions=20),
        "3 slices have fewer phases than NumberOfTemporalPositions says (12 at",
    ),
    "moves in its plane": (
        series(ImagePositionPatient=lambda t, z: [20.0 * (t > 5), 0, 8 * z]),
        "up to 20.0 mm beside one another",
    ),
    "a longer name": (series(PatientName=some("Doe^John", "DOE^JOHN^M")), ""),
    "an empty name": (series(PatientName=some("Doe^John", "")), ""),
    "a name of nobody": (series(PatientName=some("Doe", "ANON")), ""),
    # Their lengths are 0.99 and 0.98, which says nothing of how the images are turned.
    "two digits": (series(turn=(0.59, 0.73, -0.31, 0.31, -0.55, -0.76)), "", "turned"),
    "phase maps": (again(9, ImageType=["ORIGINAL", "PRIMARY", "P"]), "phase maps"),
    "velocities": (again(9, ComplexImageComponent="PHASE"), "phase maps"),
    "velocities by type": (again(9, ImageType=["ORIGINAL", "PRIMARY", "VELOCITY"]), "phase maps"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_is_in_order_is_read_and_what_is_doubtful_told(name, tmp_path):
    write, told, *untold = READ[name]
    write(tmp_path)
    slices = read(tmp_path)
    count = 1 + int(max(path.name[1:3] for path in (tmp_path / "A17").iterdir()))
    check_cine(slices, HEART[:, :count])
    assert {one.refusal for one in slices} == {None}
    assert (told or "") in slices[0].note
    assert told is not None or slices[0].note == ""
    assert not any(words in slices[0].note for words in untold)


@pytest.mark.parametrize("apart_ms", [0.0, 3.0, 8.0])
def test_a_slice_scanned_again_a_little_later(apart_ms, tmp_path):
    """The last whole scan is used and the other told, be its times equal or some ms later."""
    again(5, 2, TriggerTime=lambda t, z: 40.0 * t + apart_ms)(tmp_path)
    slices = read(tmp_path)
    check_cine(slices, CINE + 5)
    assert "the same slice again" in slices[0].note


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
    rows = ("cine patient_id label centre_row centre_column", "a.nii a 1 31,5 30")
    (tmp_path / "cases.csv").write_text("\n".join(rows).replace(" ", separator))
    with pytest.raises(UserError, match=r"(?s)line 2.*\n.*decimal point"):
        read_table(tmp_path / "cases.csv")


def test_decimal_commas_in_contours(tmp_path):
    folder = tmp_path / "i-contours"
    folder.mkdir()
    (folder / "IM-0001-0020-icontour-manual.txt").write_text("1,5 2,5\n3,5 4,5\n5,5 6,5\n")
    with pytest.raises(UserError, match=r"\n.*decimal point"):
        read_contours(tmp_path)


@pytest.mark.parametrize("flipped", [False, True])
def test_a_mask_on_the_grid_numbered_from_the_other_end(flipped, tmp_path):
    mask = np.zeros((2, 32, 32), np.uint8)
    mask[0, 4:9, 5:10], mask[1, 20:25, 12:17] = 2, 2
    writers.write_series(tmp_path / "A17", CINE.repeat(2, axis=2).repeat(2, axis=3))
    grid, values = GRID.copy(), mask
    if flipped:
        grid[2, 2], grid[2, 3], values = -8.0, 8.0, mask[::-1]
    save(tmp_path / "A17_lge_mask.nii.gz", values, grid)
    slices = read(tmp_path)
    check_masks(slices, mask)
    assert not any("another grid" in one.note for one in slices)


def test_loose_files_beside_the_folder_of_their_examination(tmp_path):
    for name, study in (("A", "1.2.1"), ("B", "1.2.2"), ("", "1.2.1")):
        writers.write_series(
            tmp_path / name, CINE, StudyInstanceUID=study, PatientID=name or "A",
            FrameOfReferenceUID=study,
        )  # fmt: skip
    notes = {one.case_id: one.note for one in read(tmp_path) if one.slice_index == 0}
    assert len(notes) == 3
    (told,) = [note for note in notes.values() if "same examination" in note]
    assert "beside A, which" in told


@pytest.mark.parametrize("part", ["cine", "lge_mask"])
def test_a_flipped_bit_of_a_packed_nifti(part, tmp_path):
    """Most flips leave a stream that unpacks to other values; the sum at its end says so."""
    cine = 4 * CINE.repeat(2, axis=2).repeat(2, axis=3)
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


@pytest.mark.parametrize(
    ("tag", "values"), [("PatientBirthDate", ("19500101", "19600101")), ("PatientSex", "FM")]
)
def test_two_people_of_one_number_in_a_folder(tag, values, tmp_path):
    for i, value in enumerate(values):
        person: dict[str, Any] = {tag: value, "SeriesInstanceUID": f"1.5.{i}"}
        writers.write_series(tmp_path / "A17", CINE, name=value, origin=(0, 0, 24.0 * i), **person)
    cause = refusal(tmp_path).cause
    assert "several people" in cause
    assert "19" not in cause.replace(str(tmp_path), "")  # what is compared is not shown


def test_axes_that_look_exchanged(tmp_path):
    cine = np.random.default_rng(0).integers(0, 900, (20, 9, 16, 24)).astype(np.uint16)
    np.savez(tmp_path / "a.npz", cine=cine)
    assert "20 slices of 9 frames" in note(tmp_path)
    np.savez(tmp_path / "a.npz", cine=cine.swapaxes(0, 1))
    assert "slices of" not in note(tmp_path)
    np.savez(tmp_path / "a.npz", cine=cine[:16, 0, :, :12].transpose(1, 0, 2))
    assert "looks like [H, W, T]" in refusal(tmp_path).cause
    (tmp_path / "a.npz").unlink()
    writers.write_nifti(tmp_path, "a", cine.swapaxes(0, 1), None)
    assert "20 slices of 9 frames" in note(tmp_path)


def test_people_of_one_number_and_other_names_are_two_patients(tmp_path):
    writers.write_series(tmp_path / "A", HEART, PatientName="Doe^John")
    writers.write_series(tmp_path / "B", HEART, PatientName="Roe^Jane", StudyInstanceUID="1.3")
    found = read(tmp_path)
    assert [one.patient_id for one in found] == ["A"] * 3 + ["B"] * 3
    assert "in 2 examinations of several people (names differ)" in found[0].note


@pytest.mark.parametrize("born", [False, True])
def test_a_name_that_changed_is_one_person_where_the_date_of_birth_is_one(born, tmp_path):
    tags: Any = {"PatientBirthDate": "19500101"} if born else {}
    for folder, name, study in (("A", "Doe^Jane", "1.2"), ("B", "Roe^Jane", "1.3")):
        tags |= {"PatientName": name, "StudyInstanceUID": study}
        writers.write_series(tmp_path / folder, HEART, **tags)
    assert {one.patient_id for one in read(tmp_path)} == ({"P1"} if born else {"A", "B"})


def turn_around(image: Any, *flips: int) -> None:
    """Rows, columns or both run the other way; the pixels stay."""
    axes = np.array(OBLIQUE).reshape(2, 3)
    signs = np.array([-1 if flip else 1 for flip in flips])[:, None]
    start = sum(30.0 * axis for axis, flip in zip(axes, flips, strict=True) if flip)
    image.ImageOrientationPatient = (signs * axes).ravel().tolist()
    position = np.array(image.ImagePositionPatient, float) + start
    image.ImagePositionPatient = [round(v, 6) for v in position]


@pytest.mark.parametrize("flips", [(1, 1), (1, 0), (0, 1)])
def test_a_slice_that_is_stored_turned_is_one_of_its_stack(flips, tmp_path):
    across, down = (slice(None, None, -1 if flip else 1) for flip in flips)

    def edit(image: Any) -> None:
        turn_around(image, *flips)
        image.SeriesInstanceUID, image.SeriesNumber = "1.2.4", 6
        writers.set_pixels(image, image.pixel_array[down, across].copy())

    writers.write_series(tmp_path / "straight" / "A17", HEART, turn=OBLIQUE)
    paths = writers.write_series(tmp_path / "turned" / "A17", HEART, turn=OBLIQUE)
    change(paths[FRAMES : 2 * FRAMES], edit)
    straight = np.stack([one.cine for one in read(tmp_path / "straight")], axis=1)
    assert straight.shape[1] == 3
    check_cine(read(tmp_path / "turned"), straight)


def test_phases_of_a_slice_that_are_turned_are_named(tmp_path):
    paths = writers.write_series(tmp_path / "A17", HEART, turn=OBLIQUE)
    change(paths[FRAMES : FRAMES + 5], lambda image: turn_around(image, 1, 1))
    first, second, third = [one.refusal for one in read(tmp_path)]
    assert first is third is None
    assert second is not None
    assert "5 of its 12 images are turned or mirrored" in second[0]


def test_folders_of_nobody_that_share_all_numbers_name_the_remedy(tmp_path):
    for name, cine in (("A", CINE), ("B", CINE[::-1])):
        writers.write_series(tmp_path / name, cine, PatientID="ANON")
    assert "if A, B are several patients, --patient_from=folder" in refusal(tmp_path).remedy


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


def test_a_directory_file_beside_the_folder_of_a_patient(tmp_path):
    (path, *_) = series(2)(tmp_path)
    image = pydicom.dcmread(path)
    image.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.1.3.10")
    for tag in ("Rows", "Columns", "PixelData"):
        del image[tag]
    image.save_as(tmp_path / "DICOMDIR")
    assert [one.case_id for one in read(tmp_path)] == ["A17_s00", "A17_s01"]


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
    cine, mask = CINE[:, 0].astype(np.uint8), np.zeros((16, 16), np.uint8)
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
    away = np.hypot(*(np.mgrid[:48, :48] - 24))
    mask = np.zeros((2, 48, 48), np.uint8)
    mask[:, away < 12] = 2
    mask[:, away < 8] = within
    cine = np.random.default_rng(3).integers(1, 900, (FRAMES, 2, 48, 48)).astype(np.uint16)
    writers.write_nifti(tmp_path, "A17", cine, mask)
    assert "value 2, which is MVO, surrounds what lies within" in refusal(tmp_path).cause
    mask[:, :24] = 0  # half of it surrounds nothing
    writers.write_nifti(tmp_path, "A17", cine, mask)
    assert len(read(tmp_path)) == 2


@pytest.mark.parametrize("write", [writers.write_npz, writers.write_nifti])
def test_more_frames_than_rows_are_told(write, tmp_path):
    cine = np.random.default_rng(3).integers(1, 250, (44, 40, 20)).astype(np.uint8)
    write(tmp_path, "A17", cine, None)
    assert "44 frames of 40x20 pixels: if these are exchanged" in note(tmp_path)


@pytest.mark.parametrize("name", ["masks.tar.gz", "masks.7z", "A.RAR", "b.tgz", "c.zip"])
def test_archives_beside_the_images_are_named(name, tmp_path, caplog):
    writers.write_nifti(tmp_path, "A17", CINE, None)
    (tmp_path / name).write_bytes(b"x")
    assert len(read(tmp_path)) == 2
    assert f"1 archives below {tmp_path} are not read: {name}; unpack them" in caplog.text


def test_a_leap_in_the_numbers_that_alone_order_the_phases_is_told(tmp_path):
    for path in series(**NO_TIME)(tmp_path)[6::FRAMES]:
        path.unlink()
    assert "a phase may be missing between InstanceNumber 6 and 8" in note(tmp_path)
