"""A coarse map lies where its block lies in the patient, however the source is stored."""

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mvo_jax.data.cohort.series import read_series
from mvo_jax.data.importers.cine import Options
from mvo_jax.data.importers.formats import choose_importer
from mvo_jax.data.map_files import MapWriter, on_source
from mvo_jax.data.slices import Clip, Target, Window
from tests.data.importers import writers

FRAMES, SLICES, ROWS, COLUMNS, BLOCKS = 9, 3, 40, 34, 6
TARGET = Target(frames=FRAMES, image_size=24, spacing_mm=2.0)  # blocks of 8 mm
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
TURN = np.array(writers.SHORT_AXIS)
NORMAL = np.cross(TURN[:3], TURN[3:])
ORIGIN = np.array([14.0, -30.0, 21.0])
PIXEL_MM, STEP_MM = 1.5, 8.0


def in_space() -> np.ndarray:
    """(column, row, slice) of the scanner's images to RAS mm, by the DICOM standard C.7.6.2.1.1."""
    out = np.eye(4)
    out[:3, 0], out[:3, 1], out[:3, 2] = TURN[:3] * PIXEL_MM, TURN[3:] * PIXEL_MM, NORMAL * STEP_MM
    out[:3, 3] = ORIGIN
    return LPS @ out


def cine() -> np.ndarray:
    """``[T, Z, H, W]``; a disc that beats, so that the crop has a place of its own."""
    at = np.hypot(*(np.mgrid[:ROWS, :COLUMNS] - np.array([22.0, 15.0])[:, None, None]))
    radius = 7 + 2 * np.cos(2 * np.pi * np.arange(FRAMES) / FRAMES)
    beat = 120 * (at < radius[:, None, None])[:, None]
    noise = np.random.default_rng(0).integers(0, 80, (SLICES, ROWS, COLUMNS))
    return (beat + noise).astype(np.uint16)


def loaded(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(Values, affine) of a map."""
    image = nibabel.Nifti1Image.from_filename(path)
    assert image.affine is not None
    return image.get_fdata(), image.affine


def clips_of(source: Path) -> list[Clip]:
    importer = choose_importer(source)
    (series,) = importer.find(source, Options())
    out = read_series(importer.load, series, Options(), TARGET)
    assert all(isinstance(one, Clip) for one in out)
    return [one for one in out if isinstance(one, Clip)]


def written(clips: list[Clip], maps: np.ndarray, folder: Path) -> list[Path]:
    writer = MapWriter(folder)
    names = [writer.add(clip, one) for clip, one in zip(clips, maps, strict=True)]
    writer.close()
    assert writer.without_place == 0
    return [folder / str(name) for name in names]


MAPS = np.random.default_rng(1).uniform(0.1, 1.0, (SLICES, BLOCKS, BLOCKS)).astype(np.float32)


def check_points(path: Path, clips: list[Clip], turned: np.ndarray, maps: np.ndarray) -> None:
    """Every voxel: its place in the patient, the pixel there, and the block over that pixel.

    Args:
        path: the map.
        clips: those of the file.
        turned: (column, row, slice) as displayed to RAS mm.
        maps: of the clips.
    """
    found, stored = loaded(path)
    voxels = np.stack([*np.indices(found.shape), np.ones(found.shape)], axis=-1)
    column, row, z = np.moveaxis(voxels @ (np.linalg.inv(turned) @ stored)[:3].T, -1, 0)
    expected, inside = np.zeros(found.shape, np.float32), 0
    for clip, one in zip(clips, maps, strict=True):
        assert clip.window is not None
        at = (np.round(np.stack([row, column], -1), 3) + 0.5 - clip.window.start) / clip.window.step
        block = np.floor(at / 4).astype(int)  # 24 pixels in 6 blocks
        here = (np.round(z) == clip.plane) & ((block >= 0) & (block < BLOCKS)).all(axis=-1)
        expected[here] = one[tuple(block[here].T)]
        inside += here.sum()
    np.testing.assert_array_equal(found, expected)
    assert inside > len(clips) * 20 * 20


STORAGES = list(
    itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
)


def test_nifti_in_all_storages_keeps_shape_and_affine(tmp_path):
    displayed = cine()
    for i, (order, signs) in enumerate(STORAGES):
        array, affine = displayed.T, in_space()
        for axis, sign in enumerate(signs):
            if sign < 0:
                array = np.flip(array, axis)
                affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
                affine[:3, axis] *= -1
        array, affine = array.transpose(*order, 3), affine[:, [*order, 3]]
        source = tmp_path / f"{i}"
        source.mkdir()
        stored = nibabel.Nifti1Image(np.ascontiguousarray(array), affine)
        nibabel.save(stored, source / "a_cine.nii.gz")
        clips = clips_of(source)
        (path,) = set(written(clips, MAPS, tmp_path / f"maps{i}"))
        assert path.name == "a_mvo_map.nii.gz"
        found, written_affine = loaded(path)
        assert found.shape == array.shape[:3]
        assert np.allclose(written_affine, affine, atol=1e-5)  # stored in float32
        check_points(path, clips, _displayed_affine(clips), MAPS)


def _displayed_affine(clips: list[Clip]) -> np.ndarray:
    """From what was shown to the patient: of the grid, before any file was written."""
    grid = clips[0].grid
    assert grid is not None
    affine = grid.affine[:, [*grid.order, 3]].copy()
    shape = [grid.shape[axis] for axis in grid.order]
    for axis, flip in enumerate(grid.flips):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
            affine[:3, axis] *= -1
    return affine


@pytest.mark.parametrize("gap", [False, True])
def test_dicom_by_its_headers(gap, tmp_path):
    """Also with a slice that is not there: the map keeps its place empty."""
    stored = cine()
    writers.write_series(
        tmp_path / "A", stored, turn=TURN.tolist(), origin=ORIGIN.tolist(), pixel_mm=PIXEL_MM,
        step_mm=STEP_MM,
    )  # fmt: skip
    if gap:
        for path in (tmp_path / "A").glob("i01_*"):
            path.unlink()
    clips = clips_of(tmp_path)
    numbers = [0, 2] if gap else [0, 1, 2]
    (path,) = set(written(clips, MAPS[numbers], tmp_path / "maps"))
    assert sorted(loaded(path)[0].shape) == [SLICES, COLUMNS, ROWS]
    # As these images run they are shown as stored, so the headers alone say where.
    check_points(path, clips, in_space(), MAPS[numbers])


def test_uneven_slices_have_a_file_each(tmp_path):
    writers.write_series(
        tmp_path / "A", cine(), turn=TURN.tolist(), pixel_mm=PIXEL_MM,
        ImagePositionPatient=lambda t, z: [round(v, 4) for v in (0, 8, 19)[z] * NORMAL],
    )  # fmt: skip
    paths = written(clips_of(tmp_path), MAPS, tmp_path / "maps")
    assert [path.name for path in paths] == [f"A_s0{z}_mvo_map.nii.gz" for z in range(3)]


def test_a_block_is_what_the_model_says(tmp_path):
    """5 blocks over 24 pixels: of 5 pixels each, the last of 4; pixels of half the crop's."""
    coarse = np.arange(1, 26, dtype=np.float32).reshape(5, 5)
    out = on_source(coarse, Window((2.0, 4.0), (2.0, 2.0), 24, "given"), (60, 50))
    assert out[:2].max() == out[:, :4].max() == out[50:].max() == 0
    assert (out[2:12, 4:14] == 1).all()
    assert (out[2:12, 14:24] == 2).all()
    assert (out[42:50, 44:50] == 25).all()


def test_a_source_without_a_place_has_no_map(tmp_path):
    np.savez(tmp_path / "a.npz", cine=cine()[:, 0], pixel_mm=PIXEL_MM)
    writer = MapWriter(tmp_path / "maps")
    assert writer.add(clips_of(tmp_path)[0], MAPS[0]) is None
    writer.close()
    assert writer.without_place == 1
    assert not (tmp_path / "maps").exists()
