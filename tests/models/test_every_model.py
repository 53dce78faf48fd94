"""What every registered model must do, each in the small form of parity."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from mvo_jax.devices import parallel
from mvo_jax.interop.parity.cases import SMALL
from mvo_jax.models.registry import build_model, published_config
from mvo_jax.settings import LossSettings
from mvo_jax.training.state import TrainState
from mvo_jax.training.step import make_loss, make_train_step
from tests.models.conftest import QUICK_COMPILE
from tests.small_run import shipped_models, slow_but

# Regular expressions for parameters whose gradient is zero in exact arithmetic, by model, such as
# a bias in front of a BatchNorm.
ZERO_GRADIENTS: dict[str, str] = {"mvo_net": r"encoder/block1/key/bias|decoder/block1/reduce/bias"}

BASELINES = [name for name in shipped_models() if name != "mvo_net"]
QUICK_ALONE = ["mvo_net", *slow_but("c3d", BASELINES, "compiles a baseline; C3D stands for all")]


def config_of(name: str, **changes: Any) -> dict[str, Any]:
    """The network of parity without dropout, because every site of it takes a second to compile."""
    config = {**published_config(name), **SMALL[name][0]}
    config |= dict.fromkeys((key for key in config if "dropout" in key), 0.0)
    return config | ({"lowering": "conv2d"} if "lowering" in config else {}) | changes


def quick(function: Any, *arguments: Any) -> Any:
    """What ``jit(function)(*arguments)`` returns."""
    return jax.jit(function, compiler_options=QUICK_COMPILE)(*arguments)


def clips(name: str, batch: int) -> np.ndarray:
    """Examples of different brightness, so that the statistics of a device are its own."""
    draws = np.random.default_rng(3)
    video = draws.standard_normal((batch, *SMALL[name][1]))
    return video + np.linspace(-1, 1, batch).reshape(batch, 1, 1, 1, 1)


@pytest.fixture(scope="module", params=QUICK_ALONE)
def steps(request, random_variables) -> tuple[str, Any, dict[int, Any]]:
    """One step of SGD in float64 on one device and on eight: state before, states after."""
    name, batch = request.param, 8
    fields = config_of(name, dtype="float64")
    optimiser = optax.sgd(1.0)  # the change of a parameter is minus its gradient
    after = {}
    with jax.enable_x64(True):
        model = build_model(fields, backend="cpu")
        variables = random_variables(model, (1, *SMALL[name][1]), train=False)
        state = TrainState(
            step=np.zeros((), np.int32),  # pyright: ignore[reportArgumentType]
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimiser.init(variables["params"]),
        )
        side = fields.get("mask_size", 1)
        data = {
            "video": clips(name, batch),
            "label": np.arange(batch, dtype=np.int32) % 2,
            "coarse_mask": np.random.default_rng(4).uniform(size=(batch, side, side)),
        }
        key, settings = jax.random.key(9), LossSettings(mask_loss_weight=0.5)
        loss = make_loss(model, settings)
        after[1] = quick(make_train_step(loss, optimiser), state, data, key)
        model = build_model(fields, backend="cpu", axis_name=parallel.AXIS)
        devices = parallel.devices(8)
        run: Any = parallel.data_parallel(
            make_train_step(make_loss(model, settings), optimiser, axis_name=parallel.AXIS),
            in_axes=(None, 0, None),
            out_axes=None,
            on=devices,
        )
        sharded = {k: v.reshape(8, 1, *v.shape[1:]) for k, v in data.items()}
        given = parallel.replicate(state, devices), sharded, key
        after[8] = run.lower(*given).compile(QUICK_COMPILE)(*given)
        return name, state, jax.tree.map(np.asarray, after)


def flat(tree: Any) -> dict[str, Any]:
    return dict(flatten_dict(tree, sep="/"))


def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(steps):
    name, before, after = steps
    norms = {
        path: np.linalg.norm(value - flat(after[1][0].params)[path])
        for path, value in flat(before.params).items()
    }
    assert np.isfinite(list(norms.values())).all()
    assert np.isfinite(after[1][1]["loss"])
    # float64 rounding leaves 1e-16 of the parameter itself, of order 1, where algebra says zero.
    zero = {path for path, norm in norms.items() if norm < 1e-12}
    pattern = ZERO_GRADIENTS.get(name, "")
    assert zero == {path for path in norms if re.fullmatch(pattern, path)}


def test_eight_devices_equal_one(steps):
    name, before, after = steps
    (one, metrics_of_one), (eight, metrics_of_eight) = after[1], after[8]
    assert metrics_of_one.keys() == metrics_of_eight.keys()
    assert ("mask_mse" in metrics_of_one) == (name == "mvo_net")
    for key, value in metrics_of_one.items():
        np.testing.assert_allclose(metrics_of_eight[key], value, rtol=1e-10, err_msg=key)

    def relative(ours: Any, theirs: Any) -> float:
        a, b = (
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)] or [np.ones(1)])
            for t in (ours, theirs)
        )
        return float(np.linalg.norm(a - b) / np.linalg.norm(b))

    # float64, sums in another order.
    change = [jax.tree.map(np.subtract, s.params, before.params) for s in (eight, one)]
    assert relative(*change) < 1e-11
    assert relative(eight.batch_stats, one.batch_stats) < 1e-12


@pytest.mark.parametrize("name", QUICK_ALONE)
def test_any_batch_and_bfloat16(name, random_variables):
    clip = SMALL[name][1]
    exact: Any = build_model(config_of(name), backend="cpu")
    short: Any = build_model(config_of(name, dtype="bfloat16"), backend="cpu")
    variables = random_variables(exact, (1, *clip), train=False)
    kept = jax.eval_shape(
        lambda x: short.init(jax.random.key(0), x, train=False),
        jax.ShapeDtypeStruct((1, *clip), np.float32),
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype("float32")}
    assert jax.tree.map(jnp.shape, kept) == jax.tree.map(jnp.shape, variables)

    def logits(model: Any, video: np.ndarray) -> np.ndarray:
        def run(variables: Any, video: jax.Array) -> jax.Array:
            return model.apply(variables, video, train=False, with_mask=True).logits

        return np.asarray(quick(run, variables, video.astype(np.float32)))

    video = clips(name, 3)
    together, alone = logits(exact, video), logits(exact, video[1:2])
    assert together.shape == (3, config_of(name)["num_outputs"])
    # float32 rounds at 6e-8; two programs of the same sums of up to some thousand terms.
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-4, atol=1e-5)
    rounded = logits(short, video)
    assert rounded.dtype == np.float32
    assert np.isfinite(rounded).all()
    # bfloat16 rounds at 0.4 %, layer after layer.
    assert 0 < np.abs(rounded - together).max() < 0.1 * np.abs(together).max() + 0.1


@pytest.mark.parametrize("name", shipped_models())
def test_clips_the_model_cannot_take_are_refused(name):
    frames, height, width, _ = SMALL[name][1]
    model: Any = build_model(config_of(name), backend="cpu")

    def call(shape: tuple[int, ...]) -> None:
        video = jax.ShapeDtypeStruct(shape, jnp.float32)
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), video)

    call((1, frames, height, width, 3))
    for shape in ((1, 1, 1, 1, 1), (1, 1, height, width, 1), (1, frames, 4, 4, 1)):
        with pytest.raises(ValueError, match="frames"):
            call(shape)
    with pytest.raises(ValueError, match="2 channels"):
        call((1, frames, height, width, 2))
