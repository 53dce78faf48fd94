"""Every drawing lands on a slice of the cine or is named; names that slip are named too."""

import gzip
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from mvo_jax.data.checks import Inspection
from mvo_jax.data.clips import open_source, read_clips
from mvo_jax.data.cohort.partition import Partition
from mvo_jax.data.cohort.prepare import prepare, read_rejected
from mvo_jax.data.importers.cine import Options
from mvo_jax.data.importers.table import read_table
from mvo_jax.data.slices import CineSlice, Clip, Rejected, Target
from mvo_jax.errors import UserError
from tests.data.importers import writers
from tests.data.importers.reading import (
    BEAT,
    MVO_RING,
    RING,
    check_cine,
    check_masks,
    note,
    prepared,
    read,
    refusal,
)

FRAMES, SIZE, PIXEL_MM = 10, 32, 2.0
TARGET = Target(FRAMES, SIZE, PIXEL_MM)


def stack(count: int, seed: int = 1) -> np.ndarray:
    """``[T, Z, H, W]``, slices that differ more than their phases."""
    noise = np.random.default_rng(seed).integers(0, 100, (count, SIZE, SIZE), np.uint8)
    return BEAT[:, None] // 2 + noise


def drawings(count: int, *with_mvo: int) -> np.ndarray:
    """``[Z, H, W]``."""
    return np.stack([MVO_RING if z in with_mvo else RING for z in range(count)])


def save(
    path: Path, array: np.ndarray, first_mm: float = 0.0, step_mm: float = 8.0, **more: Any
) -> None:
    """``[T, Z, H, W]`` or ``[Z, H, W]``; the first slice lies at ``first_mm``."""
    affine = writers.affine(more.get("pixel_mm", PIXEL_MM), step_mm)
    affine[:3, 3] = [*more.get("corner", (0.0, 0.0)), first_mm]
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.T, affine), path)


def labels(slices: list[CineSlice]) -> list[int | None]:
    """1 MVO, 0 something else, None nothing drawn."""
    return [
        None if s.lge_mask is None or not s.lge_mask.any() else int(bool(s.has_mvo)) for s in slices
    ]


def mask_of(slices: list[CineSlice]) -> np.ndarray:
    (one,) = slices
    assert one.lge_mask is not None
    return one.lge_mask


def rejected(source: Path, out: Path) -> list[dict[str, str]]:
    """Prepare a source; the rows of ``rejected.csv``."""
    return read_rejected(prepared(source, out, TARGET).path)


# Slices
@pytest.mark.parametrize("form", ["nifti", "dicom"])
@pytest.mark.parametrize(
    ("first_mm", "lands_on"),
    [
        (0.0, lambda k: {k}),
        (3.0, lambda k: {k}),
        (-3.0, lambda k: {k}),
        (3.9, lambda k: {k, k + 1}),  # within 5 % of 8 mm
        (4.0, lambda k: {k, k + 1}),
        (4.1, lambda k: {k, k + 1}),
        (4.3, lambda k: {k + 1}),
        (-4.0, lambda k: {k - 1, k}),
    ],
)
def test_lge_between_the_slices_goes_to_the_nearer_or_to_both(form, first_mm, lands_on, tmp_path):
    """Drawn in one slice of five alone, whichever it is, MVO has its slices and no others."""
    if form == "nifti":
        save(tmp_path / "a_cine.nii.gz", stack(6))
    else:
        writers.write_dicom(tmp_path, "a", stack(6), None, step_mm=8.0, PatientName="x")
    for k in range(5):
        save(tmp_path / "a_lge_mask.nii.gz", drawings(5, k), first_mm)
        slices = read(tmp_path)
        expected = {z for z in lands_on(k) if z >= 0}
        assert {z for z, label in enumerate(labels(slices)) if label == 1} == expected
        assert slices[0].unplaced == ()


def test_lge_with_gaps_and_thin_lge(tmp_path):
    save(tmp_path / "a_cine.nii.gz", stack(5))
    # Every other slice: those between get both neighbours' drawings.
    save(tmp_path / "a_lge_mask.nii.gz", drawings(3, 1), step_mm=16.0)
    assert labels(read(tmp_path)) == [0, 1, 1, 1, 0]
    # Twice as many: none is passed over.
    for k, expected in ((3, {1, 2}), (4, {2}), (8, {4})):
        save(tmp_path / "a_lge_mask.nii.gz", drawings(9, k), step_mm=4.0)
        assert {z for z, one in enumerate(labels(read(tmp_path))) if one == 1} == expected


def test_where_drawings_meet_mvo_comes_before_infarct_before_myocardium(tmp_path):
    save(tmp_path / "a_cine.nii.gz", stack(3))
    values = np.zeros((2, SIZE, SIZE), np.uint8)
    values[0, 10, :], values[1, :, 10] = 3, 1
    values[0, 10:20, 20], values[1, 15, :], values[1, 10, 25] = 2, 3, 2
    save(tmp_path / "a_lge_mask.nii.gz", values, 4.0)
    middle = mask_of(read(tmp_path)[1:2])
    expected = {(10, 10): 1, (10, 5): 3, (15, 20): 2, (15, 5): 3, (10, 20): 2, (10, 25): 2}
    assert {at: int(middle[at]) for at in expected} == expected


@pytest.mark.parametrize("where", ["below", "above"])
def test_a_drawing_beyond_the_cine_is_a_row_of_the_rejected(where, tmp_path):
    source = tmp_path / "source"
    save(source / "a_cine.nii.gz", stack(3))
    lost, first_mm = (0, -8.0) if where == "below" else (3, 0.0)
    save(source / "a_lge_mask.nii.gz", drawings(4, lost), first_mm)
    (row,) = rejected(source, tmp_path / "out")
    assert row["case_id"] == f"a_lge{lost:02d}"
    assert f"slice {lost} of 4 has MVO and lies 8.0 mm from" in row["cause"]
    assert row["source"] == "a_lge_mask.nii.gz"
    assert row["remedy"]
    with pytest.raises(UserError, match="has MVO"):
        prepared(source, tmp_path / "strict", TARGET, strict=True)
    inspection = Inspection()
    opened = open_source(source, form="auto", options=Options(), scratch=tmp_path / "scratch")
    for one in read_clips(opened, TARGET):
        if isinstance(one, Rejected):
            inspection.add_rejected(one)
    assert [finding.count for finding in inspection.findings()] == [1]


def test_a_slice_missing_from_the_cine_does_not_give_its_drawing_to_the_neighbours(tmp_path):
    out = writers.write_dicom(tmp_path, "a", stack(5), None, step_mm=8.0)
    for path in out.glob("*_2.dcm"):
        path.unlink()
    save(tmp_path / "a_lge_mask.nii.gz", drawings(5, 2))
    slices = read(tmp_path)
    assert labels(slices) == [0, 0, 0, 0]
    assert [one.case_id for one in slices[0].unplaced] == ["a_lge02"]


# In the plane
@pytest.mark.parametrize("pixels", [0.5, -0.5])
@pytest.mark.parametrize("axis", [0, 1])
def test_half_a_pixel_aside_every_column_of_the_mask_is_used_once(pixels, axis, tmp_path):
    stripes = np.zeros((1, SIZE, SIZE), np.uint8)
    stripes[0, :, ::2], stripes[0, :, 1::2] = 3, 1
    if axis == 1:
        stripes = stripes.swapaxes(1, 2)
    corner = np.zeros(2)
    corner[axis] = pixels * PIXEL_MM
    save(tmp_path / "a_cine.nii.gz", stack(1))
    save(tmp_path / "a_lge_mask.nii.gz", stripes, corner=corner)
    inner = mask_of(read(tmp_path))[2:-2, 2:-2]
    assert set(np.unique(inner)) == {1, 3}
    assert (np.diff(inner.astype(int), axis=1 - axis) != 0).all()


def test_the_smallest_mvo_of_a_fine_mask_keeps_a_pixel(tmp_path):
    """Voxels of a third of a pixel, of which only one in nine is looked up."""
    save(tmp_path / "a_cine.nii.gz", stack(1))
    fine = RING.repeat(3, axis=0).repeat(3, axis=1)[None]
    places = [(21, 75), (22, 76), (23, 77)]
    corner = (PIXEL_MM / 3, PIXEL_MM / 3)  # the middle of the first pixel
    for row, column in places:
        mask = fine.copy()
        mask[0, row, column] = 2
        save(tmp_path / "a_lge_mask.nii.gz", mask, corner=corner, pixel_mm=PIXEL_MM / 3)
        (one,) = read(tmp_path)
        assert one.has_mvo
        assert np.argwhere(mask_of([one]) == 2).tolist() == [[row // 3, column // 3]]


@pytest.mark.parametrize("degrees", [4.0, -4.0])
def test_a_tilted_lge_slice_keeps_the_rim_of_its_drawing(degrees, tmp_path):
    """Its rim lies nearer to a slice that was not acquired."""
    size, angle = 96, np.radians(degrees)
    cine = np.random.default_rng(0).integers(0, 200, (FRAMES, 1, size, size), np.uint8)
    save(tmp_path / "a_cine.nii.gz", cine)
    mask = np.full((1, size, size), 3, np.uint8)
    mask[0, 1:3, 40:50] = 2
    affine = writers.affine(PIXEL_MM)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    middle = affine @ [(size - 1) / 2, (size - 1) / 2, 0, 1]
    tilted = turn @ affine
    tilted[:3, 3] += (middle - tilted @ [(size - 1) / 2, (size - 1) / 2, 0, 1])[:3]
    nibabel.save(nibabel.Nifti1Image(mask.T, tilted), tmp_path / "a_lge_mask.nii.gz")
    (one,) = read(tmp_path)
    assert one.has_mvo
    found = mask_of([one])
    assert (found[3:-3] > 0).all()
    assert (found[:4, 40:50] == 2).any()


# Names
@pytest.mark.parametrize(
    ("cine", "mask"),
    [
        ("a", "a_LGE_mask.nii.gz"),
        ("Case7", "case7_lge_mask.nii.gz"),
        ("a", "a_lge_masks.nii"),
        ("a", "deep/b_lge_mask.nii.gz"),
        ("a", "a-scar.nii.gz"),
        ("a", "A_Seg.NII.GZ"),
    ],
)
def test_a_mask_that_no_cine_goes_with_is_a_row_of_the_rejected(cine, mask, tmp_path):
    save(tmp_path / "source" / f"{cine}_cine.nii.gz", stack(1))
    save(tmp_path / "source" / mask, drawings(1, 0))
    (row,) = rejected(tmp_path / "source", tmp_path / "out")
    assert mask in row["cause"]
    assert "belongs to no cine" in row["cause"]
    assert f"{cine!r}" in row["remedy"]


def test_a_mask_named_after_the_patient_in_place_of_the_folder(tmp_path):
    writers.write_dicom(tmp_path / "source", "scan 1", BEAT, None)
    save(tmp_path / "source" / "P17_lge_mask.nii.gz", drawings(1, 0))
    (row,) = rejected(tmp_path / "source", tmp_path / "out")
    assert "P17_lge_mask.nii.gz" in row["cause"]
    assert "'scan 1'" in row["remedy"]


def test_a_cine_in_other_letters_and_other_images(tmp_path, caplog):
    save(tmp_path / "source" / "a_cine.nii.gz", stack(1))
    save(tmp_path / "source" / "b_CINE.nii.gz", stack(1))
    save(tmp_path / "source" / "a_lge.nii.gz", stack(1)[0])
    (row,) = rejected(tmp_path / "source", tmp_path / "out")
    assert "b_CINE.nii.gz" in row["cause"]
    assert "1 NIfTI files" in caplog.text
    assert "a_lge.nii.gz" in caplog.text


@pytest.mark.parametrize("suffix", [".NII.GZ", ".NII", ".nii.GZ"])
def test_suffixes_in_capitals(suffix, tmp_path):
    save(tmp_path / "a_cine.nii.gz", stack(2))
    save(tmp_path / "a_lge_mask.nii.gz", drawings(2, 1))
    for path in list(tmp_path.iterdir()):
        if suffix == ".NII":
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
        stored = path.with_suffix("") if suffix == ".NII" else path
        stored.rename(path.with_name(path.name.split(".")[0] + suffix))
    slices = read(tmp_path)
    assert labels(slices) == [0, 1]
    assert slices[0].case_id == "a_s00"
    assert read(tmp_path / f"a_cine{suffix}")[0].case_id == "a_s00"
    (tmp_path / f"a_cine{suffix}").rename(tmp_path / "a_cine.Nii")
    assert "small and capital letters" in refusal(tmp_path).cause


# One file a phase
@pytest.mark.parametrize(
    "name", ["a_cine_{:d}", "a_cine_t{:04d}", "a_cine-phase{:02d}", "a_cine_sax_{:03d}"]
)
def test_one_nifti_a_phase(name, tmp_path):
    cine = stack(2)
    for t in range(FRAMES):
        number = 37 * t if "{:04d}" in name else t
        save(tmp_path / f"{name.format(number)}.nii.gz", cine[t])
    save(tmp_path / "a_lge_mask.nii.gz", drawings(2, 1))
    slices = read(tmp_path)
    check_cine(slices, cine)
    assert labels(slices) == [0, 1]


def test_one_nifti_a_phase_by_a_pattern(tmp_path):
    for t in range(FRAMES):
        save(tmp_path / "A17" / f"frame{t:02d}.nii.gz", stack(1)[t])
    (one,) = read(tmp_path, cine_pattern="{case}/frame{phase}.nii.gz")
    assert one.case_id == "A17"
    assert np.array_equal(one.cine, stack(1)[:, 0])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "a_cine_t04.nii.gz").unlink(), "lacks phases after 3"),
        (lambda f: save(f / "a_cine_4.nii.gz", stack(1)[4]), "same phase"),
        (lambda f: save(f / "a_cine_t04.nii.gz", stack(1)[4], 3.0), "lies elsewhere"),
        (lambda f: save(f / "a_cine_t04.nii.gz", stack(2)[4]), "another shape"),
    ],
    ids=["lost", "twice", "aside", "shape"],
)
def test_phases_that_do_not_make_a_beat_are_refused(spoil, words, tmp_path):
    for t in range(FRAMES):
        save(tmp_path / f"a_cine_t{t:02d}.nii.gz", stack(1)[t])
    spoil(tmp_path)
    assert words in refusal(tmp_path).cause


# PNG
def quantised(frame: np.ndarray) -> Image.Image:
    """A palette image whose indices are in another order than its greys."""
    order = np.random.default_rng(2).permutation(256).astype(np.uint8)  # index -> grey
    image = Image.fromarray(np.argsort(order).astype(np.uint8)[frame])
    image.putpalette(np.repeat(order[:, None], 3, axis=1).tobytes())
    return image


def test_palettes_of_greys_are_applied_and_those_of_masks_are_labels(tmp_path):
    for t, frame in enumerate(BEAT):
        quantised(frame).save(tmp_path / f"a_{t:02d}_input.png")
    mask = Image.fromarray(MVO_RING)
    mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    mask.save(tmp_path / "a_00_gt.png")
    slices = read(tmp_path, pixel_mm=PIXEL_MM)
    check_cine(slices, BEAT[:, None])
    check_masks(slices, MVO_RING[None])


def test_a_palette_as_pillow_makes_it_gives_the_greys_of_the_images(tmp_path):
    """64 greys chosen by Pillow for each frame, as field data come: never the indices."""
    for t, frame in enumerate(BEAT):
        image = Image.fromarray(frame).convert("RGB").quantize(64)
        assert image.mode == "P"
        image.save(tmp_path / f"P_{t:02d}_input.png")
    (one,) = read(tmp_path, pixel_mm=PIXEL_MM)
    off = np.abs(one.cine.astype(int) - BEAT)
    assert off.max() <= 4  # 101 greys in 64: neighbours share one
    indices = np.stack([np.asarray(Image.open(p)) for p in sorted(tmp_path.glob("*.png"))])
    assert np.abs(indices.astype(int) - BEAT).max() > 100


def test_a_palette_of_colours_is_refused(tmp_path):
    for t, frame in enumerate(BEAT):
        image = Image.fromarray(frame)
        image.putpalette([v for i in range(256) for v in (i, 255 - i, 0)])
        image.save(tmp_path / f"a_{t:02d}_input.png")
    assert "colour" in refusal(tmp_path, pixel_mm=PIXEL_MM).cause


@pytest.mark.parametrize("form", ["{:02d}", "{:03d}", "{:d}"])
def test_more_than_99_frames(form, tmp_path):
    frames = np.tile(BEAT, (12, 1, 1)) // 2 + np.arange(120, dtype=np.uint8)[:, None, None]
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"a_{form.format(t)}_input.png")
    (one,) = read(tmp_path, pixel_mm=PIXEL_MM)
    assert np.array_equal(one.cine, frames)


# Archives and tables from Windows
@pytest.mark.parametrize("wrapper", ["", "export\\", "export\\deep\\"])
def test_an_archive_with_back_slashes(wrapper, tmp_path):
    save(tmp_path / "a" / "a_cine.nii.gz", stack(2))
    save(tmp_path / "a" / "a_lge_mask.nii.gz", drawings(2, 1))
    archive = tmp_path / "source.zip"
    with zipfile.ZipFile(archive, "w") as out:
        if wrapper:
            out.writestr(wrapper, b"")
        for path in (tmp_path / "a").iterdir():
            out.writestr(f"{wrapper}a\\{path.name}", path.read_bytes())
    assert rejected(archive, tmp_path / "out") == []
    manifest = (tmp_path / "out" / "manifest.csv").read_text()
    assert "a/a_cine.nii.gz" in manifest
    assert "\\" not in manifest


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_an_archive_of_patients_in_one_folder(separator, tmp_path):
    """With their masks beside them; one patient's folder of series stays one patient."""
    folder = tmp_path / "source" / "export"
    for k, name in enumerate(("A17", "B02")):
        writers.write_dicom(folder, name, stack(2, k), drawings(2, k), StudyInstanceUID=f"1.2.{k}")
    archive = tmp_path / "source.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for path in folder.rglob("*.*"):
            name = separator.join(path.relative_to(folder.parent).parts)
            out.writestr(name, path.read_bytes())
    for i, source in enumerate((folder.parent, archive)):
        assert rejected(source, tmp_path / str(i)) == []
        manifest = (tmp_path / str(i) / "manifest.csv").read_text()
        assert all(f"\n{name}_s0{z},{name}," in manifest for name in ("A17", "B02") for z in (0, 1))
    writers.write_dicom(tmp_path / "one" / "P1", "apex", stack(1), None, PatientID="P1")
    slices = read(tmp_path / "one")
    assert [one.case_id for one in slices] == ["P1"]


def test_paths_of_windows_in_a_table(tmp_path):
    save(tmp_path / "source" / "deep" / "x.nii.gz", stack(2))
    save(tmp_path / "source" / "deep" / "y.nii.gz", drawings(2, 1))
    table = tmp_path / "table.csv"
    table.write_text("case_id,cine,mask\na,deep\\x.nii.gz,.\\deep\\y.nii.gz\n")
    assert labels(read(tmp_path / "source", table=read_table(table))) == [0, 1]
    for path in ("C:\\data\\x.nii.gz", "\\\\server\\x.nii.gz", "..\\x.nii.gz", "D:x.nii.gz"):
        table.write_text(f"case_id,cine\na,{path}\n")
        error = refusal(tmp_path / "source", table=read_table(table))
        assert "leads out" in error.cause
        assert "relative" in error.remedy


def test_a_table_with_masks_alone(tmp_path):
    save(tmp_path / "source" / "a_cine.nii.gz", stack(2))
    save(tmp_path / "source" / "drawn.nii.gz", drawings(2, 1))
    table = tmp_path / "table.csv"
    table.write_text("case_id,mask\na,drawn.nii.gz\n")
    assert labels(read(tmp_path / "source", table=read_table(table))) == [0, 1]


# The false alarm
def test_an_empty_slice_of_a_mask_is_no_second_split(tmp_path):
    for k in range(6):
        mask = drawings(3, *((0, 1) if k % 2 else ()))
        mask[2] = 0
        writers.write_nifti(tmp_path / "source", f"P{k}", stack(3, k), mask, pixel_mm=PIXEL_MM)
    prepare(
        tmp_path / "source", tmp_path / "out", options=Options(), target=TARGET, jobs=1,
        partition=Partition(fractions=(0.34, 0.33, 0.33)),
    )  # fmt: skip
    inspection = Inspection()
    opened = open_source(tmp_path / "out", form="auto", options=Options(), scratch=tmp_path / "s")
    for one in read_clips(opened, None):
        assert isinstance(one, Clip)
        inspection.add(one)
    assert "unlabelled" in inspection.labels
    assert [finding.check for finding in inspection.findings() if finding.is_fault] == []


@pytest.mark.parametrize(("slice_mm", "wrong_by"), [(0.8, 0.02), (40.0, 0.3)])
def test_whether_two_grids_are_one_is_asked_in_millimetres(slice_mm, wrong_by, tmp_path):
    """Of thin slices 0.02 mm are rounding, of thick ones 0.3 mm are another place."""
    save(tmp_path / "A17_cine.nii.gz", stack(3), step_mm=slice_mm)
    save(tmp_path / "A17_lge_mask.nii.gz", drawings(3, 1), wrong_by, step_mm=slice_mm)
    assert ("on another grid" in note(tmp_path)) is (wrong_by > 0.1)


def test_a_pixel_that_is_rounded_moves_the_far_corner(tmp_path):
    """0.009 mm are nothing of a pixel and 0.3 mm over 31 of them."""
    save(tmp_path / "A17_cine.nii.gz", stack(2))
    save(tmp_path / "A17_lge_mask.nii.gz", drawings(2, 1), pixel_mm=PIXEL_MM + 0.009)
    assert "corners up to 0.4 mm apart" in note(tmp_path)
