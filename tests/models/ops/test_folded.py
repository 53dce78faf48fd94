"""Convolutions and BatchNorm on folded columns against the plain ones, in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mvo_jax.models.ops.folded import fold_columns, folded_convolution, unfold_columns
from mvo_jax.models.ops.layers import BatchNorm
from mvo_jax.models.r2plus1d import R2Plus1D

# float64: sums of at most 147 products of order 1, rounded at 1.1e-16 each.
EXACT = 1e-12


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def plain(x, kernel, strides, padding):
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        [(p, p) for p in padding],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )


@pytest.mark.parametrize(
    ("size", "strides", "padding", "width", "fold_in", "fold_out"),
    [
        ((1, 7, 7), (1, 2, 2), (0, 3, 3), 16, 1, 2),  # the stem
        ((1, 7, 7), (1, 2, 2), (0, 3, 3), 16, 1, 4),
        ((1, 3, 3), (1, 1, 1), (0, 1, 1), 8, 2, 2),  # the first stage
        ((3, 1, 1), (1, 1, 1), (1, 0, 0), 8, 2, 2),
        ((3, 1, 1), (1, 1, 1), (1, 0, 0), 8, 4, 4),
        ((1, 3, 3), (1, 2, 2), (0, 1, 1), 12, 2, 1),  # into the second stage
        ((1, 1, 1), (2, 2, 2), (0, 0, 0), 12, 2, 1),  # its shortcut
        ((1, 3, 3), (1, 2, 2), (0, 1, 1), 12, 4, 2),
    ],
)
def test_value_and_gradients(size, strides, padding, width, fold_in, fold_out):
    x, kernel = normal(2, 4, 6, width, 3), normal(*size, 3, 5, seed=1)
    expected, pullback = jax.vjp(lambda x, k: plain(x, k, strides, padding), x, kernel)

    def folded(x, kernel):
        out = folded_convolution(
            fold_columns(x, fold_in),
            kernel,
            strides=strides,
            padding=padding,
            fold_in=fold_in,
            fold_out=fold_out,
        )
        return unfold_columns(out, fold_out)

    out, our_pullback = jax.vjp(folded, x, kernel)
    np.testing.assert_allclose(out, expected, rtol=0, atol=EXACT)
    dy = normal(*expected.shape, seed=2)
    for ours, theirs in zip(our_pullback(dy), pullback(dy), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    ("width", "stride", "fold_in", "fold_out"),
    [(8, 1, 2, 1), (6, 1, 1, 4)],
    ids=["between groups", "part of a group"],
)
def test_what_cannot_be_folded_is_refused(width, stride, fold_in, fold_out):
    with pytest.raises(ValueError, match="cannot be folded"):
        folded_convolution(
            fold_columns(normal(1, 1, 4, width, 2), fold_in),
            normal(1, 3, 3, 2, 2),
            strides=(1, stride, stride),
            padding=(0, 1, 1),
            fold_in=fold_in,
            fold_out=fold_out,
        )


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_of_folded_columns_is_that_of_the_plain_ones(train):
    x, dy = normal(2, 2, 3, 6, 4) * 3 + 1, normal(2, 2, 3, 6, 4, seed=1)
    kinds: dict[str, Any] = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    variables = BatchNorm(**kinds).init(jax.random.key(0), x, train=False)
    variables["params"]["scale"] = normal(4, seed=2)

    def loss(x, params, fold):
        out, updated = BatchNorm(fold=fold, **kinds).apply(
            {**variables, "params": params},
            fold_columns(x, fold),
            train=train,
            mutable=["batch_stats"],
        )
        return (unfold_columns(out, fold) * dy).sum(), updated

    plain_grads, plain_stats = jax.grad(loss, (0, 1), has_aux=True)(x, variables["params"], 1)
    grads, stats = jax.grad(loss, (0, 1), has_aux=True)(x, variables["params"], 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=EXACT),
        (grads, stats),
        (plain_grads, plain_stats),
    )


@pytest.mark.parametrize(
    ("columns", "stage_sizes"), [(36, (1, 1)), (32, (1,)), (34, (1, 1)), (33, (1, 1))]
)
def test_trunk_of_any_width_and_depth(columns, stage_sizes):
    # 36: an odd number of pairs; one stage: unfolded at the end; 34 and 33: no pairs.
    video = normal(1, 8, 32, columns, 1)
    kinds: dict[str, Any] = {"width": 4, "stage_sizes": stage_sizes, "dtype": jnp.float64}
    variables = R2Plus1D(lowering="conv3d", **kinds).init(jax.random.key(0), video, train=False)
    features: dict[str, Any] = {
        lowering: R2Plus1D(lowering=lowering, **kinds).apply(variables, video, train=False)
        for lowering in ("conv3d", "conv3d_pairs")
    }
    np.testing.assert_allclose(features["conv3d_pairs"], features["conv3d"], rtol=0, atol=EXACT)
