"""A trace of some steps of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvo_jax.training.trace import TracedSteps


@pytest.fixture(autouse=True)
def _at_info(caplog):
    caplog.set_level("INFO", "mvo_jax")


@jax.jit
def count(state, indices):
    return state + indices.size, {"loss": state}


def run(folder, *, wanted: int, dispatches: int, chunk: int = 2):
    steps = TracedSteps(count, first=10, steps=wanted, folder=folder)
    state = jnp.zeros((), jnp.int32)
    try:
        for _ in range(dispatches):
            state, _ = steps(state, np.zeros((chunk, 3), np.int32))
    finally:
        steps.close()
    return int(state)


def traces(folder) -> list:
    return sorted(folder.rglob("*.xplane.pb"))


def test_the_steps_asked_for_are_traced_and_named(tmp_path, caplog):
    assert run(tmp_path / "profile", wanted=3, dispatches=6) == 36
    # Two dispatches of two steps from 10 on are left out; three steps are two dispatches.
    assert "traced steps 15 to 18" in caplog.text
    (trace,) = traces(tmp_path / "profile")
    assert b"train" in trace.read_bytes()


def test_a_run_that_ends_first_leaves_what_it_has(tmp_path, caplog):
    run(tmp_path / "profile", wanted=100, dispatches=3)
    assert "traced steps 15 to 16" in caplog.text
    assert len(traces(tmp_path / "profile")) == 1


def test_a_run_too_short_to_trace_says_so(tmp_path, caplog):
    run(tmp_path / "profile", wanted=1, dispatches=2)
    assert "no step was traced" in caplog.text
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("dispatches", [0, 3])
def test_nothing_is_written_unasked(tmp_path, caplog, dispatches):
    assert run(tmp_path / "profile", wanted=0, dispatches=dispatches) == 6 * dispatches
    assert caplog.text == ""
    assert list(tmp_path.iterdir()) == []
