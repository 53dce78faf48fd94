"""Linear maps, BatchNorm and dropout against values by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvo_jax.devices import parallel
from mvo_jax.models.ops.layers import BatchNorm, Dropout, Linear
from tests.draws import normal

# float64: the values are of order 10, the sums have 96 terms.
EXACT = 1e-12


@pytest.mark.usefixtures("x64")
def test_batch_norm_by_hand():
    # Channel 0 holds 1, 2, 3, 6: mean 3, biased variance 3.5, unbiased 14/3.
    x = np.array([[1.0, 10.0], [2.0, 10.0], [3.0, 10.0], [6.0, 10.0]]).reshape(2, 2, 2)
    layer: Any = BatchNorm(dtype=jnp.float64, param_dtype=jnp.float64)
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


def test_batch_norm_keeps_its_digits_far_from_zero():
    # One-pass E[x^2] - E[x]^2 in float32 gives a variance of 0 to 16 here instead of 1.
    x = (1e4 + np.array([-1, 1] * 8)).astype(np.float32).reshape(16, 1)
    layer: Any = BatchNorm()
    variables = layer.init(jax.random.key(0), jnp.asarray(x), train=False)
    out, updated = layer.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(np.asarray(out).ravel(), [-1, 1] * 8, rtol=1e-4)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * 16 / 15, rtol=1e-4)


def test_batch_norm_of_a_single_value_stays_finite():
    layer: Any = BatchNorm()
    x = jnp.ones((1, 3))
    variables = layer.init(jax.random.key(0), x, train=False)
    out, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    assert np.isfinite(out).all()
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_devices", [2, 8])
def test_batch_norm_over_devices_is_batch_norm_over_the_whole_batch(num_devices):
    # Shards with very different means: per-device statistics would be far off.
    x = normal(16, 3, 2) + 10 * np.arange(16)[:, None, None]
    settings = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    variables = {
        "params": {"scale": jnp.array([2.0, 3.0]), "bias": jnp.array([0.5, -1.0])},
        "batch_stats": {"mean": jnp.zeros(2), "var": jnp.ones(2)},
    }
    alone: Any = BatchNorm(**settings)
    expected, updated = alone.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])

    def forward(x):
        return BatchNorm(parallel.AXIS, **settings).apply(
            variables, x, train=True, mutable=["batch_stats"]
        )

    run = parallel.data_parallel(
        forward, in_axes=(0,), out_axes=(0, None), on=parallel.devices(num_devices)
    )
    out, stats = run(x.reshape(num_devices, -1, 3, 2))
    np.testing.assert_allclose(np.asarray(out).reshape(x.shape), expected, atol=EXACT)
    for name in ("mean", "var"):
        np.testing.assert_allclose(
            stats["batch_stats"][name], updated["batch_stats"][name], rtol=1e-13
        )


def dropped(num_devices: int, rate: float, shared: tuple[int, ...] = ()) -> np.ndarray:
    """Output of dropout on ones ``[16, 6, 4]`` spread over devices."""
    axis = parallel.AXIS if num_devices > 1 else None
    key = jax.random.key(5)

    def forward(x):
        return Dropout(rate, axis, shared).apply({}, x, train=True, rngs={"dropout": key})

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
    layer = Linear(200)
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 100)))
    for name in ("kernel", "bias"):
        values = np.asarray(variables["params"][name])
        assert np.abs(values).max() <= 0.1  # 1 / sqrt(100)
        # Uniform: standard deviation bound / sqrt(3).
        assert abs(values.std() - 0.1 / np.sqrt(3)) < 0.005
