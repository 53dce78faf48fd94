"""Lowerings are tried where the backend has no fixed one, once a run; never on a CPU or a TPU."""

import itertools

import jax
import pytest

from mvo_jax.runs.folder import RunFolder
from mvo_jax.training import lowering_trial
from tests.small_run import make_tiny_config


@pytest.fixture
def like_a_gpu(monkeypatch):
    """Two lowerings are tried on this backend."""
    monkeypatch.setattr(
        lowering_trial, "TRIED", {jax.default_backend(): ("conv3d", "im2col_conv1d")}
    )


AUTO = make_tiny_config()  # of the lowering 'auto'


def test_on_a_cpu_nothing_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(lowering_trial, "fastest", lambda *_: pytest.fail("timed"))
    assert lowering_trial.settle_lowering(AUTO, RunFolder(tmp_path / "run")) is AUTO


def test_the_fastest_step_is_found(monkeypatch):
    """By the clock that is given: steps of the first lowering take 3 s, of the second 1 s."""
    done: list[str] = []
    monkeypatch.setattr(lowering_trial, "_step", lambda config, name: lambda: done.append(name))
    clock = itertools.count()
    seconds = {"conv3d": 3.0, "im2col_conv1d": 1.0}

    def now() -> float:
        next(clock)
        return sum(seconds[name] for name in done)

    chosen = lowering_trial.fastest(AUTO, tuple(seconds), now=now)
    assert chosen == "im2col_conv1d"
    assert done == ["conv3d", "im2col_conv1d"] * 3  # 12 s: the first round past 10


@pytest.mark.slow(reason="compiles the step in five lowerings")
def test_a_run_keeps_what_its_first_start_found(tmp_path, like_a_gpu, monkeypatch):
    """One real step of each; a lowering that does not work is left out; a resume tries nothing."""
    folder, made = RunFolder(tmp_path / "run"), lowering_trial._step

    def without_memory(config, name):
        if name == "conv3d":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return made(config, name)

    monkeypatch.setattr(lowering_trial, "_step", without_memory)
    monkeypatch.setattr(lowering_trial, "SECONDS", 0.01)
    settled = lowering_trial.settle_lowering(AUTO, folder)
    assert settled.model.lowering == "im2col_conv1d"
    folder.open_for_training(settled.to_dict())
    monkeypatch.setattr(lowering_trial, "fastest", lambda *_: pytest.fail("tried again"))
    assert lowering_trial.settle_lowering(AUTO, folder).to_dict() == settled.to_dict()
    monkeypatch.setattr(lowering_trial, "TRIED", {})  # it goes on on a CPU
    assert lowering_trial.settle_lowering(AUTO, folder).to_dict() == settled.to_dict()


def test_a_lowering_that_the_config_names_stays(tmp_path, like_a_gpu, monkeypatch):
    monkeypatch.setattr(lowering_trial, "fastest", lambda *_: pytest.fail("timed"))
    config = make_tiny_config(**{"model.lowering": "conv2d"})
    assert lowering_trial.settle_lowering(config, RunFolder(tmp_path / "run")) is config
