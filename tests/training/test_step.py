"""The step: eight devices equal one, batches made on the device, EMA, scan."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvo_jax.data.augment import Augmentation
from mvo_jax.devices import parallel
from mvo_jax.evaluation.predict import Predictor
from mvo_jax.models.registry import build_model
from mvo_jax.training.programs import parallel_step
from mvo_jax.training.setup import set_up
from mvo_jax.training.state import TrainState
from mvo_jax.training.step import make_batch, make_loss, make_train_step

# Plain SGD at rate 1: the parameters' change is minus the gradient.
SGD = {
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 1.0,
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0.0,
    "optimizer.momentum": 0.0,
    "loss.mask_loss_weight": 0.5,
}


def filled(shapes: Any, seed: int = 0) -> Any:
    """A state of random parameters; compiling the initialiser takes longer than the test."""
    draws = np.random.default_rng(seed)

    def leaf(path: tuple, of: Any) -> jax.Array:
        name = path[-1].key
        value = draws.standard_normal(of.shape)
        if name == "kernel":
            value = value * np.sqrt(2 / np.prod(of.shape[:-1]))
        elif name in ("scale", "var"):
            value = 1 + 0.1 * np.tanh(value)
        return jnp.asarray(value, of.dtype)

    params = jax.tree_util.tree_map_with_path(leaf, shapes.params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=jax.tree_util.tree_map_with_path(leaf, shapes.batch_stats),
        opt_state=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes.opt_state),
        ema_params=jax.tree.map(jnp.zeros_like, params),
    )


def relative(ours: Any, theirs: Any) -> float:
    """L2 norm of the difference of two trees over that of the second."""
    a, b = (
        np.concatenate([np.ravel(np.asarray(x)) for x in jax.tree.leaves(tree)])
        for tree in (ours, theirs)
    )
    assert np.isfinite(a).all()
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def exact(tiny_config):
    """One float64 step on one device without any device axis, and what it was given."""
    config = tiny_config(**SGD, **{"model.dtype": "float64", "optimizer.ema_decay": 0.75})
    draws = np.random.default_rng(3)
    # Examples of very different brightness: statistics of a device are not those of the batch.
    video = draws.standard_normal((8, 8, 32, 32, 1)) + np.arange(8).reshape(8, 1, 1, 1, 1)
    batch = {
        "video": video,
        "label": np.arange(8, dtype=np.int32) % 2,
        "coarse_mask": draws.uniform(size=(8, 32, 32)),
    }
    key = jax.random.key(9)
    with jax.enable_x64(True):
        experiment = set_up(config, devices=parallel.devices(1))
        state = jax.tree.map(np.asarray, filled(experiment.state_shapes()))
        model = build_model({**config.model, "lowering": "conv2d"}, backend="cpu")
        step = make_train_step(
            make_loss(model, experiment.loss), experiment.optimiser, ema_decay=0.75
        )
        result = jax.tree.map(np.asarray, jax.jit(step)(state, batch, key))
    return config, state, batch, key, result


@pytest.mark.parametrize(
    "num_devices",
    [2, 8, pytest.param(4, marks=pytest.mark.slow(reason="compiles as much again"))],
)
def test_devices_equal_one_device(num_devices, exact):
    config, state, batch, key, (expected, expected_metrics) = exact
    with jax.enable_x64(True):
        experiment = set_up(config, devices=parallel.devices(num_devices))
        model = build_model(
            {**config.model, "lowering": "conv2d"}, backend="cpu", axis_name=parallel.AXIS
        )
        loss = make_loss(model, experiment.loss)
        step = make_train_step(loss, experiment.optimiser, ema_decay=0.75, axis_name=parallel.AXIS)
        run = parallel.data_parallel(
            step, in_axes=(None, 0, None), out_axes=None, on=experiment.devices
        )
        sharded = {
            name: value.reshape(num_devices, -1, *value.shape[1:]) for name, value in batch.items()
        }
        after, metrics = run(parallel.replicate(state, experiment.devices), sharded, key)

        def gradient(new: Any) -> Any:
            return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, new)

        # float64: sums of up to 65536 terms in another order, through seven layers.
        assert relative(gradient(after.params), gradient(expected.params)) < 1e-12
        assert relative(after.batch_stats, expected.batch_stats) < 1e-13
        assert relative(after.ema_params, expected.ema_params) < 1e-12
        assert metrics.keys() == expected_metrics.keys()
        for name, value in metrics.items():
            np.testing.assert_allclose(value, expected_metrics[name], rtol=1e-12, err_msg=name)
        assert int(after.step) == 1


def test_metrics_and_moving_average_of_one_step(exact):
    config, state, _, _, (after, metrics) = exact
    assert set(metrics) == {"loss", "ce", "mask_mse", "accuracy", "grad_norm"}
    loss = metrics["ce"] + config.loss.mask_loss_weight * metrics["mask_mse"]
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-14)
    squares = jax.tree.map(
        lambda a, b: np.sum(np.square(np.asarray(a) - np.asarray(b))), state.params, after.params
    )
    np.testing.assert_allclose(
        metrics["grad_norm"], np.sqrt(sum(jax.tree.leaves(squares))), rtol=1e-9
    )
    assert metrics["accuracy"] * 8 in range(9)
    # The average started at zero and keeps 0.75 of it.
    for mean, new in zip(
        jax.tree.leaves(after.ema_params), jax.tree.leaves(after.params), strict=True
    ):
        np.testing.assert_allclose(mean, 0.25 * np.asarray(new), rtol=1e-12)
    assert after.eval_variables()["params"] is after.ema_params
    assert dataclasses.replace(after, ema_params=None).eval_variables()["params"] is after.params


AUGMENTATION = Augmentation(
    max_shift=4, flip=True, max_rotation_deg=15, brightness=0.1, gamma=0.2, time_shift=True
)


@pytest.fixture(scope="module")
def resident(random_split) -> dict[str, Any]:
    split = random_split(cases=16)
    return {"video": split.video, "lge_mask": split.lge_mask, "label": split.label}


def test_batches_do_not_depend_on_the_number_of_devices(resident):
    indices, key = np.array([3, 3, 0, 15, 7, 8, 9, 1], np.int32), jax.random.key(2)

    def make(data, indices, axis_name=None):
        return make_batch(
            data, indices, key, augmentation=AUGMENTATION, mask_size=8, axis_name=axis_name
        )

    alone = jax.jit(make)(resident, indices)
    run = parallel.data_parallel(
        lambda data, indices: make(data, indices, parallel.AXIS),
        in_axes=(None, 0),
        out_axes=0,
        on=parallel.devices(4),
    )
    spread = run(parallel.replicate(resident, parallel.devices(4)), parallel.shard(indices, 4))
    for name, value in alone.items():
        ours = np.asarray(spread[name]).reshape(value.shape)
        # Two programs: float32 fused differently. A coarse mask is exact in both.
        np.testing.assert_allclose(ours, value, atol=0 if name != "video" else 1e-4)
    # The same case twice in a batch is augmented in two ways.
    assert np.abs(alone["video"][0] - alone["video"][1]).max() > 0.1


def test_a_crop_that_loses_the_mvo_does_not_change_the_label():
    lge_mask = np.zeros((1, 32, 32), np.uint8)
    lge_mask[0, 0, 0] = 2  # one pixel in the corner: most shifts lose it
    data = {
        "video": np.zeros((1, 8, 32, 32, 1), np.uint8),
        "lge_mask": lge_mask,
        "label": np.ones(1, np.int32),
    }
    make = jax.jit(make_batch, static_argnames=("augmentation", "mask_size"))
    batch = make(
        data,
        np.zeros(16, np.int32),
        jax.random.key(0),
        augmentation=Augmentation(max_shift=8),
        mask_size=4,
    )
    assert (batch["label"] == 1).all()
    lost = np.asarray(batch["coarse_mask"]).max(axis=(1, 2)) == 0
    assert lost.any()
    assert not lost.all()


def test_several_steps_in_one_dispatch_equal_single_ones(tiny_config, resident):
    config = tiny_config(**{**SGD, "optimizer.learning_rate": 0.01, "model.variant": "backbone"})
    experiment = set_up(config, devices=parallel.devices(2))
    experiment = dataclasses.replace(experiment, augmentation=Augmentation())  # dropout alone draws
    filled_state = dataclasses.replace(filled(experiment.state_shapes()), ema_params=None)
    state = jax.tree.map(np.asarray, filled_state)  # the step reuses the memory of its state
    data = parallel.replicate(resident, experiment.devices)
    key = parallel.replicate(jax.random.key(1), experiment.devices)
    indices = np.random.default_rng(0).integers(0, 16, (3, 8)).astype(np.int32)
    run = parallel_step(experiment, streamed=False)

    together, metrics = run(state, data, parallel.shard(indices, 2), key)
    single, losses = jax.tree.map(np.copy, state), []
    for row in indices:
        single, one = run(single, data, parallel.shard(row[None], 2), key)
        losses.append(float(one["loss"][0]))
    assert int(together.step) == int(single.step) == 3
    assert metrics["loss"].shape == (3,)
    # float32, two programs: rounding of 1e-7 through ten layers and three updates.
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-4)
    assert relative(together.params, single.params) < 1e-5
    assert relative(together.batch_stats, single.batch_stats) < 1e-5


def test_prediction_does_not_depend_on_devices_or_batch_size(tiny_config, random_split):
    split = random_split(cases=5, name="validation")
    results = []
    for num_devices, batch_size in ((1, 8), (2, 3), (8, 8)):
        config = tiny_config()
        experiment = set_up(config, devices=parallel.devices(num_devices))
        state = filled(experiment.state_shapes())
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        predictor = Predictor(experiment, split, batch_size=batch_size, with_mask=True)
        results.append(predictor(variables))
    for result in results:
        assert result.case_id == split.case_id
        np.testing.assert_array_equal(result.label, split.label)
        # float32 sums in another order.
        np.testing.assert_allclose(result.probability, results[0].probability, atol=1e-5)
        np.testing.assert_allclose(result.coarse_mask, results[0].coarse_mask, atol=1e-4)


def test_sharding_keeps_the_order():
    np.testing.assert_array_equal(
        parallel.shard(np.arange(8).reshape(1, 8), 4), np.arange(8).reshape(4, 1, 2)
    )
    two_steps = parallel.shard(np.arange(8).reshape(2, 4), 2)
    np.testing.assert_array_equal(two_steps[0], [[0, 1], [4, 5]])
    np.testing.assert_array_equal(two_steps[1], [[2, 3], [6, 7]])
