"""Freezing, rates by part, accumulation, early stopping, the metric of the best: in whole runs."""

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mvo_jax.errors import UserError
from mvo_jax.models.ops.layers import ModelOutput
from mvo_jax.runs.checkpoint import Checkpoints
from mvo_jax.runs.folder import RunFolder
from mvo_jax.runs.goodput import Clock
from mvo_jax.runs.resume import NO_BEST, best_of, is_better
from mvo_jax.settings import LossSettings
from mvo_jax.training import dispatch
from mvo_jax.training.optim import OptimiserSettings, make_optimiser
from mvo_jax.training.setup import set_up
from mvo_jax.training.state import TrainState
from mvo_jax.training.step import make_loss, make_train_step
from tools import tiny_run

# All of them at once: what a run of any of these keeps must survive a kill.
OPTIONS = {
    "optimizer.freeze": "trunk",
    "optimizer.rate_by_part": "decoder=0.5",
    "optimizer.learning_rate": 0.5,  # so that the loss of the validation split grows
    "train.accumulate": 2,
    "train.best_metric": "loss",
    "train.early_stopping": 2,
    "train.eval_every": 3,
}


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


def arrays(run: Path, kind: str = "latest") -> tuple[dict[str, Any], dict[str, Any]]:
    checkpoints = Checkpoints(run, create=False)
    restored = checkpoints.read(kind)
    checkpoints.finish()
    return restored.arrays, restored.meta


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A run with all of these that nobody touched."""
    folder = tmp_path_factory.mktemp("options") / "run"
    return folder, tiny_run.start(folder, Clock(), tiny_run.tiny_config(**OPTIONS))


def test_a_run_stops_early_and_does_not_go_on(whole, capfd):
    folder, result = whole
    assert result["stopped_early"]
    assert result["step"] == result["best_step"] + 2 * OPTIONS["train.eval_every"] < 20
    again = tiny_run.start(folder, Clock(), tiny_run.tiny_config(**OPTIONS))
    assert {**again, "seconds": 0, "loss": 0} == {**result, "seconds": 0, "loss": 0}
    rows = [row for row in RunFolder(folder).history() if row["kind"] == "validation"]
    losses = {row["step"]: row["loss"] for row in rows}
    assert min(losses, key=lambda step: losses[step]) == result["best_step"]
    assert arrays(folder, "best")[1]["metric"] == "loss"


@pytest.mark.parametrize("kills", [(2, 5), (4,), (8,)], ids=str)
def test_kills_change_nothing(whole, tmp_path, monkeypatch, kills):
    make = dispatch.make_run_steps

    def start(kill_at: int | None) -> None:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            run_steps = make(*arguments, **options)

            def killed(state: TrainState, indices: Any) -> Any:
                if kill_at is not None and int(state.step) >= kill_at:
                    raise Killed
                return run_steps(state, indices)

            return killed

        monkeypatch.setattr(dispatch, "make_run_steps", wrapped)
        tiny_run.start(tmp_path / "run", Clock(), tiny_run.tiny_config(**OPTIONS))

    for kill_at in kills:
        with pytest.raises(Killed):
            start(kill_at)
    start(None)
    assert tiny_run.outcome(tmp_path / "run") == tiny_run.outcome(whole[0])


def test_frozen_parts_stay_and_have_no_moments(whole):
    folder, _ = whole
    config = tiny_run.tiny_config(**OPTIONS)
    before = set_up(config).init_state().params
    state, _ = arrays(folder)
    for part, leaves in state["params"].items():
        same = jax.tree.map(np.array_equal, leaves, dict(before[part]))
        assert jax.tree.all(same) == (part == "trunk"), part
    moments = json.dumps(jax.tree.map(lambda leaf: 0, state["opt_state"]))
    assert "decoder" in moments
    assert "trunk" not in moments


def test_a_rate_by_part_is_a_smaller_learning_rate():
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    settings = {"weight_decay": 0.1, "total_steps": 10, "power": 0.0}

    def updates(rate: float, by_part: str = "", freeze: str = "") -> Any:
        options = {"learning_rate": rate, "rate_by_part": by_part, "freeze": freeze}
        optimiser = make_optimiser(OptimiserSettings(**settings, **options))
        state = optimiser.init(params)
        for _ in range(3):
            found, state = optimiser.update(params, state, params)
        return found

    mixed, slow, fast = updates(0.1, "b=0.25"), updates(0.025), updates(0.1)
    np.testing.assert_array_equal(mixed["a"], fast["a"])
    np.testing.assert_allclose(mixed["b"], slow["b"], rtol=1e-6)  # one product more
    frozen = updates(0.1, freeze="b")
    np.testing.assert_array_equal(frozen["a"], fast["a"])
    np.testing.assert_array_equal(frozen["b"], np.zeros(3))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer.freeze": "trunc"}, "freeze names 'trunc', which the model does not have"),
        ({"optimizer.rate_by_part": "head=0.1"}, "rate_by_part names 'head'"),
        ({"optimizer.rate_by_part": "trunk"}, "rate_by_part has 'trunk'"),
        ({"optimizer.rate_by_part": "trunk=-1"}, "rate_by_part has 'trunk=-1'"),
        ({"optimizer.rate_by_part": "trunk=nan"}, "rate_by_part has 'trunk=nan'"),
        ({"optimizer.freeze": "trunk,decoder,classifier,BatchNorm_0"}, "nothing to train"),
        ({"train.accumulate": 3}, "cannot be made of config.train.accumulate=3 micro-batches"),
        ({"train.best_metric": "accuracy"}, "best_metric is 'accuracy'"),
        ({"train.early_stopping": -1}, "early_stopping is -1"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_so_is_named(changes, words):
    with pytest.raises(UserError) as caught:
        set_up(tiny_run.tiny_config(**changes))
    assert words in caught.value.cause


class Normalised(nn.Module):
    """BatchNorm between two linear maps, by the batch or by its running statistics."""

    running: bool

    @nn.compact
    def __call__(self, video: Any, *, train: bool, with_mask: bool = False) -> ModelOutput:
        x = nn.Dense(16, param_dtype=jnp.float64)(video.reshape(len(video), -1))
        running = self.running or not train
        x = nn.BatchNorm(use_running_average=running, param_dtype=jnp.float64)(x)
        return ModelOutput(nn.Dense(1, param_dtype=jnp.float64)(nn.relu(x)), None)


def step_of(accumulate: int, *, running: bool) -> tuple[Any, Any]:
    draws = np.random.default_rng(0)
    batch = {
        "video": jnp.asarray(draws.standard_normal((16, 2, 3, 3, 1))),
        "label": jnp.asarray(draws.integers(0, 2, 16)),
        "coarse_mask": jnp.zeros((16, 1, 1)),
    }
    model, optimiser = Normalised(running), optax.sgd(0.1, momentum=0.9)
    variables = model.init(jax.random.key(0), batch["video"], train=False)
    state = TrainState(
        jnp.zeros((), jnp.int32),
        variables["params"],
        jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables["batch_stats"]),
        optimiser.init(variables["params"]),
    )
    step = jax.jit(
        make_train_step(make_loss(model, LossSettings()), optimiser, accumulate=accumulate)
    )
    return step(state, batch, jax.random.key(1))


def difference(running: bool) -> float:
    """Largest difference of parameters and metrics after a step of 4 x 4 and of 16 clips."""
    with jax.enable_x64(True):
        one, four = (step_of(count, running=running) for count in (1, 4))
        leaves = jax.tree.map(
            lambda a, b: float(jnp.abs(a - b).max()),
            (one[0].params, one[1]),
            (four[0].params, four[1]),
        )
    return max(jax.tree.leaves(leaves))


def test_four_times_four_is_sixteen_but_for_the_statistics_of_a_batch():
    assert difference(running=True) < 1e-12  # float64, some hundred roundings of 1e-16
    assert difference(running=False) > 1e-4  # each micro-batch normalises by its own


def test_the_best_by_a_metric_of_which_less_is_better():
    rows = [{"auc": 0.5, "brier": value} for value in (0.3, 0.2, 0.25, None)]
    best, kept = dict(NO_BEST), []
    for step, row in enumerate(rows):
        found = best_of(step, row, "brier")
        if is_better(found, best):
            best = found
            kept.append(step)
    assert kept == [0, 1]
    assert (best["score"], best["auc"]) == (-0.2, 0.5)


def test_a_tracker_hears_of_every_row_and_one_that_fails_ends_no_run(tmp_path, caplog, monkeypatch):
    from mvo_jax.run import train_and_evaluate

    heard: list[tuple[int, str]] = []

    def tracker(step: int, kind: str, values: Any) -> None:
        heard.append((step, kind))
        if len(heard) == 3:
            raise ConnectionError("the tracker is down")

    config = tiny_run.tiny_config(**{"train.total_steps": 4, "train.eval_every": 2})
    splits = {name: tiny_run.tiny_split(name, i) for i, name in enumerate(("train", "validation"))}
    train_and_evaluate(config, tmp_path, evaluate_on=None, splits=splits, on_metrics=tracker)
    assert heard == [(2, "train"), (2, "validation"), (4, "train")]
    assert "on_metrics failed and is not called any more: ConnectionError" in caplog.text
