"""BatchNorm's written-out derivative against the one JAX builds, on one device and on eight."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mvo_jax.models.ops.layers import BatchNorm, normalise_batch

EPSILON = 1e-5


def textbook(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    var = jnp.square(x - mean).mean(axes)
    return (x - mean) / jnp.sqrt(var + EPSILON) * scale + bias


def draw(dtype: type = np.float64) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    x = 3 + 2 * rng.standard_normal((8, 2, 3, 3, 4))
    # Channel 3 is constant: its variance is 0 and epsilon decides.
    x[..., 3] = 7
    dy = rng.standard_normal(x.shape) + 0.5
    return tuple(a.astype(dtype) for a in (x, rng.uniform(0.5, 2, 4), rng.standard_normal(4), dy))


def test_value_and_derivative_in_float64() -> None:
    with jax.enable_x64(True):
        x, scale, bias, dy = map(jnp.asarray, draw())
        out, pullback = jax.vjp(textbook, x, scale, bias)
        (ours, mean, var), our_pullback = jax.vjp(
            lambda *args: normalise_batch(*args, None, EPSILON), x, scale, bias
        )
        np.testing.assert_allclose(ours, out, rtol=0, atol=1e-13)
        np.testing.assert_allclose(mean, x.mean((0, 1, 2, 3)), rtol=1e-14)
        np.testing.assert_allclose(var, x.var((0, 1, 2, 3)), rtol=1e-13)
        ignored = jnp.ones(4)
        # 1 / sqrt(epsilon) = 316 multiplies the rounding of the constant channel.
        for our, their in zip(our_pullback((dy, ignored, ignored)), pullback(dy), strict=True):
            np.testing.assert_allclose(our, their, rtol=0, atol=1e-11)


def test_eight_devices_equal_one() -> None:
    if jax.local_device_count() < 8:
        pytest.skip("needs 8 devices, simulated ones are enough")
    with jax.enable_x64(True):
        x, scale, bias, dy = map(jnp.asarray, draw())

        def loss(x, scale, bias, dy, axis_name):
            out, mean, var = normalise_batch(x, scale, bias, axis_name, EPSILON)
            return (out * dy).mean(), (mean, var)

        def gradients(x, scale, bias, dy, axis_name=None):
            grads, stats = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(
                x, scale, bias, dy, axis_name
            )
            return grads, stats

        (dx, *dparams), stats = gradients(x, scale, bias, dy)

        def on_device(x, scale, bias, dy):
            (dx, *dparams), stats = gradients(x, scale, bias, dy, "batch")
            # As in the training step: a mean over devices of the local losses' gradients.
            return dx, lax.pmean(dparams, "batch"), stats

        def split(a):
            return a.reshape(8, 1, *a.shape[1:])

        step = jax.pmap(
            on_device, axis_name="batch", in_axes=(0, None, None, 0), out_axes=(0, None, None)
        )
        dx8, dparams8, stats8 = step(split(x), scale, bias, split(dy))
        # Each device's loss is a mean over its own share.
        np.testing.assert_allclose(dx8.reshape(x.shape) / 8, dx, rtol=0, atol=1e-13)
        for ours, theirs in zip([*dparams8, *stats8], [*dparams, *stats], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13)


def test_bfloat16_keeps_float32_statistics() -> None:
    x, *_ = draw(np.float32)
    layer = BatchNorm(dtype=jnp.bfloat16)
    half = jnp.asarray(x, jnp.bfloat16)
    variables = layer.init(jax.random.key(0), half, train=True)
    out, updated = layer.apply(variables, half, train=True, mutable=["batch_stats"])
    assert out.dtype == jnp.bfloat16
    stats: Any = updated["batch_stats"]
    assert stats["mean"].dtype == stats["var"].dtype == jnp.float32
    exact = np.asarray(half, np.float64)
    np.testing.assert_allclose(stats["mean"], 0.1 * exact.mean((0, 1, 2, 3)), rtol=1e-6)
    unbiased = exact.var((0, 1, 2, 3), ddof=1)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * unbiased, rtol=1e-6)
    dx = jax.grad(
        lambda x: layer.apply(variables, x, train=True, mutable=["batch_stats"])[0].sum()
    )(half)
    assert dx.dtype == jnp.bfloat16


def test_large_mean_keeps_float32_digits() -> None:
    """A mean of 100 deviations costs two of seven digits, not more."""
    rng = np.random.default_rng(0)
    x = (100 + rng.standard_normal((4096, 2))).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    (out, _, _), pullback = jax.vjp(
        lambda x: normalise_batch(x, jnp.asarray(ones), jnp.asarray(zeros), None, EPSILON),
        jnp.asarray(x),
    )
    (dx,) = pullback((jnp.asarray(dy), jnp.asarray(zeros), jnp.asarray(zeros)))
    with jax.enable_x64(True):
        exact, exact_pullback = jax.vjp(
            lambda x: textbook(x, jnp.ones(2), jnp.zeros(2)), jnp.asarray(x, jnp.float64)
        )
        (exact_dx,) = exact_pullback(jnp.asarray(dy, jnp.float64))
    # 100 * 6e-8 is what the factor-and-offset form leaves.
    np.testing.assert_allclose(out, exact, rtol=0, atol=3e-5)
    np.testing.assert_allclose(dx, exact_dx, rtol=0, atol=3e-5)


def test_one_pass_in_bfloat16_is_as_good_as_its_input() -> None:
    # Mean 20 at deviation 1, where E[x^2] - E[x]^2 loses digits: float32 keeps 1e-7 * 400 of the
    # variance, the 8 bits of x have changed 1e-2 of it. One pass or two, the input decides.
    x = jnp.asarray(20 + np.random.default_rng(0).standard_normal((64, 256, 4)), jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    _, mean, var = normalise_batch(x, jnp.ones(4), jnp.zeros(4), None, EPSILON)
    assert var.dtype == jnp.float32
    np.testing.assert_allclose(mean, exact.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1)), rtol=1e-4)
