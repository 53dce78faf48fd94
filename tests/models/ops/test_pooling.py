"""Max pooling against torch: values, the gradient among equal elements, NaN, odd windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mvo_jax.models.ops.pooling import max_pool

# (window, stride, padding, [T, H, W]): every one that the networks use, and some that they do not
CASES = [
    ((1, 2, 2), (1, 2, 2), (0, 0, 0), (3, 5, 6)),  # C3D, a row left over
    ((2, 2, 2), (2, 2, 2), (0, 1, 1), (3, 4, 5)),
    ((1, 3, 3), (1, 2, 2), (0, 1, 1), (2, 7, 8)),  # SlowFast
    ((2, 3, 3), (2, 2, 2), (0, 1, 1), (5, 8, 7)),  # P3D
    ((2, 1, 1), (2, 1, 1), (0, 0, 0), (5, 2, 2)),
    ((3, 3, 3), (1, 1, 1), (1, 1, 1), (4, 3, 5)),  # I3D
    ((3, 3, 3), (2, 2, 2), (0, 0, 0), (5, 6, 7)),
    ((1, 1, 1), (2, 2, 2), (0, 0, 0), (4, 5, 6)),  # steps over elements that no window sees
    ((2, 4, 5), (3, 3, 2), (1, 2, 2), (6, 9, 7)),
]


def both(video: np.ndarray, window, stride, padding, dtype, torch_dtype):
    """(value, gradient) of a weighted sum in both frameworks, as float64 arrays."""

    def loss(x):
        y = max_pool(x, window, stride, padding)
        weight = jnp.arange(1, y.size + 1).reshape(y.shape).astype(y.dtype) % 16
        return (y * weight).sum(), y

    gradient, value = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(video, dtype))
    x = torch.tensor(video, dtype=torch_dtype).movedim(-1, 1).requires_grad_()
    y = F.max_pool3d(x, window, stride, padding)
    last = y.movedim(1, -1)
    weight = torch.arange(1, y.numel() + 1).view(last.shape).to(torch_dtype) % 16
    (last * weight).sum().backward()
    assert x.grad is not None
    theirs = last, x.grad.movedim(1, -1)
    return (
        [np.asarray(a, np.float64) for a in (value, gradient)],
        [a.detach().double().numpy() for a in theirs],
    )


@pytest.mark.parametrize(("window", "stride", "padding", "size"), CASES)
def test_value_and_gradient_equal_torch_with_many_ties(window, stride, padding, size):
    # Small integers: a third of all windows has its maximum several times; all sums are exact.
    video = np.random.default_rng(0).integers(0, 3, (2, *size, 3))
    ours, theirs = both(video, window, stride, padding, jnp.float32, torch.float32)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(our, their)


def test_float64_and_bfloat16_keep_their_dtype():
    video = np.random.default_rng(1).integers(0, 3, (1, 4, 6, 6, 2))
    with jax.enable_x64(True):
        for dtype, torch_dtype in ((jnp.float64, torch.float64), (jnp.bfloat16, torch.bfloat16)):
            pooled = max_pool(jnp.asarray(video, dtype), (2, 3, 3), (2, 2, 2), (0, 1, 1))
            assert pooled.dtype == dtype
            ours, theirs = both(video, (2, 3, 3), (2, 2, 2), (0, 1, 1), dtype, torch_dtype)
            for our, their in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(our, their)


def test_the_gradient_survives_a_producer_that_is_compiled_twice():
    # The derivative that compares x with its maximum loses entries when XLA computes x again, in
    # another fusion with other rounding. All of dy must arrive, whatever x is made of.
    x = np.random.default_rng(2).standard_normal((2, 4, 8, 8, 16)).astype(np.float32)

    def arrived(shift):
        y = max_pool(jnp.tanh(x * 1.7 + 0.3) / 3.1 + shift, (2, 2, 2), (2, 2, 2))
        return y.sum()

    gradient = jax.jit(jax.grad(arrived))(np.zeros_like(x))
    assert gradient.sum() == 2 * 2 * 4 * 4 * 16


def test_nan_goes_through():
    video = np.zeros((1, 2, 4, 4, 1), np.float32)
    video[0, 1, 3, 3] = np.nan
    pooled = np.asarray(max_pool(jnp.asarray(video), (2, 2, 2), (2, 2, 2)))
    assert np.isnan(pooled[0, 0, 1, 1, 0])
    assert np.isfinite(pooled).sum() == pooled.size - 1


def test_a_window_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a window of 3 does not fit 2 elements"):
        max_pool(jnp.zeros((1, 4, 4, 2, 1)), (1, 1, 3), (1, 1, 1))
