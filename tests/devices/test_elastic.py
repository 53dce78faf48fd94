"""The same run on 1, 2, 4 and 8 devices, and on another number after a restart."""

import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvo_jax.data.batches import batch_indices
from mvo_jax.devices import parallel
from mvo_jax.errors import RunInterrupted
from mvo_jax.models.ops.layers import Dropout
from mvo_jax.models.ops.numerics import Numerics
from mvo_jax.runs.folder import RunFolder
from mvo_jax.training.programs import make_run_steps
from mvo_jax.training.setup import set_up
from mvo_jax.training.step import make_batch
from tests.pair_process import METRICS, run
from tests.small_network import SMALL, small

COUNTS = (1, 2, 4, 8)
# Geometry takes longer to compile than the network; clips are compared below.
FAST_AUGMENTATION = {
    "augment.max_rotation_deg": 0.0,
    "augment.max_shift": 0.0,
    "augment.flip": False,
}


@pytest.mark.parametrize(
    "dtype",
    ["float64", pytest.param("float32", marks=pytest.mark.slow(reason="compiles as much again"))],
)
def test_every_step_has_the_same_loss_on_any_number_of_devices(dtype, tiny_config, random_split):
    config, split = tiny_config(**SMALL, **FAST_AUGMENTATION), random_split(cases=20)

    def run(count: int, state: Any = None, states: Any = None) -> tuple[list[float], list[Any]]:
        """Losses of six steps and the state before each; given ``states``, each starts there."""
        experiment = small(set_up(config, devices=parallel.devices(count)))
        run_steps = make_run_steps(experiment, split, range(6), 1)
        state = experiment.init_state() if state is None else state
        before, losses = [], []
        for step in range(6):
            state = state if states is None else states[step]
            before.append(jax.tree.map(np.array, state))
            state, metrics = run_steps(
                parallel.replicate(state, experiment.devices),
                experiment.draw(len(split), step)[None],
            )
            losses.append(float(metrics["loss"][0]))
        return losses, before

    with jax.enable_x64(dtype == "float64"):
        expected, states = run(1)
        assert states[0].params["classifier"]["kernel"].dtype == dtype
        assert len(set(expected)) == 6
        for count in COUNTS[1:]:
            if dtype == "float64":
                losses, _ = run(count, state=states[0])
                bound = 1e-12  # seen: 4e-16
            else:
                # From one device's states: AdamW's square roots carry rounding on, to 1.2e-6 after
                # 12 steps of the network of test_loop at a rate of 0.01.
                losses, _ = run(count, states=states)
                bound = 1e-6  # seen: 1.8e-7
            np.testing.assert_allclose(losses, expected, rtol=bound, err_msg=str(count))


def test_clips_and_dropout_masks_are_the_same_to_the_bit(tiny_config, random_split):
    config, split = tiny_config(), random_split(cases=20)
    indices = batch_indices(config.seed, 3, num_cases=20, batch_size=8)
    augmentation, dropout = (
        set_up(config).augmentation,
        Dropout(0.5, Numerics(axis_name=parallel.AXIS)),
    )

    def drawn(data: Any, cases: Any, key: Any) -> Any:
        batch = make_batch(
            data, cases, key, augmentation=augmentation, mask_size=8, axis_name=parallel.AXIS
        )
        ones = jnp.ones((len(cases), 40))
        masked: Any = dropout.apply({}, ones, train=True, rngs={"dropout": key})
        batch["dropout"] = masked
        return parallel.gather(batch)

    results = []
    for count in COUNTS:
        on = parallel.devices(count)
        run = parallel.data_parallel(drawn, in_axes=(None, 0, None), out_axes=None, on=on)
        data = {"video": split.video, "lge_mask": split.lge_mask, "label": split.label}
        data, key = parallel.replicate((data, jax.random.key(4)), on)
        result = run(data, parallel.shard(indices, count), key)
        results.append({k: np.asarray(v).reshape(8, *v.shape[2:]) for k, v in result.items()})
    assert set(results[0]) == {"video", "coarse_mask", "label", "dropout"}
    assert not np.array_equal(results[0]["dropout"][0], results[0]["dropout"][1])
    for result in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, result, results[0])


@pytest.mark.slow(reason="compiles the step for one, two and eight devices")
def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    whole = run(tmp_path / "whole", devices=1)
    with pytest.raises(RunInterrupted):
        run(tmp_path / "parts", devices=8, kill_at=2, number=signal.SIGTERM)
    parts = run(tmp_path / "parts", devices=2)
    assert [row["step"] for row in parts] == [10, 10, 20, 20, 30, 30]
    for ours, theirs in zip(parts, whole, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() & set(METRICS):
            # float32 through 30 updates of AdamW, each count with its own order of sums.
            np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-5, err_msg=key)
    # The folder keeps the config of the last start.
    assert RunFolder(tmp_path / "parts").config()["train"]["num_devices"] == 2
