"""The locator: its forward pass, whom it is asked about, and what happens where it is unsure."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from mvo_jax.data.clips import open_source, read_clips
from mvo_jax.data.cohort import heart
from mvo_jax.data.cohort.heart import find_heart
from mvo_jax.data.cohort.locate import MIN_CONFIDENCE, Found, joint_centre, locate
from mvo_jax.data.cohort.series import prepare_series
from mvo_jax.data.importers.cine import Options
from mvo_jax.data.locator.network import (
    SIDE,
    SPACING_MM,
    cavity_probability,
    normalised,
    shipped_weights,
)
from mvo_jax.data.phantom.case import CaseKey, plan_case, simulate_case
from mvo_jax.data.slices import LOCATOR, CineSlice, Clip, Target
from mvo_jax.errors import UserError
from tests.data.importers import writers

CANVAS, FRAMES = 150, 12
CORNER = (60, 20)  # of the simulated picture in the image


def slice_of(cine: np.ndarray, index: int = 0, **changes) -> CineSlice:
    values = {"case_id": f"a_s{index}", "patient_id": "a", "slice_index": index, "source": "a"}
    return CineSlice(**(values | {"cine": cine, "pixel_mm": (1.9, 1.9)} | changes))


@pytest.fixture(scope="module")
def stack() -> list[CineSlice]:
    """Three simulated slices in the lower left of a black image."""
    out = []
    for index in (1, 2, 3):
        key = CaseKey("paper", 5, 900_000, index, 5, True)
        small = simulate_case(key, frames=FRAMES).video[..., 0]
        cine = np.zeros((FRAMES, CANVAS, CANVAS), np.uint8)
        cine[:, CORNER[0] : CORNER[0] + 64, CORNER[1] : CORNER[1] + 64] = small
        pixel = plan_case(key).anatomy.field_of_view / 64
        out.append(slice_of(cine, index, pixel_mm=(pixel, pixel)))
    return out


@pytest.fixture(scope="module")
def middle() -> np.ndarray:
    """Centre of the simulated ventricle, pixels from the outer edge of the image."""
    anatomy = plan_case(CaseKey("paper", 5, 900_000, 2, 5, True)).anatomy
    x, y = anatomy.centre * 64 / anatomy.field_of_view
    return np.array([CORNER[0] + 32 - y, CORNER[1] + 32 + x])


def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(300, 20, (FRAMES, CANVAS, CANVAS))


def test_numpy_and_flax_agree():
    """Weights and statistics as no training leaves them; float32 rounding."""
    import jax
    from flax.traverse_util import flatten_dict, unflatten_dict

    from tools.locator.network import UNet, fold_normalisation

    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (2, SIDE, SIDE + 16)).astype(np.float32)
    flat: Any = flatten_dict(jax.device_get(UNet().init(jax.random.key(0), images)))
    for key, value in flat.items():
        if key[-1] in ("scale", "bias", "mean", "var"):
            flat[key] = (0.6 + 0.8 * rng.random(value.shape)).astype(np.float32)
    variables = unflatten_dict(flat)
    logit: Any = UNet().apply(variables, images)
    mine = cavity_probability(fold_normalisation(variables), images)
    assert np.ptp(mine) > 0.01  # it depends on the image
    # Both add up in float32, in another order.
    np.testing.assert_allclose(mine, jax.nn.sigmoid(logit), atol=1e-5)


def test_weights_are_small_and_of_the_package():
    assert sum(array.size for array in shipped_weights().values()) * 2 < 2e6  # bytes of float16


def test_a_ventricle_beside_the_middle_is_found(stack, middle):
    """8 mm is what a crop of 128 mm forgives with ease; the image's middle is 60 mm away."""
    for slices in (stack, stack[1:2]):
        found = locate(slices)
        assert found.confidence >= MIN_CONFIDENCE
        assert np.hypot(*(found.centre - middle)) * slices[0].pixel_mm[0] < 8.0
    clips = prepare_series(stack, Target())
    assert {clip.centre_from for clip in clips if isinstance(clip, Clip)} == {"locator"}
    assert len({clip.window.start for clip in clips if isinstance(clip, Clip) and clip.window}) == 1


def test_pixels_that_are_not_square_and_turned_images(stack, middle):
    one = stack[1]
    pixel = one.pixel_mm[0]
    tall = np.repeat(one.cine, 2, axis=1)
    found = locate([slice_of(tall, pixel_mm=(pixel / 2, pixel))])
    assert np.hypot(*((found.centre - middle * [2, 1]) * [pixel / 2, pixel])) < 8.0
    turned = np.rot90(one.cine, axes=(1, 2))
    found = locate([slice_of(turned, pixel_mm=one.pixel_mm)])
    assert np.hypot(*(found.centre - [CANVAS - middle[1], middle[0]])) * pixel < 8.0


@pytest.mark.parametrize("kind", ["noise", "constant", "inverted"])
def test_where_no_heart_is_the_case_is_flagged(stack, kind):
    cine = {
        "noise": noise(),
        "constant": np.full((FRAMES, CANVAS, CANVAS), 7),
        "inverted": 255 - stack[1].cine[:, 60:124, 20:84],
    }[kind]
    (placed,) = find_heart([slice_of(cine)], LOCATOR)
    assert placed.by == "motion"
    assert placed.confidence is not None
    assert placed.confidence < MIN_CONFIDENCE


def test_frames_that_disagree_are_not_believed():
    """Each frame is sure of a cavity of its own, so no place has half of them."""
    maps = np.zeros((1, 12, 60, 60), np.float32)
    for t in range(12):
        row, column = divmod(t, 4)
        maps[0, t, 20 * row : 20 * row + 6, 15 * column : 15 * column + 6] = 1
    assert joint_centre(maps)[1] < 0.2
    maps[0, :9] = maps[0, 5]
    centre, confidence = joint_centre(maps)
    assert confidence == pytest.approx(9 / 12)
    assert centre == pytest.approx([22.5, 17.5], abs=1e-6)
    assert joint_centre(np.zeros((2, 3, 9, 9), np.float32))[1] == 0


def test_slices_beyond_the_ventricle_do_not_flag_a_stack(stack):
    beyond = [slice_of(noise(), i, pixel_mm=stack[0].pixel_mm) for i in (4, 5)]
    placed = find_heart([*stack, *beyond], LOCATOR)
    assert {one.by for one in placed} == {"locator"}
    assert len({tuple(one.centre) for one in placed}) == 1


def test_a_slice_is_asked_where_its_stack_is_unsure(stack, monkeypatch):
    """And where it is unsure of the slice too, the motion is named."""

    def unsure_of_stacks(slices):
        sure = len(slices) == 1 and slices[0] is stack[0]
        return Found(np.array([11.0, 12.0]), 0.9 if sure else 0.2)

    monkeypatch.setattr(heart, "locate", unsure_of_stacks)
    first, second, _ = find_heart(stack, LOCATOR)
    assert (first.by, first.confidence) == ("locator", 0.9)
    assert first.centre.tolist() == [11.0, 12.0]
    assert (second.by, second.confidence) == ("motion", 0.2)


def test_what_is_given_or_drawn_comes_first(stack):
    drawn = np.zeros((CANVAS, CANVAS), np.uint8)
    drawn[66:76, 30:40] = 3  # beside the ventricle
    for changes, by, where in (
        ({"centre": (75.0, 65.0)}, "given", 75.5),
        ({"lge_mask": drawn}, "mask", 71),
        ({"anatomy": {0: (drawn > 0).astype(np.uint8)}}, "contours", 71),
    ):
        (clip,) = prepare_series([dataclasses.replace(stack[1], **changes)], Target(image_size=32))
        assert isinstance(clip, Clip)
        assert clip.window is not None
        assert (clip.centre_from, clip.confidence, clip.needs_review) == (by, None, False)
        centre = clip.window.start[0] + 16 * clip.window.step[0]
        assert centre == pytest.approx(where, abs=1)


def test_crops_of_older_cohorts_are_placed_as_they_were(stack):
    (placed,) = find_heart(stack[:1], 0)
    assert (placed.by, placed.confidence) == ("motion", None)
    (clip,) = prepare_series(stack[:1], Target(locator=0))
    assert isinstance(clip, Clip)
    assert clip.needs_review
    with pytest.raises(UserError, match="version 3 of the locator"):
        Target(locator=LOCATOR + 1)


@pytest.mark.parametrize("version", [0, 1, LOCATOR])
def test_crops_of_a_run_of_older_weights_are_told(version, stack, tmp_path, caplog):
    pixel = float(stack[1].pixel_mm[0])
    writers.write_nifti(tmp_path / "images", "a", stack[1].cine, None, pixel_mm=pixel)
    source = open_source(
        tmp_path / "images", form="auto", options=Options(), scratch=tmp_path / "scratch"
    )
    (clip,) = read_clips(source, Target(locator=version))
    assert isinstance(clip, Clip)
    assert clip.centre_from == ("locator" if version else "motion")
    assert ("of the run's data by 1" in caplog.text) == (version == 1)


def test_one_bright_pixel_changes_little():
    rng = np.random.default_rng(0)
    cine = rng.uniform(0, 100, (4, 40, 40))
    before = normalised(cine)
    cine[0, 0, 0] = 60_000
    # The mean of 6400 pixels rises from 50 to 59, and x / (x + m) by at most 0.05 with it.
    assert np.abs(normalised(cine) - before)[1:].max() < 0.05
    assert 0 <= before.min() < before.max() < 1
    assert SPACING_MM * SIDE > 300  # a whole chest


def test_slices_of_a_stack_may_differ_in_their_number_of_phases(stack, middle):
    fewer = [dataclasses.replace(stack[0], cine=stack[0].cine[: FRAMES - 4]), *stack[1:]]
    assert np.abs(locate(fewer).centre - middle).max() < 3  # as the whole stack
