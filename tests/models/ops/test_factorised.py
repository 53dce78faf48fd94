"""Layers on pairs of columns against the plain ones, in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvo_jax.models.ops.factorised import (
    FactorisedNorm,
    columns_together,
    join_columns,
    joined_convolution,
    part_columns,
)
from mvo_jax.models.ops.lowerings import convolution_3d
from mvo_jax.models.ops.numerics import Numerics
from mvo_jax.models.r2plus1d import R2Plus1D
from tests.draws import normal

pytestmark = pytest.mark.usefixtures("x64")
# float64: sums of at most 147 products of order 1, rounded at 1.1e-16 each.
EXACT = 1e-12


def numerics(lowering: str) -> Numerics:
    return Numerics(lowering, None, jnp.float64, jnp.float64)


@pytest.mark.parametrize(
    ("size", "strides", "padding", "width", "columns_in", "columns_out"),
    [
        ((1, 7, 7), (1, 2, 2), (0, 3, 3), 16, 1, 2),  # the stem
        ((1, 3, 3), (1, 1, 1), (0, 1, 1), 8, 2, 2),  # the first stage
        ((3, 1, 1), (1, 1, 1), (1, 0, 0), 8, 2, 2),
        ((1, 3, 3), (1, 2, 2), (0, 1, 1), 12, 2, 1),  # into the second stage
        ((1, 1, 1), (2, 2, 2), (0, 0, 0), 12, 2, 1),  # its shortcut
        ((1, 3, 3), (1, 2, 2), (0, 1, 1), 12, 4, 2),
    ],
)
def test_value_and_gradients(size, strides, padding, width, columns_in, columns_out):
    x, kernel = jnp.asarray(normal(2, 4, 6, width, 3)), jnp.asarray(normal(*size, 3, 5, seed=1))
    expected, pullback = jax.vjp(lambda x, k: convolution_3d(x, k, strides, padding), x, kernel)

    def joined(x, kernel):
        out = joined_convolution(
            join_columns(x, columns_in),
            kernel,
            stride=strides,
            padding=padding,
            columns_in=columns_in,
            columns_out=columns_out,
        )
        return part_columns(out, columns_out)

    out, our_pullback = jax.vjp(joined, x, kernel)
    np.testing.assert_allclose(out, expected, rtol=0, atol=EXACT)
    dy = jnp.asarray(normal(*expected.shape, seed=2))
    for ours, theirs in zip(our_pullback(dy), pullback(dy), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    ("width", "columns_in", "columns_out"),
    [(8, 2, 1), (6, 1, 4)],
    ids=["between groups", "part of a group"],
)
def test_what_cannot_be_joined_is_refused(width, columns_in, columns_out):
    with pytest.raises(ValueError, match="columns with stride 1 cannot go from"):
        joined_convolution(
            join_columns(jnp.zeros((1, 1, 4, width, 2)), columns_in),
            jnp.zeros((1, 3, 3, 2, 2)),
            stride=(1, 1, 1),
            padding=(0, 1, 1),
            columns_in=columns_in,
            columns_out=columns_out,
        )


def test_the_narrow_layers_of_the_full_network_are_on_pairs():
    pairs = numerics("conv3d_pairs")
    assert {columns_together(pairs, 32, channels) for channels in (45, 64, 144)} == {2}
    wide = (1, 3, 128, 230, 256, 288, 460, 512, 576, 921, 1152)
    assert {columns_together(pairs, 32, channels) for channels in wide} == {1}
    assert columns_together(pairs, 33, 64) == columns_together(numerics("conv3d"), 32, 64) == 1


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_of_pairs_is_that_of_the_plain_columns(train):
    x, dy = jnp.asarray(normal(2, 2, 3, 6, 4) * 3 + 1), jnp.asarray(normal(2, 2, 3, 6, 4, seed=1))
    variables = FactorisedNorm(numerics("conv3d")).init(jax.random.key(0), x, train=False)
    params = {**variables["params"], "scale": jnp.asarray(normal(4, seed=2))}

    def loss(x, params, lowering):
        out, updated = FactorisedNorm(numerics(lowering)).apply(
            {**variables, "params": params}, x, train=train, mutable=["batch_stats"]
        )
        return (out * dy).sum(), updated

    plain, pairs = (
        jax.grad(loss, (0, 1), has_aux=True)(x, params, lowering)
        for lowering in ("conv3d", "conv3d_pairs")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=EXACT), pairs, plain)


@pytest.mark.parametrize(
    ("columns", "stage_sizes"), [(36, (1, 1)), (32, (1,)), (34, (1, 1)), (33, (1, 1))]
)
def test_trunk_of_any_width_and_depth(columns, stage_sizes, random_variables):
    # 36: an odd number of pairs; one stage: pairs to the end; 34 and 33: no pairs in the stem.
    video = jnp.asarray(normal(1, 8, 32, columns, 1))
    plain, pairs = (
        R2Plus1D(4, stage_sizes, numerics(lowering)) for lowering in ("conv3d", "conv3d_pairs")
    )
    variables = random_variables(plain, video.shape, train=False)
    features: list[Any] = [
        jax.jit(lambda v, x, net=net: net.apply(v, x, train=False))(variables, video)
        for net in (pairs, plain)
    ]
    np.testing.assert_allclose(*features, rtol=0, atol=EXACT)
