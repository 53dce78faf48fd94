"""Eq. (1) of the paper by hand, by brute force, and in numpy and JAX bit for bit."""

import jax
import numpy as np
import pytest

from mvo_jax.data.coarse_mask import coarse_mask
from mvo_jax.data.labels import BACKGROUND, INFARCT, MVO, MYOCARDIUM

# Divisible and not, one block, one pixel a block, and blocks that lie wholly in the padding.
SIZES = [
    (4, 2), (6, 3), (64, 16), (64, 4), (64, 64), (8, 1), (5, 2), (5, 4), (7, 3), (10, 4), (3, 3)
]  # fmt: skip


def random_masks(n: int, *, count: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, (count, n, n)).astype(np.uint8)


def by_loops(mask: np.ndarray, m: int) -> np.ndarray:
    """Every pixel votes for its block; pixels beyond the border are zeros."""
    side = int(np.ceil(len(mask) / m))
    count = np.zeros((m, m), int)
    for row, col in np.ndindex(mask.shape):
        count[row // side, col // side] += mask[row, col] == MVO
    return count.astype(np.float32) / np.float32(side * side)


def test_by_hand_when_the_blocks_fit():
    mask = np.array([[2, 2, 0, 0], [2, 2, 0, 2], [1, 3, 2, 0], [0, 2, 0, 2]], np.uint8)
    np.testing.assert_array_equal(coarse_mask(mask, 2), [[1, 0.25], [0.25, 0.5]])


def test_by_hand_with_zero_padding():
    # n = 5, m = 2: blocks of 3 and one row and column of padding; all pixels are MVO.
    mask = np.full((5, 5), MVO, np.uint8)
    expected = np.array([[9, 6], [6, 4]], np.float32) / np.float32(9)
    np.testing.assert_array_equal(coarse_mask(mask, 2), expected)


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_brute_force_numpy_and_jitted_jax_agree_bit_for_bit(n, m):
    masks = random_masks(n)
    expected = np.stack([by_loops(mask, m) for mask in masks])
    plain = coarse_mask(masks, m)
    jitted = jax.jit(coarse_mask, static_argnums=1)(masks, m)
    assert isinstance(plain, np.ndarray)
    assert isinstance(jitted, jax.Array)
    assert plain.dtype == jitted.dtype == np.float32
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(np.asarray(jitted), expected)


def test_every_quotient_is_the_same_in_both_forms():
    # A block of 7x7 with k MVO pixels, for every k: 1/49 is where a product with a rounded
    # reciprocal differs from a division.
    masks = np.zeros((50, 7, 7), np.uint8)
    for k in range(50):
        masks[k].flat[:k] = MVO
    plain = coarse_mask(masks, 1)
    np.testing.assert_array_equal(plain[:, 0, 0], np.arange(50, dtype=np.float32) / np.float32(49))
    jitted = jax.jit(coarse_mask, static_argnums=1)(masks, 1)
    np.testing.assert_array_equal(np.asarray(jitted), plain)


def test_only_mvo_counts_and_any_leading_axes_are_kept():
    for value in (BACKGROUND, INFARCT, MYOCARDIUM, 255):
        assert not coarse_mask(np.full((8, 8), value, np.uint8), 4).any()
    masks = random_masks(8, count=6).reshape(2, 3, 8, 8)
    result = coarse_mask(masks, 4)
    assert result.shape == (2, 3, 4, 4)
    np.testing.assert_array_equal(result[1, 2], coarse_mask(masks[1, 2], 4))


@pytest.mark.parametrize("mask_size", [0, -1, 9])
def test_impossible_sizes_are_refused(mask_size):
    with pytest.raises(ValueError, match="mask_size must be 1 to 8"):
        coarse_mask(np.zeros((8, 8), np.uint8), mask_size)


def test_a_mask_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match="square, not 8x6"):
        coarse_mask(np.zeros((8, 6), np.uint8), 2)
