"""Every lowering of a convolution against torch, and what XLA makes of the one for CPUs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mvo_jax.models.ops.conv3d import SMALL_GRID, Conv3d
from mvo_jax.models.ops.lowerings import (
    LOWERINGS,
    PADDED,
    WIDE,
    convolution,
    half,
    spatial_convolution,
    temporal_convolution,
)
from mvo_jax.models.ops.numerics import Numerics
from tests.draws import normal
from tests.models.conftest import QUICK_COMPILE

# (kernel, stride, padding, [T, H, W], C): on both sides of the bounds between the forms; odd and
# even sizes, because a strided window ends differently in the two.
CASES = {
    "joined": ((3, 3, 3), (1, 1, 1), (1, 1, 1), (4, 5, 6), 3),
    "summed": ((3, 3, 3), (1, 1, 1), (1, 1, 1), (3, 6, 7), WIDE),
    "small grid": ((3, 3, 3), (1, 1, 1), (1, 1, 1), (2, 4, 4), 3),
    "strided stem": ((5, 7, 7), (2, 2, 2), (2, 3, 3), (7, 9, 8), 2),
    "time": ((3, 1, 1), (1, 1, 1), (1, 0, 0), (5, 4, 3), 2),
    "strided time": ((5, 1, 1), (4, 2, 2), (2, 0, 0), (9, 3, 4), 3),
    "wide padding": ((3, 1, 1), (1, 1, 1), (2, 0, 0), (5, 4, 3), 2),
    "space": ((1, 3, 3), (2, 1, 1), (0, 1, 1), (4, 7, 6), 3),
    "strided space": ((1, 7, 7), (1, 2, 2), (0, 3, 3), (3, 9, 8), 2),
    "point": ((1, 1, 1), (2, 2, 2), (0, 0, 0), (5, 5, 6), 3),
}


def test_the_cases_lie_on_both_sides_of_every_bound():
    grids = {name: size[1] * size[2] for name, (*_, size, _) in CASES.items()}
    assert grids["small grid"] <= SMALL_GRID < grids["joined"]
    assert CASES["joined"][-1] < WIDE <= CASES["summed"][-1]


# Pairs of columns are R(2+1)D's (test_factorised.py), filled channels have a test of their own.
PLAIN = [name for name in LOWERINGS if name != "conv3d_pairs" and not name.endswith(PADDED)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("lowering", PLAIN)
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_equal_torch_in_float64(case, lowering):
    kernel_size, stride, padding, size, channels = CASES[case]
    x, bias = normal(2, *size, channels), normal(8, seed=2)
    kernel = normal(*kernel_size, channels, 8, seed=1)
    numerics = Numerics(lowering, None, jnp.float64, jnp.float64)
    layer: Any = Conv3d(8, kernel_size, stride, padding, numerics, use_bias=True)

    def loss(params, x):
        y = layer.apply({"params": params}, x)
        return jnp.square(y).sum(), y

    params = {"kernel": kernel, "bias": bias}
    step = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), compiler_options=QUICK_COMPILE)
    gradients, value = step(params, x)
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, kernel, bias)]
    out = F.conv3d(
        theirs[0].movedim(-1, 1), theirs[1].permute(4, 3, 0, 1, 2), theirs[2], stride, padding
    ).movedim(1, -1)
    out.square().sum().backward()
    # float64, sums of up to 3456 products of order 1, squared.
    np.testing.assert_allclose(value, out.detach().numpy(), rtol=1e-10, atol=1e-11)
    ours = gradients[1], gradients[0]["kernel"], gradients[0]["bias"]
    for our, their in zip(ours, theirs, strict=True):
        assert their.grad is not None
        size_of = np.abs(their.grad.numpy()).max()
        np.testing.assert_allclose(our, their.grad.numpy(), rtol=1e-10, atol=1e-12 * size_of)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("lowering", [name for name in LOWERINGS if name.endswith(PADDED)])
@pytest.mark.parametrize("kernel_size", [(1, 3, 3), (3, 1, 1), (3, 3, 3)])
def test_filled_channels_change_no_result(kernel_size, lowering):
    """13 channels to 45, as 16 to 48 and sliced again; values and both gradients in float64."""
    x, kernel = normal(2, 4, 5, 6, 13), normal(*kernel_size, 13, 45, seed=1)
    dy = normal(2, 4, 5, 6, 45, seed=2)

    def run(lowering):
        def forward(x, kernel):
            options: Any = {"stride": (1, 1, 1), "padding": half(kernel_size)}
            return convolution(x, kernel, **options, lowering=lowering)

        def both(x, kernel, dy):
            value, pullback = jax.vjp(forward, x, kernel)
            return value, *pullback(dy)

        lowered = jax.jit(both).lower(x, kernel, dy)
        return lowered.as_text(), lowered.compile(QUICK_COMPILE)(x, kernel, dy)

    text, filled = run(lowering)
    plain_text, plain = run(lowering.removesuffix(PADDED))
    for our, their in zip(filled, plain, strict=True):
        # Sums of the same products and of zeros, up to 405 of order 1.
        np.testing.assert_allclose(our, their, rtol=0, atol=1e-12 * np.abs(their).max())
    assert "x16x48x" in text  # it is another program
    assert "x16x48x" not in plain_text


def test_the_channels_of_a_clip_are_not_filled():
    x, kernel = jnp.ones((1, 2, 8, 8, 3)), jnp.ones((1, 3, 3, 3, 45))
    options: Any = {"stride": (1, 2, 2), "padding": (0, 1, 1), "lowering": "conv3d_padded"}
    program = str(jax.make_jaxpr(lambda x, k: convolution(x, k, **options))(x, kernel))
    assert "f32[1,3,3,3,48]" in program
    assert "f32[1,2,8,8,8]" not in program


def test_a_grey_clip_counts_as_equal_channels():
    x = normal(1, 3, 6, 6, 1).astype(np.float32)
    layer: Any = Conv3d(4, (3, 3, 3), padding=(1, 1, 1), in_channels=3)
    variables = layer.init(jax.random.key(0), x)
    assert variables["params"]["kernel"].shape == (3, 3, 3, 3, 4)
    # float32 sums of 81 products, in another order.
    copied = layer.apply(variables, np.repeat(x, 3, -1))
    np.testing.assert_allclose(layer.apply(variables, x), copied, atol=1e-6)


def test_a_flat_kernel_is_stored_as_in_two_dimensions():
    x = normal(2, 3, 5, 6, 4).astype(np.float32)
    options: Any = (3, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    layers: list[Any] = [Conv3d(*options, flat=flat) for flat in (True, False)]
    flat, whole = layers
    kernel = flat.init(jax.random.key(0), x)["params"]["kernel"]
    assert kernel.shape == (3, 3, 4, 3)
    outputs: list[Any] = [
        flat.apply({"params": {"kernel": kernel}}, x),
        whole.apply({"params": {"kernel": kernel[None]}}, x),
    ]
    np.testing.assert_array_equal(*outputs)


def test_an_unknown_lowering_is_refused():
    with pytest.raises(ValueError, match="lowering 'fft' is unknown; choose from"):
        Numerics("fft")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the lowering is for XLA:CPU alone")
@pytest.mark.parametrize(
    ("convolution", "kernel_shape"),
    [(spatial_convolution, (1, 3, 3, 8, 16)), (temporal_convolution, (3, 1, 1, 8, 16))],
    ids=["spatial", "temporal"],
)
def test_the_cpu_form_computes_its_input_once(convolution, kernel_shape):
    def value(x, shift, kernel):
        # Stands for BatchNorm, ReLU and a residual sum, which the form conv2d computes again.
        hidden = jnp.maximum(x * shift, 0) + x
        out = convolution(hidden, kernel, stride=1, padding=1, lowering="conv2d_cpu")
        return jnp.square(out).sum()

    x, shift, kernel = jnp.ones((2, 3, 16, 16, 8)), jnp.ones(8), jnp.ones(kernel_shape)
    program = jax.jit(jax.grad(value, argnums=2)).lower(x, shift, kernel).compile()
    loops = (program.as_text() or "").split("\n\n")
    assert sum(" maximum(" in loop for loop in loops) == 1
