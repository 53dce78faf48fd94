"""Linear maps, BatchNorm, LayerNorm, dropout and the head against values by hand."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mvo_jax.devices import parallel
from mvo_jax.models.ops.layers import BatchNorm, Dropout, LayerNorm, Linear, normalise_batch
from mvo_jax.models.ops.numerics import Numerics
from tests.draws import normal

X64 = Numerics(None, None, jnp.float64, jnp.float64)
# float64: the values are of order 10, the sums have 96 terms.
EXACT = 1e-12
EPSILON = 1e-5


@pytest.mark.usefixtures("x64")
def test_batch_norm_by_hand():
    # Channel 0 holds 1, 2, 3, 6: mean 3, biased variance 3.5, unbiased 14/3.
    x = np.array([[1.0, 10.0], [2.0, 10.0], [3.0, 10.0], [6.0, 10.0]]).reshape(2, 2, 2)
    layer: Any = BatchNorm(X64)
    variables = {
        "params": {"scale": jnp.array([2.0, 3.0]), "bias": jnp.array([0.5, -1.0])},
        "batch_stats": {"mean": jnp.array([1.0, 0.0]), "var": jnp.array([2.0, 1.0])},
    }
    out, updated = layer.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
    expected = 2 * (x[..., 0] - 3) / np.sqrt(3.5 + 1e-5) + 0.5
    np.testing.assert_allclose(np.asarray(out)[..., 0], expected, rtol=1e-14)
    np.testing.assert_allclose(np.asarray(out)[..., 1], -1)  # a constant channel: the bias
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], [0.9 * 1 + 0.1 * 3, 0.1 * 10], rtol=1e-14)
    np.testing.assert_allclose(stats["var"], [0.9 * 2 + 0.1 * 14 / 3, 0.9], rtol=1e-14)
    out = layer.apply(variables, jnp.asarray(x), train=False)
    np.testing.assert_allclose(
        np.asarray(out)[..., 0], 2 * (x[..., 0] - 1) / np.sqrt(2 + 1e-5) + 0.5, rtol=1e-14
    )


def test_batch_norm_of_a_single_value_stays_finite():
    layer: Any = BatchNorm()
    x = jnp.ones((1, 3))
    variables = layer.init(jax.random.key(0), x, train=False)
    out, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    assert np.isfinite(out).all()
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9)


def textbook(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    var = jnp.square(x - mean).mean(axes)
    return (x - mean) / jnp.sqrt(var + EPSILON) * scale + bias


def draw() -> tuple[np.ndarray, ...]:
    """Input, scale, bias and gradient of the output."""
    rng = np.random.default_rng(0)
    x = 3 + 2 * rng.standard_normal((8, 2, 3, 3, 4))
    # Channel 3 is constant: its variance is 0 and epsilon decides.
    x[..., 3] = 7
    dy = rng.standard_normal(x.shape) + 0.5
    return x, rng.uniform(0.5, 2, 4), rng.standard_normal(4), dy


@pytest.mark.usefixtures("x64")
def test_batch_norms_own_derivative_is_jaxs():
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


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_devices", [2, 8])
def test_batch_norm_over_devices_is_that_of_the_whole_batch(num_devices):
    x, scale, bias, dy = map(jnp.asarray, draw())
    # Shards with very different means: per-device statistics would be far off.
    x = x.at[..., :3].add(10 * jnp.arange(8).reshape(8, 1, 1, 1, 1))
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": jnp.zeros(4), "var": jnp.ones(4)},
    }

    def gradients(x, params, dy, axis_name=None):
        def loss(x, params):
            layer: Any = BatchNorm(Numerics(None, axis_name, jnp.float64, jnp.float64))
            out, updated = layer.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return (out * dy).mean(), (out, updated["batch_stats"])

        (dx, dparams), (out, stats) = jax.grad(loss, argnums=(0, 1), has_aux=True)(x, params)
        # As in the training step: a mean over devices of the local losses' gradients.
        return dx, out, (dparams if axis_name is None else lax.pmean(dparams, axis_name)), stats

    def sharded(x):
        return x.reshape(num_devices, -1, *x.shape[1:])

    dx, out, *shared = gradients(x, variables["params"], dy)
    run = parallel.data_parallel(
        lambda x, params, dy: gradients(x, params, dy, parallel.AXIS),
        in_axes=(0, None, 0),
        out_axes=(0, 0, None, None),
        on=parallel.devices(num_devices),
    )
    their_dx, their_out, *their_shared = run(sharded(x), variables["params"], sharded(dy))
    # Each device's loss is a mean over its own share.
    np.testing.assert_allclose(their_dx.reshape(x.shape) / num_devices, dx, rtol=0, atol=1e-13)
    np.testing.assert_allclose(their_out.reshape(x.shape), out, rtol=0, atol=EXACT)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=EXACT), their_shared, shared
    )


def test_batch_norm_in_bfloat16_keeps_float32_statistics():
    # Mean 20 at deviation 1, where one-pass E[x^2] - E[x]^2 loses digits: float32 keeps 1e-7 * 400
    # of the variance, the 8 bits of x have changed 1e-2 of it. One pass or two, the input decides.
    x = jnp.asarray(20 + normal(64, 256, 4), jnp.bfloat16)
    layer: Any = BatchNorm(Numerics(dtype=jnp.bfloat16))
    variables = layer.init(jax.random.key(0), x, train=True)
    out, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    stats = updated["batch_stats"]
    assert out.dtype == jnp.bfloat16
    assert stats["mean"].dtype == stats["var"].dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(stats["mean"], 0.1 * exact.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * exact.var((0, 1), ddof=1), rtol=1e-4)
    dx = jax.grad(
        lambda x: layer.apply(variables, x, train=True, mutable=["batch_stats"])[0].sum()
    )(x)
    assert dx.dtype == jnp.bfloat16


def test_a_large_mean_keeps_float32_digits():
    """A mean of 100 deviations costs two of seven digits, not more."""
    rng = np.random.default_rng(0)
    x, dy = ((mean + rng.standard_normal((4096, 2))).astype(np.float32) for mean in (100, 0))
    ones, zeros = jnp.ones(2), jnp.zeros(2)
    (out, _, _), pullback = jax.vjp(
        lambda x: normalise_batch(x, ones, zeros, None, EPSILON), jnp.asarray(x)
    )
    (dx,) = pullback((jnp.asarray(dy), zeros, zeros))
    with jax.enable_x64(True):
        exact, exact_pullback = jax.vjp(
            lambda x: textbook(x, jnp.ones(2), jnp.zeros(2)), jnp.asarray(x, jnp.float64)
        )
        (exact_dx,) = exact_pullback(jnp.asarray(dy, jnp.float64))
    # 100 * 6e-8 is what the factor-and-offset form leaves.
    np.testing.assert_allclose(out, exact, rtol=0, atol=3e-5)
    np.testing.assert_allclose(dx, exact_dx, rtol=0, atol=3e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("form", "deviation"),
    # 1, 2, 6: mean 3, squares 14; 1e-6 is added to the released form's unbiased deviation.
    [("released", math.sqrt(7) + 1e-6), ("standard", math.sqrt(14 / 3 + 1e-5))],
)
def test_layer_norm_by_hand(form, deviation):
    variables = {"params": {"scale": jnp.array([1.0, 2.0, 3.0]), "bias": jnp.array([0.0, 0.5, 1])}}
    out: Any = LayerNorm(form, X64).apply(variables, jnp.array([[1.0, 2.0, 6.0]]))
    expected = [[-2 / deviation, -2 / deviation + 0.5, 9 / deviation + 1]]
    np.testing.assert_allclose(out, expected, rtol=1e-15)


@pytest.mark.parametrize("form", ["released", "standard"])
def test_layer_norm_of_a_constant_row_is_the_bias_with_a_finite_gradient(form):
    variables = {"params": {"scale": jnp.ones(4), "bias": jnp.full(4, 0.25)}}

    def value(x):
        out: Any = LayerNorm(form).apply(variables, x)
        return (out * jnp.arange(4)).sum(), out

    gradient, out = jax.grad(value, has_aux=True)(jnp.full((1, 4), 7.0))
    np.testing.assert_array_equal(out, 0.25)
    assert np.isfinite(gradient).all()


def dropped(num_devices: int, rate: float, shared: tuple[int, ...] = ()) -> np.ndarray:
    """Output of dropout on ones ``[16, 6, 4]`` spread over devices."""
    numerics = Numerics(axis_name=parallel.AXIS if num_devices > 1 else None)
    key = jax.random.key(5)

    def forward(x):
        return Dropout(rate, numerics, shared).apply({}, x, train=True, rngs={"dropout": key})

    x = np.ones((16, 6, 4), np.float32)
    if num_devices == 1:
        return np.asarray(forward(x))
    run = parallel.data_parallel(
        forward, in_axes=(0,), out_axes=0, on=parallel.devices(num_devices)
    )
    return np.asarray(run(x.reshape(num_devices, -1, 6, 4))).reshape(x.shape)


def test_dropout_masks_do_not_depend_on_the_number_of_devices():
    alone = dropped(1, 0.4)
    for num_devices in (2, 4, 8):
        np.testing.assert_array_equal(dropped(num_devices, 0.4), alone)
    # Examples have masks of their own.
    assert len({example.tobytes() for example in alone}) == 16


def test_dropout_scales_what_it_keeps_at_its_rate():
    out = dropped(1, 0.25)
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.75], rtol=1e-6)
    # 384 draws: sd of the share 0.022, five of them.
    assert abs((out == 0).mean() - 0.25) < 0.11


def test_dropout_of_whole_channels():
    out = dropped(1, 0.5, shared=(0,))
    assert (out == out[:, :1]).all()
    assert 0 < (out == 0).mean() < 1


def test_dropout_is_the_identity_at_inference_and_at_rate_zero():
    x = jnp.ones((2, 3))
    assert Dropout(0.5).apply({}, x, train=False) is x
    assert Dropout(0.0).apply({}, x, train=True) is x


def test_linear_starts_as_in_torch():
    variables = Linear(200).init(jax.random.key(0), jnp.zeros((1, 100)))
    for name in ("kernel", "bias"):
        values = np.asarray(variables["params"][name])
        assert np.abs(values).max() <= 0.1  # 1 / sqrt(100)
        # Uniform: standard deviation bound / sqrt(3).
        assert abs(values.std() - 0.1 / np.sqrt(3)) < 0.005
