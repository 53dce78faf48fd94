"""Exports in which one image, series or file is of another kind than the others."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from mvo_jax.data.clips import open_source, read_clips
from mvo_jax.data.importers.cine import Options
from mvo_jax.data.importers.formats import choose_importer, load_series
from mvo_jax.data.slices import Target
from mvo_jax.errors import UserError
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
)  # fmt: skip

FRAMES, SLICES, SIZE = 10, 3, 16
CINE, OTHER = images(SLICES, FRAMES), images(SLICES, FRAMES, seed=1)
DRAWN = np.ones((SLICES, SIZE, SIZE), np.uint8)
DRAWN[1, 6, 4] = 2


def beside(source: Path, cine: np.ndarray, name: str, at: float = 0, **tags: Any) -> list[Path]:
    """Another series in the folder of the cine, ``at`` mm above it."""
    tags = {"SeriesInstanceUID": "1.2.9", "SliceLocation": lambda t, z: at + 8 * z} | tags
    return writers.write_series(source / "A17", cine, name=name, origin=(0, 0, at), **tags)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"PhotometricInterpretation": "MONOCHROME1"}, "4 of its 10 images are MONOCHROME1"),
        ({"RescaleSlope": 2, "RescaleIntercept": 0}, "4 of its 10 images have a RescaleSlope"),
        ({"RescaleIntercept": -1024}, "4 of its 10 images have a RescaleSlope"),
        ({"RescaleSlope": 1, "RescaleIntercept": 0}, ""),
    ],
)
def test_greys_of_some_phases_on_another_scale(tags, words, tmp_path):
    paths = writers.write_series(tmp_path / "A17", CINE)
    change([path for i, path in enumerate(paths) if i % FRAMES < 4], **tags)
    if words:
        assert words in refusal(tmp_path).cause
    else:
        check_cine(read(tmp_path), CINE)


@pytest.mark.parametrize("kind", ["R", "I", "REAL"])
def test_real_and_imaginary_parts_are_no_cine(kind, tmp_path):
    """They follow the magnitude as a repeat would, or lie beside it as further slices."""
    writers.write_series(tmp_path / "A17", CINE)
    for name, z in (("part", 0.0), ("beside", 24.0)):
        beside(
            tmp_path, 4095 - CINE, name, z, ImageType=["ORIGINAL", "PRIMARY", kind],
            InstanceNumber=lambda t, z: 500 + t + FRAMES * z, SliceLocation=None,
            SeriesInstanceUID="1.2.3",
        )  # fmt: skip
    slices = read(tmp_path)
    check_cine(slices, CINE)
    assert slices[0].images["real or imaginary parts"] == 2 * CINE[..., 0, 0].size


@pytest.mark.parametrize("component", ["REAL", "IMAGINARY"])
def test_real_and_imaginary_frames_of_an_enhanced_file(component, tmp_path):
    both = np.concatenate([CINE, 4095 - CINE])
    path = writers.write_enhanced(tmp_path, "A17", both) / "multi.dcm"
    data = pydicom.dcmread(path)
    half = len(data.PerFrameFunctionalGroupsSequence) // 2
    for i, group in enumerate(data.PerFrameFunctionalGroupsSequence):
        kind = pydicom.Dataset()
        kind.FrameType = ["ORIGINAL", "PRIMARY", "CARDIAC", "NONE"]
        kind.ComplexImageComponent = "MAGNITUDE" if i < half else component
        group.MRImageFrameTypeSequence = pydicom.Sequence([kind])
        time = group.CardiacSynchronizationSequence[0]
        time.NominalCardiacTriggerDelayTime %= 30.0 * FRAMES
        group.FrameContentSequence[0].TemporalPositionIndex = 1
    data.save_as(path)
    check_cine(read(tmp_path), CINE[:, ::-1])  # written from the other end


def test_a_localiser_that_crosses_one_slice_takes_no_drawing(tmp_path):
    """It lies as the short axis does, and at one slice of the cine."""
    writers.write_series(tmp_path / "A17", CINE)
    beside(
        tmp_path, np.zeros((1, 5, 32, 32), np.uint16), "scout", step_mm=5.0, pixel_mm=3.0,
        SliceLocation=lambda t, z: z * 5.0, SeriesNumber=1, SeriesDescription="localizer",
    )  # fmt: skip
    save(tmp_path / "A17_lge_mask.nii.gz", DRAWN, np.diag([-2.0, -2.0, 9.0, 1.0]))
    slices = read(tmp_path)
    assert [one.case_id for one in slices] == ["A17_s00", "A17_s01", "A17_s02"]
    assert [one.refusal for one in slices] == [None] * SLICES
    assert [one.has_mvo for one in slices] == [False, True, False]
    assert slices[0].images["stills"] == 5


@pytest.mark.parametrize(("at", "slices"), [(9.5, 1), (12.0, 1), (4.0, SLICES)])
def test_slices_scanned_again_a_little_aside_are_told(at, slices, tmp_path):
    """One of them, or a second stack between the slices of the first."""
    writers.write_series(tmp_path / "A17", CINE)
    beside(tmp_path, OTHER[:, :slices], "again", at, SeriesNumber=7 if slices == 1 else 5)
    found = read(tmp_path)
    assert len(found) == SLICES + slices
    low, high = sorted((at, 8.0 if slices == 1 else 0.0))
    assert f"the slices at {low} mm and {high} mm are 8 mm thick and lie in" in found[0].note


@pytest.mark.parametrize(
    ("tags", "kind"),
    [
        ({"SeriesDescription": "cine_sax_pc venc150"}, "flow"),
        ({"SeriesDescription": "DENSE_sax"}, "strain encoding"),
        ({"Modality": "CT"}, "modality CT"),
        ({"SeriesDescription": "cine_sax_base"}, None),
    ],
)
def test_a_series_that_goes_on_where_the_stack_ends_is_named(tags, kind, tmp_path):
    writers.write_series(tmp_path / "A17", CINE)
    beside(tmp_path, OTHER, "on", 24, **tags)
    slices = read(tmp_path)
    if kind is None:
        assert len(slices) == 2 * SLICES
        assert "series of several names: series 5 'cine_sax', series 5 'cine_" in slices[0].note
    else:
        assert len(slices) == SLICES
        assert slices[0].images[kind] == FRAMES * SLICES


def test_a_slice_of_more_phases_than_its_headers_state_is_told(tmp_path):
    tags: dict[str, Any] = {"NominalInterval": 1000, "CardiacNumberOfImages": FRAMES}
    writers.write_series(tmp_path / "A17", CINE, **tags)
    writers.write_series(tmp_path / "A17", OTHER[:1, :1], name="other", TriggerTime=45.0, **tags)
    said = f"1 slices have more phases than CardiacNumberOfImages says ({FRAMES + 1} at 0.0 mm"
    assert said in note(tmp_path)


def test_a_part_of_a_concatenation_that_is_missing_is_told(tmp_path):
    path = writers.write_enhanced(tmp_path, "A17", CINE) / "multi.dcm"
    content = path.read_bytes()
    path.unlink()
    for here, total in ((1, 1), (2, 3)):
        for number in range(1, here + 1):
            image = pydicom.dcmread(io.BytesIO(content))
            image.ConcatenationUID, image.SOPInstanceUID = "1.2.3", f"1.2.3.{number}"
            image.InConcatenationNumber, image.InConcatenationTotalNumber = number, total
            for frame in image.PerFrameFunctionalGroupsSequence:
                frame.PlanePositionSequence[0].ImagePositionPatient[2] -= 100 * (number - 1)
            image.save_as(path.with_name(f"{number}.dcm"))
        told = f"{here} of {total} parts of a concatenation" in note(tmp_path)
        assert told is (here < total)


def test_without_positions_images_are_still_turned(tmp_path):
    writers.write_series(tmp_path / "true", CINE, NominalInterval=1000)
    lost = np.flip(CINE.swapaxes(-1, -2), -1).copy()  # its columns run to anterior
    writers.write_series(
        tmp_path / "lost", lost, turn=(0, -1, 0, 1, 0, 0), ImagePositionPatient=None,
        NominalInterval=1000,
    )  # fmt: skip
    (tmp_path / "source").mkdir()
    for name in ("true", "lost"):
        (tmp_path / "source" / "A17").symlink_to(tmp_path / name)
        slices = read(tmp_path / "source")
        check_cine(slices, CINE)
        assert slices[0].orientation_rule == (1 if name == "true" else 3)
        assert ("positions are missing" in slices[0].note) is (name == "lost")
        (tmp_path / "source" / "A17").unlink()


def test_a_position_that_contradicts_slice_locations_is_told(tmp_path):
    writers.write_series(
        tmp_path / "A17", CINE, NominalInterval=1000, SliceLocation=lambda _, z: 40 + 8 * z,
        ImagePositionPatient=lambda _, z: [0, 0, 0] if z == 1 else [-40, -30, 40 + 8 * z],
    )  # fmt: skip
    assert "another order than ImagePositionPatient" in note(tmp_path)


def test_every_part_of_the_mvo_keeps_a_pixel(tmp_path):
    """Drawn on voxels of a quarter of a pixel, none of which is nearest to a pixel's middle."""
    writers.write_series(tmp_path / "A17", CINE, NominalInterval=1000)
    fine = np.ones((SLICES, 4 * SIZE, 4 * SIZE), np.uint8)
    fine[1, 8:16, 8:16] = 2
    fine[1, 32, 40] = fine[1, 48, 48] = 2
    grid = GRID @ np.diag([0.25, 0.25, 1, 1])
    grid[:2, 3] = 0.75  # the corners of both lie in one place
    save(tmp_path / "A17_lge_mask.nii.gz", fine, grid)
    mask = read(tmp_path)[1].lge_mask
    assert mask is not None
    assert (mask[2:4, 2:4] == 2).all()
    assert (mask[8, 10], mask[12, 12]) == (2, 2)
    assert (mask == 2).sum() == 6


def test_a_packed_image_is_told(tmp_path):
    writers.write_series(tmp_path / "A17", CINE, NominalInterval=1000)
    (tmp_path / "A17" / "x.dcm.gz").write_bytes(b"packed")
    assert note(tmp_path).startswith("1 files are packed")


@pytest.mark.parametrize("what", ["mask", "pixels"])
def test_images_of_a_patient_whose_mask_or_pixels_are_bad_are_counted(what, tmp_path, caplog):
    caplog.set_level(logging.INFO, "mvo_jax")
    writers.write_series(tmp_path / "A17", CINE, PatientID="A", StudyInstanceUID="1.5")
    paths = writers.write_series(tmp_path / "B02", OTHER)
    if what == "mask":
        save(tmp_path / "B02_lge_mask.nii.gz", DRAWN * 0.5)
    else:
        change(paths[3:4], PixelData=bytes(2 * SIZE * SIZE - 20))
    opened = open_source(tmp_path, form="auto", options=Options(), scratch=tmp_path / "scratch")
    list(read_clips(opened, Target(FRAMES, SIZE, 2.0)))
    assert "60 images: 30 used, 30 of rejected cases" in caplog.text


@pytest.mark.parametrize("drawn_in", ["P1", "P2"])
def test_a_mask_is_of_none_of_two_cines_of_one_name(drawn_in, tmp_path):
    """The folder may be meant to say whose it is, or the name: another patient's label is worse."""
    for folder, cine in (("P1", CINE), ("P2", OTHER)):
        save(tmp_path / folder / "sax_cine.nii.gz", cine)
    save(tmp_path / drawn_in / "sax_lge_mask.nii.gz", DRAWN)
    importer = choose_importer(tmp_path)
    found = list(importer.find(tmp_path, Options()))
    assert len(found) == 2
    for series in found:
        with pytest.raises(UserError, match="one of 2 cines of case 'sax'"):
            load_series(importer.load, series, Options())


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_a_mask_whose_header_counts_in_other_units(unit, tmp_path):
    """Written with the numbers of the cine and without its unit, all labels would meet in a pixel.

    The rows of a mask so small lie in one pixel of the cine, those of a large one cover all.
    """
    save(tmp_path / "A17_cine.nii.gz", CINE)
    grid = GRID.copy()
    grid[:3, :2] *= unit
    save(tmp_path / "A17_lge_mask.nii.gz", DRAWN, grid)
    assert f"pixels have sides of {2 * unit:g} and {2 * unit:g} mm" in refusal(tmp_path).cause
