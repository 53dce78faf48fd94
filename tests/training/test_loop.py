"""Runs: repeated, killed, resumed, gone wrong."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mvo_jax.data.splits import AnySplit
from mvo_jax.devices import parallel
from mvo_jax.errors import EXIT_NON_FINITE, UserError
from mvo_jax.runs.checkpoint import Checkpoints
from mvo_jax.runs.folder import RunFolder
from mvo_jax.runs.resume import Identity
from mvo_jax.training.loop import train
from mvo_jax.training.setup import set_up
from tests.small_run import make_smallest_config, make_tiny_config


class Killed(Exception):
    """Stands for a kill: nothing after it runs, nothing is written."""


@dataclasses.dataclass
class Run:
    """One start of the loop and what it left behind."""

    folder: RunFolder
    experiment: Any
    summary: dict[str, Any] | None
    seen: dict[int, Any]  # variables that validation saw, by step

    def state_bytes(self) -> bytes:
        checkpoints = Checkpoints(self.folder.path, create=False)
        state = checkpoints.restore_latest(self.experiment.state_shapes())
        checkpoints.finish()
        assert len(jax.tree.leaves(state.opt_state)) > 1
        return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))

    def best(self) -> tuple[Any, int]:
        checkpoints = Checkpoints(self.folder.path, create=False)
        best = checkpoints.restore_variables(self.experiment.state_shapes(), "best")
        checkpoints.finish()
        return best

    def latest_step(self) -> int | None:
        checkpoints = Checkpoints(self.folder.path, create=False)
        step = checkpoints.latest_step()
        checkpoints.finish()
        return step

    def rows(self) -> list[dict[str, Any]]:
        """Metrics without the one that is a measurement of time."""
        rows = self.folder.history()
        return [{k: v for k, v in row.items() if k != "clips_per_second"} for row in rows]


def rising(step: int) -> float:
    return step / 100


@pytest.fixture(scope="module")
def start(random_split) -> Callable[..., Run]:
    def start(
        path: Path,
        *,
        of: Callable[..., Any] = make_smallest_config,
        auc: Callable[[int], float] = rising,
        kill_at: int | None = None,
        changes: dict[str, Any] | None = None,
        split: AnySplit | None = None,
        allow_config_change: bool = False,
    ) -> Run:
        config = of(**(changes or {}))
        experiment = set_up(config, devices=parallel.devices(1))
        folder = RunFolder(path)
        folder.open_for_training(config.to_dict())
        seen = {}

        def validate(variables: Any) -> dict[str, float]:
            step = folder.history()[-1]["step"]  # training metrics are logged first
            if step == kill_at:
                raise Killed
            seen[step] = jax.tree.map(np.array, variables)
            return {"auc": auc(step)}

        summary = None
        try:
            training = split or random_split()
            summary = train(
                experiment,
                folder,
                training,
                validate,
                Identity(config.to_dict(), allow_config_change=allow_config_change),
            )
        except Killed:
            assert kill_at is not None
        return Run(folder, experiment, summary, seen)

    return start


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory) -> Run:
    return start(tmp_path_factory.mktemp("uninterrupted"))


def test_a_run_writes_its_metrics(uninterrupted):
    rows = uninterrupted.folder.history()
    assert [(row["step"], row["kind"]) for row in rows] == [
        (step, split) for step in (10, 20, 30, 40, 50) for split in ("train", "validation")
    ]
    for row in rows[::2]:
        assert row["loss"] > 0
        assert row["grad_norm"] > 0
        assert row["clips_per_second"] > 0
        assert 0 <= row["accuracy"] <= 1
        np.testing.assert_allclose(row["loss"], row["ce"] + 0.05 * row["mask_mse"], rtol=1e-5)
    # Step k of 50 with 5 steps of warm-up, of the step just done: 0.01 (1 - 9/50) at the tenth.
    np.testing.assert_allclose(rows[0]["learning_rate"], 0.01 * (1 - 9 / 50), rtol=1e-5)
    assert uninterrupted.summary is not None
    assert uninterrupted.summary["step"] == 50
    assert uninterrupted.summary["loss"] == rows[-2]["loss"]
    assert uninterrupted.latest_step() == 50


def test_it_learns_to_tell_stripes_from_stripes(start, random_split, tmp_path):
    split = random_split()
    wave = (128 + 100 * np.sin(np.arange(32))).astype(np.uint8)
    video = np.where(split.label.reshape(-1, 1, 1, 1, 1) == 1, wave.reshape(-1, 1, 1), 0)
    video = np.where(split.label.reshape(-1, 1, 1, 1, 1) == 0, wave.reshape(-1, 1), video)
    video = np.broadcast_to(video, split.video.shape).astype(np.uint8)
    run = start(tmp_path, of=make_tiny_config, split=dataclasses.replace(split, video=video))
    losses = [row["ce"] for row in run.rows() if row["kind"] == "train"]
    assert losses[-1] < 0.5 * losses[0]


def test_a_second_run_ends_in_the_same_bytes(start, uninterrupted, tmp_path):
    again = start(tmp_path)
    assert again.state_bytes() == uninterrupted.state_bytes()
    assert again.rows() == uninterrupted.rows()


def test_another_seed_ends_elsewhere(start, uninterrupted, tmp_path):
    other = start(tmp_path, changes={"seed": 1}, kill_at=20)
    assert other.rows()[0]["loss"] != uninterrupted.rows()[0]["loss"]


@pytest.mark.parametrize("kill_at", [10, 40])
def test_a_killed_run_resumes_to_the_same_bytes(start, uninterrupted, tmp_path, kill_at):
    killed = start(tmp_path, kill_at=kill_at)
    assert killed.summary is None
    assert killed.latest_step() == kill_at  # saved before it is evaluated
    with killed.folder.metrics_path.open("a") as file:
        file.write('{"step": 40, "kind": "valid')  # and in the middle of a line
    resumed = start(tmp_path)
    assert resumed.state_bytes() == uninterrupted.state_bytes()
    assert resumed.rows() == uninterrupted.rows()
    assert resumed.best()[1] == 50


def test_a_streamed_run_resumes_to_the_bytes_of_a_resident_one(
    start, uninterrupted, random_split, on_disk, tmp_path
):
    killed = start(tmp_path, kill_at=40, split=on_disk(random_split()))
    assert killed.latest_step() == 40
    resumed = start(tmp_path, split=on_disk(random_split()))
    assert resumed.state_bytes() == uninterrupted.state_bytes()
    assert resumed.rows() == uninterrupted.rows()


def test_logging_windows_survive_a_kill_when_they_do_not_fit_the_evaluations(start, tmp_path):
    odd = {"train.log_every": 10, "train.eval_every": 15}
    whole = start(tmp_path / "whole", changes=odd)
    start(tmp_path / "parts", changes=odd, kill_at=30)
    resumed = start(tmp_path / "parts", changes=odd)
    logged = [row["step"] for row in whole.rows() if row["kind"] == "train"]
    assert logged == [10, 15, 20, 30, 40, 45, 50]
    assert resumed.rows() == whole.rows()


def test_a_finished_run_is_left_alone(start, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted.folder.path, tmp_path / "run")
    again = start(tmp_path / "run")
    assert again.seen == {}
    assert again.rows() == uninterrupted.rows()
    assert again.summary is not None
    assert (again.summary["step"], again.summary["best_step"]) == (50, 50)


def test_killed_between_the_best_and_the_latest_of_one_step(start, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted.folder.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "latest" / "50")
    resumed = start(tmp_path / "run")
    assert list(resumed.seen) == [50]
    assert resumed.state_bytes() == uninterrupted.state_bytes()
    assert resumed.best()[1] == 50
    assert resumed.rows() == uninterrupted.rows()


def test_the_best_checkpoint_is_that_of_the_best_validation_auc(start, tmp_path):
    aucs = {10: 0.6, 20: 0.9, 30: math.nan, 40: 0.9, 50: 0.7}
    killed = start(tmp_path, auc=aucs.__getitem__, kill_at=40)
    resumed = start(tmp_path, auc=aucs.__getitem__)
    best, step = resumed.best()
    assert step == 20  # the first of two equal ones, found before the kill
    for ours, theirs in zip(jax.tree.leaves(best), jax.tree.leaves(killed.seen[20]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert resumed.summary is not None
    assert (resumed.summary["best_step"], resumed.summary["best_auc"]) == (20, 0.9)
    logged = [row["auc"] for row in resumed.rows() if row["kind"] == "validation"]
    assert logged == [0.6, 0.9, None, 0.9, 0.7]


def test_a_validation_split_of_one_class_does_not_stop_the_run(start, tmp_path):
    run = start(tmp_path, auc=lambda step: math.nan)
    assert run.summary is not None
    assert run.summary["step"] == 50
    assert math.isnan(run.summary["best_auc"])
    # Something must be evaluated: the last state, when nothing tells them apart.
    assert run.best()[1] == 50


def test_a_loss_that_is_not_finite_stops_with_the_step_and_its_cases(start, tmp_path):
    start(tmp_path, kill_at=30)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError) as caught:
        start(tmp_path, changes={"optimizer.learning_rate": 1e30}, allow_config_change=True)
    assert caught.value.exit_code == EXIT_NON_FINITE == 3
    # The update of step 31 is the first with that rate.
    assert "step 32:" in caught.value.cause
    assert "are not finite" in caught.value.cause
    assert caught.value.cause.count("train") == 8  # the names of the eight cases
    # No row of a step that went wrong, and none of the good ones lost.
    assert [row["step"] for row in RunFolder(tmp_path).history()] == [10, 10, 20, 20, 30, 30]
    found = json.loads((tmp_path / "non_finite.json").read_text())
    assert (found["step"], found["last_checkpoint"]) == (32, 30)


def test_a_save_under_way_is_finished_when_the_run_stops_with_an_error(
    start, tmp_path, monkeypatch
):
    waited = []
    original = Checkpoints.finish

    def watched(self):
        waited.append(True)
        original(self)

    monkeypatch.setattr(Checkpoints, "finish", watched)
    start(tmp_path, kill_at=20)
    assert waited


def test_a_checkpoint_of_another_network_is_refused(start, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted.folder.path, tmp_path / "run")
    other = {"model.mask_size": 8}
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(UserError, match="does not fit the model"):
        start(tmp_path / "run", changes=other, allow_config_change=True)
