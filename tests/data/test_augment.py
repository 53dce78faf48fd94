"""Augmentation: exact moves, image and mask together, one photometry a clip, keys an example."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from mvo_jax.data import augment as module
from mvo_jax.data.augment import Augmentation, augment, normalise

EVERYTHING = Augmentation(
    max_shift=3, flip=True, max_rotation_deg=20, brightness=0.2, contrast=0.3, gamma=0.3,
    time_shift=True,
)  # fmt: skip


def clip(*, frames: int = 6, size: int = 12, channels: int = 1, seed: int = 0) -> Any:
    shape = (frames, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def mask(*, size: int = 12, seed: int = 1) -> Any:
    return np.random.default_rng(seed).integers(0, 4, (size, size)).astype(np.uint8)


_many = jax.jit(jax.vmap(augment, in_axes=(0, None, None, None)), static_argnums=3)


def many(video, lge_mask, settings: Augmentation, *, count: int = 64, seed: int = 0):
    """``count`` independent augmentations of one clip, as the training step draws them."""
    keys = jax.random.split(jax.random.key(seed), count)
    videos, masks = _many(keys, video, lge_mask, settings)
    return np.asarray(videos), np.asarray(masks)


_jitted_warp = jax.jit(module._warp)


def warp(video, lge_mask, *, degrees=0.0, shift=(0, 0), flip=(1, 1)):
    moves = jnp.array(shift, jnp.float32), jnp.array(flip, jnp.float32)
    floats = jnp.asarray(video, jnp.float32)
    out, out_mask = _jitted_warp(floats, lge_mask, jnp.deg2rad(degrees), *moves)
    return np.asarray(out), np.asarray(out_mask)


def test_everything_off_is_the_identity():
    video, lge_mask = clip(channels=3), mask()
    out, out_mask = augment(jax.random.key(0), video, lge_mask, Augmentation())
    assert out.dtype == jnp.float32
    assert out_mask.dtype == jnp.uint8
    np.testing.assert_array_equal(out, video)
    np.testing.assert_array_equal(out_mask, lge_mask)


def test_flips_are_exact_and_all_four_occur():
    video, lge_mask = clip(channels=2), mask()
    videos, masks = many(video, lge_mask, Augmentation(flip=True))
    seen = set()
    for out, out_mask in zip(videos, masks, strict=True):
        flips = itertools.product((1, -1), repeat=2)
        ((rows, cols),) = [f for f in flips if np.array_equal(out, video[:, :: f[0], :: f[1]])]
        np.testing.assert_array_equal(out_mask, lge_mask[::rows, ::cols])
        seen.add((rows, cols))
    assert len(seen) == 4


def test_shifts_are_whole_pixels_equally_likely_and_repeat_the_edge():
    size, reach = 12, 3
    video, lge_mask = clip(size=size), mask(size=size)
    videos, masks = many(video, lge_mask, Augmentation(max_shift=reach), count=700)
    seen = np.zeros((2 * reach + 1, 2 * reach + 1), int)
    expected = {}
    for move in itertools.product(range(-reach, reach + 1), repeat=2):
        picture = ndimage.shift(video, (0, *move, 0), order=0, mode="nearest")
        expected[move] = picture.astype(np.float32), ndimage.shift(lge_mask, move, order=0)
    table = {picture.tobytes(): move for move, (picture, _) in expected.items()}
    for out, out_mask in zip(videos, masks, strict=True):
        move = table[out.tobytes()]
        np.testing.assert_array_equal(out_mask, expected[move][1])
        seen[move[0] + reach, move[1] + reach] += 1
    # 100 expected in each row and column: sd 9.3, five of them.
    assert np.abs(seen.sum(0) - 100).max() < 47
    assert np.abs(seen.sum(1) - 100).max() < 47


@pytest.mark.parametrize("degrees", [-33.0, 7.5, 90.0])
def test_any_angle_against_scipy(degrees):
    size = 15
    video, lge_mask = clip(size=size, frames=2), mask(size=size)
    out, out_mask = warp(video, lge_mask, degrees=degrees)
    angle, centre = np.deg2rad(degrees), (size - 1) / 2
    # scipy's affine_transform takes the matrix from output to input coordinates (row, column).
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    offset: Any = centre - matrix @ [centre, centre]
    for frame in range(2):
        expected = ndimage.affine_transform(
            video[frame, ..., 0].astype(float), matrix, offset, order=1, mode="nearest"
        )
        # Coordinates are float32 (1e-6 of a pixel) and neighbours differ by up to 255 levels.
        np.testing.assert_allclose(out[frame, ..., 0], expected, atol=2e-3)
    expected = ndimage.affine_transform(lge_mask, matrix, offset, order=0, mode="grid-constant")
    np.testing.assert_array_equal(out_mask, expected)


def test_rotation_then_flip_then_shift():
    video, lge_mask = clip(size=9), mask(size=9)
    out, out_mask = warp(video, lge_mask, degrees=90, flip=(-1, 1), shift=(0, 2))
    expected = np.rot90(video, axes=(1, 2))[:, ::-1]
    np.testing.assert_allclose(out[:, :, 2:], expected[:, :, :-2], atol=2e-3)
    np.testing.assert_array_equal(out_mask[:, 2:], np.rot90(lge_mask)[::-1][:, :-2])
    assert not out_mask[:, :2].any()


def test_image_and_mask_move_together():
    # A bright 3x3 square in every frame, marked as MVO: its centre of mass must agree in both.
    size = 33
    video = np.zeros((3, size, size, 1), np.uint8)
    lge_mask = np.zeros((size, size), np.uint8)
    video[:, 8:11, 20:23] = 200
    lge_mask[8:11, 20:23] = 2
    videos, masks = many(video, lge_mask, EVERYTHING, count=40)
    places = set()
    for out, out_mask in zip(videos, masks, strict=True):
        bright = out[0, ..., 0] - out[0, ..., 0].min()
        image_centre = np.array(ndimage.center_of_mass(bright > bright.max() / 2))
        mask_centre = np.array(ndimage.center_of_mass(out_mask == 2))
        assert set(np.unique(out_mask)) == {0, 2}
        # Both are sampled on pixels: half a pixel each.
        assert np.abs(image_centre - mask_centre).max() < 1
        places.add(tuple(mask_centre.round()))
    assert len(places) > 30


def test_rotation_keeps_the_centre_and_stays_within_its_bound():
    size = 65
    lge_mask = np.zeros((size, size), np.uint8)
    lge_mask[32, 32], lge_mask[31:34, 61:64] = 1, 2  # 30 pixels to the right of the centre
    video = np.zeros((1, size, size, 1), np.uint8)
    _, masks = many(video, lge_mask, Augmentation(max_rotation_deg=15), count=200)
    assert (masks[:, 32, 32] == 1).all()
    ends = np.array([ndimage.center_of_mass(out == 2) for out in masks])
    angles = np.rad2deg(np.arctan2(32 - ends[:, 0], ends[:, 1] - 32))
    # One pixel at radius 30 is 1.9 degrees.
    assert np.abs(angles).max() < 17
    assert angles.min() < -10
    assert angles.max() > 10


def test_time_shift_is_cyclic_and_every_shift_occurs():
    video, lge_mask = clip(frames=6), mask()
    videos, masks = many(video, lge_mask, Augmentation(time_shift=True), count=100)
    rolls = {np.roll(video, k, axis=0).astype(np.float32).tobytes(): k for k in range(6)}
    assert {rolls[out.tobytes()] for out in videos} == set(range(6))
    assert (masks == lge_mask).all()


@pytest.mark.parametrize("name", ["brightness", "contrast", "gamma"])
def test_photometry_is_constant_over_the_clip_and_leaves_the_mask(name):
    still = np.repeat(clip(frames=1), 5, axis=0)
    lge_mask = mask()
    strength: dict[str, Any] = {name: 0.4}
    videos, masks = many(still, lge_mask, Augmentation(**strength), count=20)
    assert (videos == videos[:, :1]).all()
    assert (masks == lge_mask).all()
    assert len({out.tobytes() for out in videos}) == 20
    assert videos.min() >= 0
    # The last step may round 255 * 1 up by one unit of float32.
    assert videos.max() <= 255 * (1 + 1e-6)
    # Monotone: an order of grey levels is never turned around.
    order = np.argsort(still[0].ravel(), kind="stable")
    assert (np.diff(videos[:, 0].reshape(20, -1)[:, order]) >= -1e-4).all()


def test_strengths_are_what_the_names_say():
    grey = np.full((2, 4, 4, 1), 128, np.uint8)
    empty = np.zeros((4, 4), np.uint8)
    bright, _ = many(grey, empty, Augmentation(brightness=0.1), count=500)
    change = (bright[:, 0, 0, 0, 0] - 128) / 255
    assert np.abs(change).max() <= 0.1 + 1e-6
    assert np.abs(change).max() > 0.095
    halves = grey.copy()
    halves[:, :2], halves[:, 2:] = 100, 150
    contrast, _ = many(halves, empty, Augmentation(contrast=0.2), count=500)
    ratio = (contrast[:, 0, 3, 0, 0] - contrast[:, 0, 0, 0, 0]) / 50
    np.testing.assert_allclose(contrast.mean((1, 2, 3, 4)), 125, rtol=1e-5)
    assert 0.8 - 1e-5 <= ratio.min() < 0.81
    assert 1.19 < ratio.max() <= 1.2 + 1e-5
    gamma, _ = many(grey, empty, Augmentation(gamma=0.2), count=500)
    power = np.log(gamma[:, 0, 0, 0, 0] / 255) / np.log(128 / 255)
    assert np.exp(-0.2) - 1e-4 <= power.min() < 0.83
    assert 1.21 < power.max() <= np.exp(0.2) + 1e-4
    black_and_white = np.tile(np.array([0, 255], np.uint8), 16).reshape(2, 4, 4, 1)
    ends, _ = many(black_and_white, empty, Augmentation(gamma=0.2), count=5)
    # exp(gamma log 1) is 1 and 0 to a positive power is 0.
    np.testing.assert_allclose(ends, np.broadcast_to(black_and_white, ends.shape), rtol=1e-6)


def test_same_key_same_result_and_other_key_other_result():
    video, lge_mask = clip(), mask()
    first = many(video, lge_mask, EVERYTHING, count=8, seed=3)
    again = many(video, lge_mask, EVERYTHING, count=8, seed=3)
    for a, b in zip(first, again, strict=True):
        assert a.tobytes() == b.tobytes()
    assert len({out.tobytes() for out in first[0]}) == 8
    other = many(video, lge_mask, EVERYTHING, count=8, seed=4)
    assert not {out.tobytes() for out in first[0]} & {out.tobytes() for out in other[0]}


def test_turning_one_transform_on_does_not_change_the_draws_of_another():
    video, lge_mask = clip(), mask()
    alone, _ = many(video, lge_mask, Augmentation(flip=True), count=16)
    with_time, _ = many(video, lge_mask, Augmentation(flip=True, time_shift=True), count=16)
    np.testing.assert_array_equal(np.sort(alone, axis=1), np.sort(with_time, axis=1))


def test_normalise_has_zero_mean_and_unit_variance():
    video = clip(frames=4, size=10, channels=3)
    out = np.asarray(normalise(jnp.asarray(video)))
    assert out.dtype == np.float32
    # Sums of 1200 float32 terms of order 1.
    assert abs(out.mean(dtype=np.float64)) < 1e-6
    assert abs(out.astype(np.float64).var() - 1) < 1e-5
    expected = (video - video.mean(dtype=np.float64)) / video.std(dtype=np.float64)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_normalise_makes_a_constant_clip_zero(value):
    out = normalise(jnp.full((30, 64, 64, 1), value, jnp.uint8))
    # The float32 mean of 122880 equal numbers is off by at most a unit in the last place.
    assert np.abs(out).max() <= 2 * 255 * np.finfo(np.float32).eps
