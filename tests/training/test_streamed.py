"""A split read from disk gives the updates and predictions of one in device memory, bit for bit.

Whole runs, killed and resumed, are in test_loop.
"""

import jax
import numpy as np
import pytest

from mvo_jax.devices import parallel
from mvo_jax.evaluation.predict import Predictor
from mvo_jax.training.programs import make_run_steps
from mvo_jax.training.setup import set_up
from tests.small_network import small


@pytest.mark.slow(reason="compiles the network twice")
def test_the_same_updates_when_a_dispatch_runs_two(tiny_config, random_split, on_disk):
    # As on an accelerator; there a dispatch runs twenty.
    config = tiny_config()
    experiment = small(set_up(config, devices=parallel.devices(1)))
    compare(experiment, random_split(cases=10), on_disk, 2)


@pytest.mark.slow(reason="compiles the network for two devices, twice")
def test_the_same_updates_of_the_network_on_two_devices(tiny_config, random_split, on_disk):
    config = tiny_config(**{"model.variant": "backbone", "augment.max_rotation_deg": 0.0})
    experiment = set_up(config, devices=parallel.devices(2))
    compare(experiment, random_split(cases=10), on_disk, 1)


def compare(experiment, split, on_disk, per_dispatch: int) -> None:
    """Updates of steps 3 to 6; 10 cases, so that batches of 8 cross the ends of epochs."""
    first, last = 3, 7
    ends = []
    for kind in (split, on_disk(split)):
        steps = range(first, last)
        run_steps = make_run_steps(experiment, kind, steps, per_dispatch)
        state = experiment.init_state()
        state = state.replace(step=state.step + first)
        for step in range(first, last, per_dispatch):
            indices = np.stack(
                [experiment.draw(len(split), k) for k in range(step, step + per_dispatch)]
            )
            state, metrics = run_steps(state, indices)
            jax.block_until_ready(state)
        ends.append(jax.tree.map(np.asarray, (state, metrics)))
    assert int(ends[0][0].step) == last
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_the_same_predictions(tiny_config, random_split, on_disk):
    experiment = small(set_up(tiny_config(), devices=parallel.devices(2)))
    variables = experiment.init_state().eval_variables()
    split = random_split(cases=11)  # not a multiple of the batch
    whole, streamed = (
        Predictor(experiment, kind, batch_size=4, with_mask=True)(variables)
        for kind in (split, on_disk(split))
    )
    assert len(whole) == len(streamed) == 11
    assert len(set(whole.probability)) == 11
    assert whole.coarse_mask is not None
    for name in ("probability", "coarse_mask", "coarse_target", "label"):
        np.testing.assert_array_equal(getattr(streamed, name), getattr(whole, name))
    assert streamed.case_id == whole.case_id
