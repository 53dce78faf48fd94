"""DICOM as people met it: every image is used, or what became of it is said."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import UID

from mvo_jax.data.clips import open_source, read_clips
from mvo_jax.data.cohort.prepare import read_rejected
from mvo_jax.data.importers.cine import Options, RefusedSeries
from mvo_jax.data.importers.formats import choose_importer, load_series
from mvo_jax.data.slices import CineSlice, Rejected, Target
from mvo_jax.errors import UserError
from tests.data.importers import writers
from tests.data.importers.reading import change, check_cine, prepared, refusal

FRAMES, SLICES, SIZE = 12, 3, 20
CINE = np.random.default_rng(0).integers(1, 900, (FRAMES, SLICES, SIZE, SIZE)).astype(np.uint16)
OTHER = (1000 + CINE).astype(np.uint16)  # another scan of the same
SHORT_AXIS = writers.SHORT_AXIS
NORMAL = np.cross(SHORT_AXIS[:3], SHORT_AXIS[3:])
Write = Callable[[Path], object]


def read_all(source: Path, **options: Any) -> list[list[CineSlice]]:
    importer = choose_importer(source)
    assert importer.name == "dicom"
    given = Options(**options)
    return [load_series(importer.load, one, given) for one in importer.find(source, given)]


def read(source: Path, **options: Any) -> list[CineSlice]:
    """The slices of the one patient of a source."""
    (slices,) = read_all(source, **options)
    return slices


def total(slices: list[CineSlice]) -> dict[str, int]:
    out: dict[str, int] = {}
    for one in slices:
        for what, count in one.images.items():
            out[what] = out.get(what, 0) + count
    return out


def series(folder: Path, cine: np.ndarray = CINE, **tags: Any) -> list[Path]:
    return writers.write_series(folder / "anna", cine, **tags)


def of(cine: np.ndarray = CINE, **tags: Any) -> Write:
    return lambda folder: series(folder, cine, **tags)


def together(*writes: Write) -> Write:
    return lambda folder: [write(folder) for write in writes]


def clock(t: int, z: int) -> str:
    return f"10{z:02d}{0.04 * t + 5:09.6f}"


def turned(axis: int, degrees: float) -> list[float]:
    """Directions turned about the normal (2) or the columns (1)."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return [c, s, 0, -s, c, 0] if axis == 2 else [c, 0, -s, 0, 1, 0]


# What is written -> (what becomes of the images, words of the notes). All give CINE.
def copied(folder: Path) -> None:
    for path in series(folder):
        shutil.copy(path, path.with_name(f"{path.stem}(1).dcm"))


def echoes(**tags: Any) -> Write:
    """Two images a phase."""
    both = np.stack([CINE, OTHER], axis=1).reshape(2 * FRAMES, SLICES, SIZE, SIZE)
    timed: Any = {"CardiacNumberOfImages": FRAMES, "TriggerTime": lambda t, z: 40.0 * (t // 2)}
    return of(both, **timed, **tags)


# At another heart rate; the header does not count the phases.
second_acquisition = together(
    of(OTHER, AcquisitionNumber=1, CardiacNumberOfImages=None),
    of(
        name="b", AcquisitionNumber=2, CardiacNumberOfImages=None,
        TriggerTime=lambda t, z: 43.5 * t,
    ),
)  # fmt: skip
field_of_view_changed = together(
    of(CINE[:, :2], turn=SHORT_AXIS, SeriesInstanceUID="1.2.1"),
    of(
        CINE[:, 2:], turn=SHORT_AXIS, SeriesInstanceUID="1.2.2", name="b", pixel_mm=2.2,
        origin=NORMAL * 16,
    ),
)  # fmt: skip
axial_beside = together(
    of(turn=SHORT_AXIS),
    of(
        np.concatenate([OTHER] * 4, axis=1), name="tra", SeriesInstanceUID="1.2.9",
        SeriesDescription="cine_tra",
    ),
)  # fmt: skip


def tagging(**tags: Any) -> Write:
    """Between the slices of the cine."""
    return together(
        of(ScanningSequence="GR", SequenceVariant=["SK", "SS"]),
        of(OTHER, name="tag", SeriesInstanceUID="1.2.9", origin=(0, 0, 4), **tags),
    )


def series_in_folders(folder: Path) -> None:
    """One patient, a folder a series directly below the source."""
    axial_beside(folder)
    for path in sorted((folder / "anna").iterdir()):
        place = folder / ("601" if path.name.startswith("tra") else "801")
        place.mkdir(exist_ok=True)
        path.rename(place / path.name)
    (folder / "anna").rmdir()


def screenshots_first(folder: Path) -> None:
    """In each of the folders of one patient's series."""
    series_in_folders(folder)
    for place in ("601", "801"):
        add_screenshot(next(iter(sorted((folder / place).iterdir()))))
        (folder / place / "shot.dcm").rename(folder / place / "a.dcm")


def bare(**how: Any) -> Write:
    """A data set alone, without preamble and meta header, in files without ending."""

    def write(folder: Path) -> None:
        for path in series(folder):
            image = pydicom.dcmread(path)
            image.preamble, image.file_meta = None, type(image.file_meta)()
            path.unlink()
            pydicom.dcmwrite(path.with_suffix(""), image, enforce_file_format=False, **how)

    return write


def no_transfer_syntax(folder: Path, first: bytes = b"") -> None:
    """``first``: what the pixels begin with."""
    for path in series(folder):
        image = pydicom.dcmread(path)
        image.PixelData = first + image.PixelData[len(first) :]
        del image.file_meta.TransferSyntaxUID
        how: Any = {"implicit_vr": False, "little_endian": True}
        pydicom.dcmwrite(path, image, enforce_file_format=False, **how)


def add_screenshot(path: Path) -> None:
    """A colour image beside another."""
    image = pydicom.dcmread(path)
    image.SamplesPerPixel, image.PhotometricInterpretation = 3, "RGB"
    image.PlanarConfiguration, image.BitsAllocated, image.BitsStored, image.HighBit = 0, 8, 8, 7
    image.PixelData = bytes(SIZE * SIZE * 3)
    image.save_as(path.with_name("shot.dcm"))


USED = FRAMES * SLICES
BEATS = np.concatenate([CINE, OTHER, OTHER])
CLOCK: dict[str, Any] = {"AcquisitionTime": clock}  # every image says when it was scanned
SOUND: dict[str, tuple[Write, dict[str, int], str]] = {
    "copies": (copied, {"copies": USED}, "36 copies (same SOPInstanceUID)"),
    "exported twice with other UIDs": (
        together(of(), of(name="again")), {"copies": USED}, "12 copies (same time and pixels)",
    ),
    "one UID for all, an anonymiser's": (of(SOPInstanceUID="1.2.3"), {}, ""),
    "two echoes": (
        echoes(EchoNumbers=lambda t, z: 1 + t % 2),
        {"another echo": USED}, "EchoNumbers 2; 1 is used",
    ),
    "two echo times": (
        echoes(EchoTime=lambda t, z: 1 + t % 2), {"another echo": USED}, "EchoTime 2; 1 is used"
    ),
    # The second was ended after five phases; their times are not those of the first.
    "aborted acquisition": (
        together(
            of(AcquisitionNumber=1),
            of(
                OTHER[:5], name="b", AcquisitionNumber=2, CardiacNumberOfImages=FRAMES,
                TriggerTime=lambda t, z: 41.0 * t,
            ),
        ),
        {"repeats": 15}, "acquisition 2",
    ),
    "second acquisition": (second_acquisition, {"repeats": USED}, "2 is used"),
    "repeated without a number": (
        together(of(OTHER), of(name="b", InstanceNumber=lambda t, z: 100 + t + z * FRAMES)),
        {"repeats": USED}, "same slice again",
    ),
    # By 1e-4 mm, about places at which rounding to half a millimetre turns over.
    "positions that jitter": (
        of(ImagePositionPatient=lambda t, z: [0, 0, 8.25 + 8.0 * z + 1e-4 * (-1) ** t]), {}, ""
    ),
    "cosines that jitter": (
        of(ImageOrientationPatient=lambda t, z: turned(2, 0.9 * (z - 1))), {}, "turned by 1."
    ),
    "turned by 3 degrees": (
        of(ImageOrientationPatient=lambda t, z: turned(1, 3.0 * (z == 2))),
        {}, "turned by 3.0 degrees",
    ),
    "field of view changed": (field_of_view_changed, {}, "2 slices of 20x20 pixels of (2.0, 2.0)"),
    "tagging by name": (
        tagging(SeriesDescription="cine_tagging_3sl"), {"tagging": USED}, "tagging"
    ),
    "tagging by sequence": (
        tagging(ScanningSequence="GR", SequenceVariant="SP"),
        {"another kind of sequence": USED}, "kind of sequence",
    ),
    "axial beside the short axis": (
        axial_beside, {"another orientation": 4 * USED},
        "series 5 'cine_tra': 144 images left out, another orientation",
    ),
    "a folder a series": (series_in_folders, {"another orientation": 4 * USED}, "cine_tra"),
    # Still images at the places of the cine, one of them in a series that says nothing.
    "late enhancement": (
        together(
            of(),
            of(OTHER[:1], name="lge", SeriesInstanceUID="1.2.9", SeriesDescription="LGE_psir"),
            of(OTHER[:1, :1], name="x", SeriesInstanceUID="1.2.8", SeriesDescription="sax"),
        ),
        {"late enhancement": 3, "stills": 1}, "LGE_psir",
    ),
    "three beats": (
        of(BEATS, NominalInterval=480, CardiacNumberOfImages=36),
        {"later beats": 2 * USED}, "one beat of 480 ms",
    ),
    "three beats by the clock": (
        of(BEATS, TriggerTime=None, HeartRate=125, CardiacNumberOfImages=None, **CLOCK),
        {"later beats": 2 * USED}, "one beat of 480 ms",
    ),
    "a segmentation": (
        together(of(), of(OTHER[:, :1], name="s", SeriesInstanceUID="1.2.9", Modality="SEG")),
        {"of segmentations": FRAMES}, "",
    ),
    "screenshots first": (
        screenshots_first, {"another orientation": 4 * USED, "colour": 2},
        "a.dcm left out, a colour image",
    ),
    "clock without trigger": (
        of(TriggerTime=None, InstanceNumber=lambda t, z: (5 * t) % FRAMES, **CLOCK), {}, ""
    ),
    "no position": (
        of(ImagePositionPatient=None, ImageOrientationPatient=None), {}, "in order of SliceLocation"
    ),
    "bare, implicit": (bare(implicit_vr=True, little_endian=True), {}, ""),
    "bare, explicit": (bare(implicit_vr=False, little_endian=True), {}, ""),
    "no transfer syntax": (no_transfer_syntax, {}, ""),
    "a screenshot": (
        lambda f: add_screenshot(series(f)[0]), {"colour": 1}, "shot.dcm left out, a colour image"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_every_image_is_used_or_said_to_be_left_out(name, tmp_path):
    write, left, words = SOUND[name]
    write(tmp_path)
    slices = read(tmp_path)
    check_cine(slices, CINE)
    assert total(slices) == {"used": USED, **left}
    assert words in " ".join(one.note for one in slices)
    if not words:
        assert not any(one.note for one in slices)


def test_slices_of_two_fields_of_view_keep_their_own_spacing(tmp_path):
    field_of_view_changed(tmp_path)
    assert [one.pixel_mm for one in read(tmp_path)] == [(2.0, 2.0), (2.0, 2.0), (2.2, 2.2)]


def test_first_or_last_of_the_repeats(tmp_path):
    second_acquisition(tmp_path)
    check_cine(read(tmp_path, repeats="first"), OTHER)
    check_cine(read(tmp_path, repeats="last"), CINE)


# A slice that cannot be used does not stop the others
def three_series_at_one_place(folder: Path) -> None:
    series(folder, SeriesInstanceUID="1.2.1")
    for number, shift in ((6, 1), (7, 2)):
        series(
            folder, (CINE[:, :1] + shift).astype(np.uint16), name=f"n{number}",
            SeriesInstanceUID=f"1.2.{number}", SeriesNumber=number, SeriesDescription="again",
        )  # fmt: skip


def without(*files: int, **tags: Any) -> Write:
    def write(folder: Path) -> None:
        paths = series(folder, **tags)
        for file in files:
            paths[file].unlink()

    return write


@pytest.mark.parametrize(
    ("write", "which", "words"),
    [
        (three_series_at_one_place, 0, ["at 0.0 mm", "series 6 'again' (12 images)", "series 7"]),
        (without(24, 25), 2, ["[12, 12, 10] images", "12 are expected at 16.0 mm"]),
        (without(*range(24, 32)), 2, ["at 16.0 mm", "[4] images"]),
        (
            without(29, CardiacNumberOfImages=None),
            2,
            ["at 16.0 mm", "between TriggerTime 160 and 240"],
        ),
    ],
)
def test_sound_slices_stay(write, which, words, tmp_path):
    write(tmp_path)
    slices = read(tmp_path)
    assert [one.refusal is not None for one in slices] == [z == which for z in range(SLICES)]
    refusal = slices[which].refusal
    assert refusal is not None
    for word in words:
        assert word in refusal[0]
    sound = [z for z in range(SLICES) if z != which]
    check_cine([slices[z] for z in sound], CINE[:, sound])
    assert sum(total(slices).values()) == len(list((tmp_path / "anna").iterdir()))


@pytest.mark.parametrize(
    ("options", "shift"),
    [({"repeats": "last"}, 2), ({"repeats": "first"}, 0), ({"series": "6"}, 1)],
)
def test_a_choice_among_series(options, shift, tmp_path):
    three_series_at_one_place(tmp_path)
    slices = read(tmp_path, **options)
    assert np.array_equal(slices[0].cine, CINE[:, 0] + shift)
    assert total(slices)["used"] == FRAMES * len(slices)
    assert sum(total(slices).values()) == USED + 2 * FRAMES
    with pytest.raises(UserError, match="no series '8'; it has series 5 'cine_sax', series 6"):
        read(tmp_path, series="8")


# What cannot be read surely
def two_examinations(folder: Path) -> None:
    for study, name, cine in (("1.2.1", "A17", CINE), ("1.2.2", "B02", OTHER)):
        writers.write_series(
            folder / "export" / name, cine, StudyInstanceUID=study, PatientID="ANON",
            FrameOfReferenceUID=f"{study}.1", SeriesInstanceUID=f"{study}.5",
            origin=(0, 0, 3 * len(study)),
        )  # fmt: skip


NOISE = np.random.default_rng(1).integers(1, 900, (36, SLICES, SIZE, SIZE)).astype(np.uint16)
NOWHERE: dict[str, Any] = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
ACROSS: dict[str, Any] = {"turn": (0, 1, 0, 0, 0, -1), "SeriesInstanceUID": "1.2.9", "name": "b"}


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda f: two_examinations(f / "deep"), ["2 examinations", "'ANON'", "in A17", "in B02"]),
        (of(PatientID=lambda t, z: "ANNA" if z else "BERT"), ["2 patients: ANNA, BERT"]),
        (
            of(np.concatenate([CINE, OTHER]), CardiacNumberOfImages=FRAMES),
            ["24 phases", "CardiacNumberOfImages is 12", "several beats"],
        ),
        # The header knows of one beat, the images show three.
        (
            of(np.concatenate([CINE, CINE + 1, CINE])), ["3 heart beats", "no NominalInterval"]
        ),
        (
            of(NOISE, SeriesDescription="cine_realtime_sax"),
            ["36 phases over 1400 ms", "several beats"],
        ),
        # At the places between the slices of the cine, and nothing but its name differs.
        (
            together(
                of(),
                of(
                    OTHER, name="b", origin=(0, 0, 4), SeriesInstanceUID="1.2.9", SeriesNumber=8,
                    SeriesDescription="cine_myotag",
                ),
            ),
            ["'cine_sax'", "series 8 'cine_myotag'", "between one another"],
        ),
        # A view of another patient, without StudyInstanceUID.
        (
            together(
                of(StudyInstanceUID=None),
                of(OTHER[:, :1], PatientID="P2", StudyInstanceUID=None, **ACROSS),
            ),
            ["2 patients: P1, P2"],
        ),
        (
            of(**NOWHERE, SliceLocation=None),
            ["TriggerTime repeats", "3 images a phase", "SliceLocation"],
        ),
        (
            lambda f: change(series(f)[:5], ImagePositionPatient=None),
            ["5 of 36 images", "no ImagePositionPatient", "i00_000.dcm"],
        ),
        (echoes(), ["2 images a phase", "series 5 'cine_sax'"]),  # no header says what differs
        (
            together(of(), of(OTHER, SeriesNumber=8, SeriesDescription="other", **ACROSS)),
            ["none is plainly the short axis", "series 5 'cine_sax'", "series 8 'other'"],
        ),
        (of(SeriesDescription="SAX grid"), ["no cine", "36 images of tagging"]),
        # Compressed pixels begin so.
        (
            lambda f: no_transfer_syntax(f, b"\xfe\xff\x00\xe0"), ["no transfer syntax", ".dcm"]
        ),
    ],
)  # fmt: skip
def test_what_is_not_sure_is_refused_by_name(write, words, tmp_path):
    write(tmp_path)
    with pytest.raises(UserError) as refusal:
        read(tmp_path)
    for word in words:
        assert word in refusal.value.cause
    if isinstance(refusal.value, RefusedSeries):
        assert refusal.value.images == sum(p.is_file() for p in tmp_path.rglob("*"))


def test_two_patients_in_folders_with_one_name_in_their_headers(tmp_path):
    two_examinations(tmp_path)
    slices = read_all(tmp_path / "export")
    assert [{one.patient_id for one in them} for them in slices] == [{"A17"}, {"B02"}]
    assert "PatientID 'ANON' names nobody" in slices[0][0].note


# Enhanced MR
def test_slopes_of_the_frames(tmp_path):
    slope = np.where(np.arange(FRAMES) < 6, 0.25, 0.5)[:, None, None, None]
    stored = np.round(CINE / slope).astype(np.uint16)
    path = writers.write_enhanced(tmp_path, "anna", stored) / "multi.dcm"
    image = pydicom.dcmread(path)
    for group, t in zip(
        image.PerFrameFunctionalGroupsSequence, np.repeat(range(FRAMES), SLICES), strict=True
    ):
        step = pydicom.Dataset()
        step.RescaleSlope, step.RescaleIntercept, step.RescaleType = slope[t].item(), 3.0, "US"
        group.PixelValueTransformationSequence = pydicom.Sequence([step])
    image.save_as(path)
    check_cine(read(tmp_path), CINE[:, ::-1] + 3)
    del image.PerFrameFunctionalGroupsSequence[4].PixelValueTransformationSequence
    image.save_as(path)
    with pytest.raises(UserError, match="1 of its 36 frames have no RescaleSlope"):
        read(tmp_path)


def test_enhanced_slices_of_one_position_are_no_repeats(tmp_path):
    path = writers.write_enhanced(tmp_path, "anna", CINE) / "multi.dcm"
    image = pydicom.dcmread(path)
    for group in image.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 0]
    image.save_as(path)
    with pytest.raises(UserError, match=f"{SLICES} InStackPositionNumbers"):
        read(tmp_path)


@pytest.mark.parametrize("where", ["PerFrame", "Shared"])
@pytest.mark.parametrize("order", ["trigger", "instance"])
def test_one_enhanced_image_a_file(order, where, tmp_path):
    times: dict[str, Any] = {"TriggerTime": None} if order == "instance" else {"InstanceNumber": 1}
    for path in series(tmp_path, **times):
        image = pydicom.dcmread(path)
        group = pydicom.Dataset()
        for sequence, name in (
            ("PlanePositionSequence", "ImagePositionPatient"),
            ("PlaneOrientationSequence", "ImageOrientationPatient"),
            ("PixelMeasuresSequence", "PixelSpacing"),
        ):
            item = pydicom.Dataset()
            setattr(item, name, image[name].value)
            setattr(group, sequence, pydicom.Sequence([item]))
            delattr(image, name)
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = UID(writers.ENHANCED_MR)
        image.NumberOfFrames = 1
        setattr(image, f"{where}FunctionalGroupsSequence", pydicom.Sequence([group]))
        image.save_as(path)
    check_cine(read(tmp_path), CINE)


@pytest.mark.parametrize(
    ("order", "by"),
    [
        ("delay", "phase"), ("trigger", "phase"), ("instance", "phase"),
        ("delay", "slice"), ("instance", "slice"),
    ],
)  # fmt: skip
def test_one_enhanced_file_a_phase_or_a_slice(order, by, tmp_path):
    """Several files of several frames; times in the groups, at the top level, or only numbers."""
    count = FRAMES if by == "phase" else SLICES
    for n in range(count):
        part = CINE[n : n + 1] if by == "phase" else CINE[:, n : n + 1]
        path = writers.write_enhanced(tmp_path / "parts" / f"{(5 * n) % count}", "anna", part)
        image = pydicom.dcmread(path / "multi.dcm")
        image.InstanceNumber = n + 1
        if order == "trigger":
            image.TriggerTime = 30.0 * n
        for group in image.PerFrameFunctionalGroupsSequence:
            del group.FrameContentSequence[0].TemporalPositionIndex
            if order != "delay":
                del group.CardiacSynchronizationSequence
            elif by == "phase":
                times = group.CardiacSynchronizationSequence[0]
                times.NominalCardiacTriggerDelayTime = 30.0 * n
            if by == "slice":
                group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, -8.0 * n]
        (tmp_path / "anna").mkdir(exist_ok=True)
        image.save_as(tmp_path / "anna" / f"{(5 * n) % count:02d}.dcm")
    shutil.rmtree(tmp_path / "parts")
    check_cine(read(tmp_path), CINE[:, ::-1])


# Where little is said
def in_motion(slices: int, frames: int, seed: int = 0) -> np.ndarray:
    """Slices that differ, each a disc that beats once; ``[T, Z, H, W]``."""
    draws = np.random.default_rng(seed)
    still = draws.integers(0, 500, (slices, SIZE, SIZE))
    at = np.hypot(*(np.mgrid[:SIZE, :SIZE] - SIZE / 2 + 0.5))
    radius = 5 + 2 * np.cos(2 * np.pi * np.arange(frames) / frames)
    disc = 200 * np.clip(radius[:, None, None] - at, 0, 1)[:, None]
    return (still + disc + draws.integers(0, 15, (frames, slices, SIZE, SIZE))).astype(np.uint16)


def bare_series(folder: Path, order: Callable[[int, int], int], slices: int, **tags: Any) -> None:
    """Nothing but InstanceNumber says what is what."""
    said = {"SliceLocation": None, "TriggerTime": None, "CardiacNumberOfImages": None}
    series(folder, in_motion(slices, FRAMES), InstanceNumber=order, **NOWHERE, **said, **tags)


@pytest.mark.parametrize(
    ("order", "tags"),
    [
        (lambda t, z: t + z * FRAMES, {}),
        (lambda t, z: z + t * SLICES, {}),
        (lambda t, z: t + z * FRAMES, {"AcquisitionNumber": lambda t, z: z}),
        (lambda t, z: t + z * FRAMES, {"SeriesInstanceUID": lambda t, z: f"1.2.{z}"}),
    ],
    ids=["by slice", "by phase", "acquisition", "series"],
)
def test_several_slices_without_a_place_are_never_one(order, tags, tmp_path):
    bare_series(tmp_path, order, SLICES, **tags)
    refusal(tmp_path)


def test_one_slice_without_a_place_is_read_and_told(tmp_path):
    bare_series(tmp_path, lambda t, z: t, 1)
    (one,) = read(tmp_path)
    assert np.array_equal(one.cine, in_motion(1, FRAMES)[:, 0])
    assert "taken as one slice" in one.note


def test_beats_of_uneven_length_are_seen(tmp_path):
    """2.2 s, no interval, no count: under the three seconds that no beat lasts."""
    disc = in_motion(SLICES, 60)
    uneven = np.concatenate([disc[np.arange(n) * 60 // n] for n in (15, 11, 18)])
    series(tmp_path, uneven, CardiacNumberOfImages=None, TriggerTime=lambda t, z: 50.0 * t)
    assert "3 heart beats" in refusal(tmp_path).cause
    shutil.rmtree(tmp_path / "anna")
    series(tmp_path, in_motion(SLICES, 44), CardiacNumberOfImages=None)
    assert len(read(tmp_path)) == SLICES


# Whose it is
def examinations(folder: Path, *people: dict[str, Any]) -> None:
    for k, tags in enumerate(people):
        whole = {"StudyInstanceUID": f"1.2.{k}", "FrameOfReferenceUID": f"1.2.{k}.1", **tags}
        writers.write_series(folder / ("A17", "B02")[k], CINE, **whole)


@pytest.mark.parametrize(
    ("people", "patients", "words"),
    [
        (
            ({"PatientBirthDate": "19500101"}, {"PatientBirthDate": "19610203"}),
            "A17 B02", "several",
        ),
        (({"PatientSex": "M"}, {"PatientSex": "F"}), "A17 B02", "people"),
        (({"PatientSex": "M"}, {"PatientSex": "M"}), "P1 P1", "taken for granted"),
        (({}, {"PatientBirthDate": "19500101"}), "P1 P1", "P1' is in 2 examinations"),
    ],
)  # fmt: skip
def test_one_ordinary_name_in_two_examinations(people, patients, words, tmp_path):
    examinations(tmp_path, *people)
    slices = read_all(tmp_path)
    assert [them[0].patient_id for them in slices] == patients.split()
    assert all(words in them[0].note for them in slices)


def test_a_wrapper_folder_of_patients_without_names(tmp_path):
    examinations(tmp_path / "source" / "export", {"PatientID": "ANON"}, {"PatientID": "ANON"})
    slices = read_all(tmp_path / "source")
    assert [them[0].patient_id for them in slices] == ["A17", "B02"]


# What the commands say
TARGET = Target(FRAMES, 16, 2.0)


@pytest.mark.parametrize("jobs", [1, 2])
def test_prepare_says_what_became_of_all_images(jobs, tmp_path, caplog):
    caplog.set_level(logging.INFO, "mvo_jax")
    source = tmp_path / "source"
    copied(source)
    add_screenshot(source / "anna" / "i00_000.dcm")
    other = CINE[:, :, :, ::-1]  # equal images of two patients are refused
    writers.write_series(source / "bert", other, PatientID="BERT", StudyInstanceUID="1.9")
    incomplete = sorted((source / "bert").iterdir())
    incomplete[-1].unlink()
    writers.write_series(source / "cleo", CINE[:3], PatientID="CLEO", StudyInstanceUID="1.10")
    cohort = prepared(source, tmp_path / "out", TARGET, jobs=jobs)
    assert "117 images: 60 used, 36 copies, 20 of rejected cases, 1 colour" in caplog.text
    notes = {case: row["note"] for case, row in cohort.manifest().items()}
    assert "36 copies" in notes["anna_s00"]
    assert "shot.dcm" in notes["anna_s00"]
    assert notes["anna_s01"] == notes["bert_s00"] == ""
    assert [row["case_id"] for row in read_rejected(cohort.path)] == ["bert_s02", "cleo"]
    with pytest.raises(UserError, match=r"12 are expected at 16\.0 mm"):
        prepared(source, tmp_path / "strict", TARGET, strict=True)


def test_inspect_and_predict_say_it_too(tmp_path, caplog):
    caplog.set_level(logging.INFO, "mvo_jax")
    copied(tmp_path / "source")
    (tmp_path / "source" / "anna" / "i02_003(1).dcm").unlink()
    source, scratch = tmp_path / "source", tmp_path / "scratch"
    opened = open_source(source, form="auto", options=Options(), scratch=scratch)
    found = list(read_clips(opened, TARGET))
    assert [isinstance(one, Rejected) for one in found] == [False] * SLICES
    assert "71 images: 36 used, 35 copies" in caplog.text
    assert "35 copies (same SOPInstanceUID) left out" in caplog.text
