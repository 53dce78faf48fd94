"""Convolutions with kernels in time and space: every lowering against torch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mvo_jax.models.ops.conv3d import SMALL_GRID, WIDE, Conv2d, Conv3d, check_clip

# Compiling takes far longer than running here.
QUICK_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

# (kernel, stride, padding, [T, H, W], C): on both sides of the bounds between the forms
CASES = {
    "joined": ((3, 3, 3), (1, 1, 1), (1, 1, 1), (4, 5, 6), 3),
    "summed": ((3, 3, 3), (1, 1, 1), (1, 1, 1), (3, 6, 7), WIDE),
    "small grid": ((3, 3, 3), (1, 1, 1), (1, 1, 1), (2, 4, 4), 3),
    "strided stem": ((5, 7, 7), (2, 2, 2), (2, 3, 3), (7, 9, 8), 2),
    "time": ((5, 1, 1), (4, 2, 2), (2, 0, 0), (9, 3, 4), 3),
    "space": ((1, 3, 3), (2, 2, 2), (0, 1, 1), (4, 7, 6), 3),
    "point": ((1, 1, 1), (1, 2, 2), (0, 0, 0), (2, 5, 4), 3),
}


def test_the_cases_lie_on_both_sides_of_every_bound():
    grids = {name: size[1] * size[2] for name, (*_, size, _) in CASES.items()}
    assert grids["small grid"] <= SMALL_GRID < grids["joined"]
    assert CASES["joined"][-1] < WIDE <= CASES["summed"][-1]


# The one left out, conv2d_conv1d, pairs forms that these have too.
@pytest.mark.parametrize("lowering", ["conv3d", "conv2d", "im2col_conv1d", "im2col_matmul"])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_equal_torch_in_float64(case, lowering):
    kernel_size, stride, padding, size, channels = CASES[case]
    draws = np.random.default_rng(0)
    x = draws.standard_normal((2, *size, channels))
    kernel = draws.standard_normal((*kernel_size, channels, 8))
    bias = draws.standard_normal(8)
    with jax.enable_x64(True):
        layer = Conv3d(
            8,
            kernel_size,
            stride,
            padding,
            use_bias=True,
            lowering=lowering,
            dtype=jnp.float64,
            param_dtype=jnp.float64,
        )

        def loss(params, x):
            y: Any = layer.apply({"params": params}, x)
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
    for ours, their in zip(
        (gradients[1], gradients[0]["kernel"], gradients[0]["bias"]), theirs, strict=True
    ):
        assert their.grad is not None
        size_of = np.abs(their.grad.numpy()).max()
        np.testing.assert_allclose(ours, their.grad.numpy(), rtol=1e-10, atol=1e-12 * size_of)


def test_a_grey_clip_counts_as_equal_channels():
    x = np.random.default_rng(0).standard_normal((1, 3, 6, 6, 1)).astype(np.float32)
    layer = Conv3d(4, (3, 3, 3), padding=(1, 1, 1), in_channels=3, lowering="im2col_matmul")
    variables: Any = layer.init(jax.random.key(0), x)
    assert variables["params"]["kernel"].shape == (3, 3, 3, 3, 4)
    # float32 sums of 81 products, in another order.
    ours: Any = layer.apply(variables, x)
    copied: Any = layer.apply(variables, np.repeat(x, 3, -1))
    np.testing.assert_allclose(ours, copied, atol=1e-6)


@pytest.mark.parametrize("lowering", ["conv3d", "conv2d", "im2col_matmul"])
def test_a_flat_convolution_is_the_same_on_every_frame(lowering):
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 6, 4)).astype(np.float32)
    layer = Conv2d(3, 3, stride=2, padding=1, lowering=lowering)
    variables = layer.init(jax.random.key(0), x)
    kernel = torch.tensor(np.array(variables["params"]["kernel"])).permute(3, 2, 0, 1)
    frames = torch.tensor(x).flatten(0, 1).permute(0, 3, 1, 2)
    theirs = F.conv2d(frames, kernel, stride=2, padding=1).permute(0, 2, 3, 1)
    ours: Any = layer.apply(variables, x)
    # float32 sums of 36 products.
    np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 7, 64, 64, 1), "clips of 7 frames of 64x64 are too small: the network takes 8"),
        ((1, 30, 64, 31, 1), "clips of 30 frames of 64x31 are too small"),
        ((1, 8, 32, 32, 2), "clips have 2 channels, the stem 3"),
    ],
)
def test_clips_that_do_not_fit_are_refused(shape, message):
    check_clip(jnp.zeros((1, 8, 32, 32, 1)), in_channels=3, frames=8, size=32)
    check_clip(jnp.zeros((1, 8, 32, 32, 3)), in_channels=3, frames=8, size=32)
    with pytest.raises(ValueError, match=message):
        check_clip(jnp.zeros(shape), in_channels=3, frames=8, size=32)
