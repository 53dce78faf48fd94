"""However a volume is stored, it gives one picture; a header that does not say which is refused."""

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest

from mvo_jax.data.clips import geometry_of
from mvo_jax.data.cohort.series import read_series
from mvo_jax.data.importers.cine import Options
from mvo_jax.data.importers.dicom import DICOM
from mvo_jax.data.importers.nifti import NIFTI
from mvo_jax.data.importers.volume import read_volume, write_volume
from mvo_jax.data.labels import WALL
from mvo_jax.data.slices import ORIENTATION_RULE, CineSlice, Rejected, Target
from mvo_jax.errors import UserError
from mvo_jax.runs.folder import RunFolder
from mvo_jax.trained_run import TrainedRun
from tests.data.importers import writers
from tests.data.importers.reading import check_cine, check_masks, note, prepared, read, refusal

FRAMES, SLICES, ROWS, COLUMNS = 9, 3, 40, 36
CINE = np.random.default_rng(0).integers(0, 200, (FRAMES, SLICES, ROWS, COLUMNS), np.uint8)
MASK = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
MASK[:, 10:30, 8:28], MASK[:, 14:26, 12:24] = 3, 0
MASK[1, 11:13, 9:12] = 2
STORAGES = [
    (order, flips)
    for order in itertools.permutations(range(3))
    for flips in itertools.product((False, True), repeat=3)
]
HALF = np.sqrt(0.5)


def grid(column: Any, row: Any, steps: tuple[float, float, float] = (1.5, 1.5, 8.0)) -> np.ndarray:
    """(column, row, slice) to RAS mm, from the directions of columns and rows."""
    column, row = (np.array(v, float) / np.linalg.norm(v) for v in (column, row))
    out = np.eye(4)
    out[:3, :3] = np.stack([column, row, np.cross(column, row)], axis=1) * steps
    out[:3, 3] = 20.5, -31.0, 12.25
    return out


# The picture is that of columns and rows as they are given here.
DISPLAYED = {
    "axial": grid((-1, 0, 0), (0, -1, 0)), "coronal": grid((-1, 0, 0), (0, 0, -1)),
    "short axis": grid((-0.8, -0.36, 0.48), (0, -0.8, -0.6)),
    "sagittal": grid((0, -1, 0), (0, 0, -1)),
    "rows half to posterior, half to the head": grid((-1, 0, 0), (0, -HALF, HALF)),
    "columns half to the left, half to posterior": grid((-HALF, -HALF, 0), (HALF, -HALF, 0)),
    "columns half to the left, half to the head": grid((-HALF, 0, HALF), (0, -1, 0)),
    "columns half to posterior, half to the feet": grid((0, -HALF, -HALF), (0, -HALF, HALF)),
    "long steps in the plane": grid((-1, 0, 0), (0, -1, 0), (1.5, 2.1, 9.0)),
}  # fmt: skip


def store(
    path: Path,
    displayed: np.ndarray,
    affine: np.ndarray,
    order: tuple[int, ...] = (0, 1, 2),
    flips: tuple[bool, ...] = (False, False, False),
    header: Any = None,
) -> None:
    """Write ``[T, Z, H, W]`` or ``[Z, H, W]`` with its axes in another order and direction.

    ``affine`` is of (column, row, slice), ``order`` says which of these each axis of the file is,
    ``flips`` whether it is stored backwards; ``header`` may change the header.
    """
    array = displayed.T
    array = array.transpose(*order, *range(3, array.ndim))
    affine = affine[:, [*order, 3]].copy()
    for axis in (axis for axis, flip in enumerate(flips) if flip):
        array = np.flip(array, axis)
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
        affine[:3, axis] *= -1
    image = nibabel.Nifti1Image(np.ascontiguousarray(array), affine)
    if header is not None:
        header(image.header)
        image = nibabel.Nifti1Image(np.ascontiguousarray(array), None, image.header)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


def without_codes(header: Any) -> None:
    header["sform_code"] = header["qform_code"] = 0


def check_picture(slices: list[CineSlice], mask: np.ndarray = MASK) -> None:
    check_cine(slices, CINE)
    check_masks(slices, mask)


def both(
    folder: Path, cine: np.ndarray, mask: np.ndarray, cine_header: Any = None,
    mask_header: Any = None,
) -> None:  # fmt: skip
    """Cine and mask, each with its affine and what is done to its header."""
    store(folder / "a_cine.nii.gz", CINE, cine, header=cine_header)
    store(folder / "a_lge_mask.nii.gz", MASK, mask, header=mask_header)


@pytest.mark.parametrize("name", DISPLAYED)
def test_all_storages_of_a_volume_give_one_picture(name, tmp_path):
    """The mask is stored otherwise than the cine, so one rule must turn both."""
    affine = DISPLAYED[name]
    for i, (order, flips) in enumerate(STORAGES):
        other = STORAGES[(7 * i + 5) % len(STORAGES)]
        store(tmp_path / "a_cine.nii", CINE, affine, order, flips)
        store(tmp_path / "a_lge_mask.nii", MASK, affine, *other)
        slices = read(tmp_path)
        check_picture(slices)
        expected = tuple(np.linalg.norm(affine[:3, axis]) for axis in (1, 0))
        assert slices[0].pixel_mm == pytest.approx(expected, rel=1e-6)  # of float32


def store_dicom(
    folder: Path, affine: np.ndarray, *, exchanged: bool, flips: tuple[bool, bool]
) -> None:
    """Write ``CINE`` as DICOM, its images stored turned; ``affine`` is of (column, row, slice)."""
    stored, affine = CINE, affine.copy()
    for axis in (axis for axis, flip in enumerate(flips) if flip):
        stored = np.flip(stored, -1 - axis)
        affine[:3, 3] += affine[:3, axis] * (stored.shape[-1 - axis] - 1)
        affine[:3, axis] *= -1
    if exchanged:
        stored, affine = stored.swapaxes(-1, -2), affine[:, [1, 0, 2, 3]]
    patient = affine[:3] * np.array([[-1.0], [-1.0], [1.0]])  # DICOM counts to left and posterior
    steps = np.linalg.norm(patient, axis=0)
    writers.write_series(
        folder, stored.astype(np.uint16), turn=(patient[:, :2] / steps[:2]).T.ravel().tolist(),
        PixelSpacing=[float(steps[1]), float(steps[0])],
        ImagePositionPatient=lambda _, z: (patient[:, 3] + z * patient[:, 2]).tolist(),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["axial", "short axis", "sagittal", "long steps in the plane"])
def test_all_storages_of_dicom_give_the_picture_of_the_nifti(name, tmp_path):
    """The mask is a NIfTI file beside them."""
    affine = DISPLAYED[name]
    store(tmp_path / "a_lge_mask.nii.gz", MASK, affine)
    target = Target(frames=FRAMES, image_size=24)
    for exchanged, *flips in itertools.product((False, True), repeat=3):
        for path in (tmp_path / "a").glob("*.dcm"):
            path.unlink()
        store_dicom(tmp_path / "a", affine, exchanged=exchanged, flips=(flips[0], flips[1]))
        slices = read(tmp_path)
        check_picture(slices)
        assert slices[0].pixel_mm == pytest.approx(np.linalg.norm(affine[:3, 1::-1], axis=0))
        assert slices[0].grid is not None
        stored = slices[0].grid.stored(dict(enumerate(MASK.astype(np.float32))))
        write_volume(tmp_path / "map.nii.gz", stored, slices[0].grid, "")  # as ``predict --nifti``
        written = read_volume(tmp_path / "map.nii.gz")
        assert np.array_equal(written.data[0], MASK)
        assert written.affine == pytest.approx(affine, abs=1e-4)  # stored as float32
        before = dataclasses.replace(target, orientation=2)
        (series,) = DICOM.find(tmp_path, Options())
        results = read_series(DICOM.load, series, Options(), before)
        assert [isinstance(one, Rejected) for one in results] == [exchanged] * SLICES


def test_slices_that_would_be_shown_turned_differently_are_refused(tmp_path):
    """Half to the left, half to posterior: a degree to either side the picture is another."""
    for z, degrees in enumerate((44.5, 45.5)):
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        writers.write_series(
            tmp_path / "a", CINE[:, z : z + 1].astype(np.uint16), turn=(cos, sin, 0, -sin, cos, 0),
            origin=(0, 0, 8 * z), name=f"slice{z}_",
            InstanceNumber=lambda t, _, z=z: 1 + t + z * FRAMES,
        )  # fmt: skip
    assert "shown turned differently" in refusal(tmp_path).cause


def test_almost_a_tie_is_a_tie(tmp_path):
    """A thousandth of a radian to either side of 45 degrees, the picture stays."""
    for degrees in (44.97, 45.0, 45.03):
        down = np.array([0, -np.sin(np.radians(degrees)), np.cos(np.radians(degrees))])
        for flips in ((False, False, False), (False, True, True)):
            store(tmp_path / "a_cine.nii.gz", CINE, grid((-1, 0, 0), down), flips=flips)
            check_cine(read(tmp_path), CINE)


def test_one_slice_is_found_by_its_axis_of_one(tmp_path):
    cine = CINE[:, :1, :COLUMNS]  # square
    for order, flips in STORAGES[::5]:
        affine = grid((-1, 0, 0), (0, -1, 0), (1.5, 1.5, 1.5))  # as thin as a pixel is wide
        store(tmp_path / "a_cine.nii.gz", cine, affine, order, flips)
        check_cine(read(tmp_path), cine)


def test_without_orientation_a_file_is_taken_as_stored_and_told(tmp_path):
    turned = DISPLAYED["axial"] * [-1, -1, 1, 1]
    both(tmp_path, turned, turned, without_codes, without_codes)
    slices = read(tmp_path)
    check_picture(slices)
    assert slices[0].note.count("states no orientation") == 2


@pytest.mark.parametrize("which", ["cine", "lge_mask"])
def test_orientation_of_one_of_the_two_is_refused(which, tmp_path):
    lost = [without_codes if name == which else None for name in ("cine", "lge_mask")]
    both(tmp_path, DISPLAYED["axial"], DISPLAYED["axial"], *lost)
    assert f"a_{which}.nii.gz states no orientation" in refusal(tmp_path).cause


@pytest.mark.parametrize("which", ["cine", "lge_mask"])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1)])
def test_the_identity_beside_an_orientation_is_refused(which, signs, tmp_path):
    """NumPy's eye, and what ITK makes of it."""
    identity, axial = np.diag([*signs, 1]).astype(float), DISPLAYED["axial"]
    both(tmp_path, *((identity, axial) if which == "cine" else (axial, identity)))
    assert f"a_{which}.nii.gz has the identity" in refusal(tmp_path).cause


def test_the_identity_of_both_is_told(tmp_path):
    both(tmp_path, np.eye(4), np.eye(4))
    assert note(tmp_path).count("identity") == 2


@pytest.mark.parametrize("name", ["axial", "short axis"])
def test_lost_signs_are_refused(name, tmp_path):
    affine = DISPLAYED[name]
    for lost in (np.abs(affine), affine * [-1, -1, 1, 1]):
        both(tmp_path, affine, lost)
        assert "a_lge_mask.nii.gz" in refusal(tmp_path).cause


def test_another_grid_of_the_same_shape_is_told(tmp_path):
    aside = DISPLAYED["axial"].copy()
    aside[0, 3] += 3.0  # two pixels to the right of the patient, which is the left of the picture
    both(tmp_path, DISPLAYED["axial"], aside)
    slices = read(tmp_path)
    check_picture(slices, np.pad(MASK[..., 2:], ((0, 0), (0, 0), (0, 2))))
    assert "on another grid" in slices[0].note


def test_a_mask_of_another_plane_is_refused(tmp_path):
    both(tmp_path, DISPLAYED["axial"], DISPLAYED["coronal"])
    assert "tilted by 90 degrees" in refusal(tmp_path).cause


def other_pixdim(header: Any) -> None:
    header["pixdim"][1:4] = 1.5, 1.5, 8.0


def other_qform(header: Any) -> None:
    header.set_qform(grid((-1, 0, 0), (0, -1, 0)), code=1)


def mirrored_qform(header: Any) -> None:
    header.set_qform(header.get_sform() * [-1, -1, 1, 1], code=1)


@pytest.mark.parametrize("change", [other_pixdim, other_qform, mirrored_qform])
@pytest.mark.parametrize("name", ["cine", "lge_mask"])
def test_a_header_that_contradicts_itself_is_refused(change, name, tmp_path):
    """The sform says pixels of 1 mm, pixdim or qform 1.5; or sform and qform turn the image."""
    affine = grid((-1, 0, 0), (0, -1, 0), (1.0, 1.0, 8.0))
    both(
        tmp_path, affine, affine, *(change if name == one else None for one in ("cine", "lge_mask"))
    )
    cause = refusal(tmp_path).cause
    assert f"a_{name}.nii.gz contradicts itself" in cause
    assert ("1 x 1 x 8" in cause and "1.5 x 1.5 x 8" in cause) or change is mirrored_qform


def thickness_alone(header: Any) -> None:
    header["pixdim"][3] = 6.0


def test_a_slice_thickness_without_the_gap_is_told(tmp_path):
    store(tmp_path / "a_cine.nii.gz", CINE, DISPLAYED["axial"], header=thickness_alone)
    slices = read(tmp_path)
    assert [one.position_mm for one in slices] == [0.0, 8.0, 16.0]
    assert "6 mm in its pixdim" in slices[0].note


def test_slices_that_cannot_be_told_from_rows_are_refused(tmp_path):
    """Fewest images along one axis, the thickest along another, and neither is the third."""
    affine = grid((-1, 0, 0), (0, -1, 0), (8.0, 1.5, 1.5))
    store(tmp_path / "a_cine.nii.gz", CINE, affine, order=(0, 2, 1))
    assert "which axis is that of the slices" in refusal(tmp_path).cause


def test_a_contour_turned_otherwise_than_its_cine_is_refused(tmp_path):
    folder = tmp_path / "patient007"
    anatomy = np.where(MASK == 3, 2, 0).astype(np.uint8)
    anatomy[:, 14:26, 12:24] = 3
    store(folder / "patient007_4d.nii.gz", CINE, DISPLAYED["axial"])
    (folder / "Info.cfg").write_text("ED: 1\nES: 5\n")
    drawn = folder / "patient007_frame01_gt.nii.gz"
    store(drawn, anatomy, DISPLAYED["axial"], (1, 0, 2), (True, False, False))
    assert np.array_equal(read(tmp_path)[0].anatomy[0], np.array([0, 0, 2, 1])[anatomy[0]])
    store(drawn, anatomy, DISPLAYED["axial"] * [-1, 1, 1, 1])
    assert "another orientation than the cine" in refusal(tmp_path).cause


def test_a_run_of_the_old_rule_refuses_only_what_comes_out_otherwise(tmp_path):
    target = Target(frames=FRAMES, image_size=24, spacing_mm=1.5)
    old = dataclasses.replace(target, orientation=1)
    for name, order, changed in (("same", (0, 1, 2), False), ("exchanged", (1, 0, 2), True)):
        store(tmp_path / name / "a_cine.nii.gz", CINE, DISPLAYED["axial"], order)
        (series,) = NIFTI.find(tmp_path / name, Options())
        assert not any(
            isinstance(one, Rejected) for one in read_series(NIFTI.load, series, Options(), target)
        )
        results = read_series(NIFTI.load, series, Options(), old)
        assert [isinstance(one, Rejected) for one in results] == [changed] * SLICES
        if changed:
            assert isinstance(results[0], Rejected)
            assert "orientation rule 1" in results[0].cause
    with pytest.raises(UserError, match="newer"):
        dataclasses.replace(target, orientation=ORIENTATION_RULE + 1)


def test_writers_agree_with_this_one(tmp_path):
    """The other tests' files lie as they are displayed."""
    writers.write_nifti(tmp_path, "a", CINE, MASK)
    check_picture(read(tmp_path))


def test_cohorts_and_runs_of_the_old_rule_say_so_by_their_silence(tmp_path):
    store(tmp_path / "source" / "a_cine.nii.gz", CINE, DISPLAYED["axial"])

    source, out, target = tmp_path / "source", tmp_path / "out", Target(FRAMES, image_size=24)
    prepared(source, out, target)
    config = SimpleNamespace(name="cohort", dir=str(out))
    assert geometry_of(config).orientation == ORIENTATION_RULE
    index = out / "cohort.json"
    content = json.loads(index.read_text())
    del content["settings"]["orientation"]
    index.write_text(json.dumps(content))
    assert geometry_of(config).orientation == 1
    with pytest.raises(UserError, match=f"orientation None -> {ORIENTATION_RULE}"):
        prepared(source, out, target)
    unused: Any = None
    (tmp_path / "run").mkdir()
    geometry = dataclasses.asdict(Target(frames=FRAMES))
    for orientation in (ORIENTATION_RULE, 1):
        if orientation == 1:
            del geometry["orientation"]
        (tmp_path / "run" / "geometry.json").write_text(json.dumps(geometry))
        run = TrainedRun(RunFolder(tmp_path / "run"), unused, unused, unused, "best", 1)
        assert run.geometry == Target(frames=FRAMES, orientation=orientation)


@pytest.mark.parametrize("stated", [True, False])
def test_contours_of_segment_lie_where_its_images_do(tmp_path, stated):
    cine, mask = CINE[:, 0], np.zeros((ROWS, COLUMNS), np.uint8)
    mask[4:16, 8:24], mask[7:12, 12:19] = 3, 0

    def change(stacks: list[dict[str, Any]]) -> None:
        contours = {name: value for name, value in stacks[1].items() if name[:3] in ("End", "Epi")}
        stacks[0] |= contours
        for stack in stacks:
            if not stated:
                del stack["ImageOrientation"], stack["ImagePosition"]

    writers.write_mat7(tmp_path, "a", cine, mask, change=change)
    (one,) = read(tmp_path)
    np.testing.assert_array_equal(one.cine, cine)
    np.testing.assert_array_equal(one.anatomy[0] == WALL, mask == 3)
    np.testing.assert_array_equal(one.lge_mask, mask)
