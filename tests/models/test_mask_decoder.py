"""Mask decoder: transposed convolution, pooling and every mask size.

Both layouts are compared with torch in tests/interop/parity.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvo_jax.models.mask_decoder import (
    LAYOUTS,
    MaskDecoder,
    TransposedConv,
    adaptive_average_pool,
    max_over_time,
)
from mvo_jax.models.ops.numerics import Numerics

X64 = Numerics(None, None, jnp.float64, jnp.float64)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1, 1), (1, 5, 2)])
def test_transposed_convolution_against_a_naive_loop(shape):
    # Every input pixel (i, j) adds its value times torch's kernel at 2i - 1 + a, 2j - 1 + b.
    batch, height, width = shape
    draws = np.random.default_rng(0)
    x = draws.standard_normal((batch, height, width, 2))
    kernel = draws.standard_normal((3, 3, 2, 3))
    bias = draws.standard_normal(3)
    expected = np.zeros((batch, 2 * height, 2 * width, 3)) + bias
    torch_kernel = kernel[::-1, ::-1]  # stored flipped
    for i in range(height):
        for j in range(width):
            for a in range(3):
                for b in range(3):
                    row, col = 2 * i - 1 + a, 2 * j - 1 + b
                    if 0 <= row < 2 * height and 0 <= col < 2 * width:
                        expected[:, row, col] += x[:, i, j] @ torch_kernel[a, b]
    layer: Any = TransposedConv(3, X64)
    out = layer.apply({"params": {"kernel": kernel, "bias": bias}}, jnp.asarray(x))
    np.testing.assert_allclose(out, expected, atol=1e-13)  # float64, at most 8 products of order 1


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 5), (10, 7, 3), (3, 4, 6)])
def test_average_pool_by_loops(height, width, size):
    x = np.random.default_rng(0).standard_normal((2, height, width, 3)).astype(np.float32)

    def cells(length):
        return [
            slice(i * length // size, int(np.ceil((i + 1) * length / size))) for i in range(size)
        ]

    expected = np.array(
        [[x[:, r, c].mean(axis=(1, 2)) for c in cells(width)] for r in cells(height)]
    ).transpose(2, 0, 1, 3)
    # float32 means of at most 9 values of order 1.
    np.testing.assert_allclose(adaptive_average_pool(jnp.asarray(x), size), expected, atol=1e-6)


def test_maximum_over_time_and_its_gradient():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3, 3, 4)), jnp.float32)
    np.testing.assert_array_equal(max_over_time(x), np.asarray(x).max(axis=1))
    gradient = np.asarray(jax.grad(lambda x: (2 * max_over_time(x)).sum())(x))
    np.testing.assert_array_equal(gradient, 2.0 * (x == x.max(axis=1, keepdims=True)))


def test_gradient_of_a_tied_maximum_goes_to_the_first_step():
    x = jnp.array([1.0, 3.0, 3.0, 2.0]).reshape(1, 4, 1)
    gradient = jax.grad(lambda x: max_over_time(x).sum())(x)
    np.testing.assert_array_equal(np.asarray(gradient).ravel(), [0, 1, 0, 0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("grid", "mask_size", "blocks"),
    [
        ((4, 4), 4, 0),
        ((4, 4), 8, 1),
        ((4, 4), 16, 2),
        ((4, 4), 32, 3),
        ((4, 4), 64, 4),
        ((4, 4), 5, 1),
        ((4, 4), 1, 0),
        ((2, 2), 16, 3),
        ((5, 5), 16, 2),
        ((3, 5), 16, 3),
    ],
)
def test_every_mask_size(layout, grid, mask_size, blocks):
    decoder: Any = MaskDecoder(mask_size, layout)
    features = jnp.zeros((2, 3, *grid, 32))
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), features, train=False))
    assert sum(name.startswith("block") for name in shapes["params"]) == blocks
    out, kept = jax.eval_shape(
        lambda v: decoder.apply(v, features, train=False, mutable=["intermediates"]), shapes
    )
    assert out.shape == (2, mask_size, mask_size)
    expected = {"pooled": (2, *grid, 32)}
    for block in range(1, blocks + 1):
        side = 2**block
        expected[f"upsampled{block}"] = (2, side * grid[0], side * grid[1], max(8, 32 // side))
    assert {name: value.shape for name, value in kept["intermediates"].items()} == expected


def test_a_mask_without_cells_is_refused():
    decoder: Any = MaskDecoder(0)
    features = jnp.zeros((1, 1, 4, 4, 8))
    with pytest.raises(ValueError, match="mask_size must be at least 1, not 0"):
        jax.eval_shape(lambda: decoder.init(jax.random.key(0), features, train=False))
