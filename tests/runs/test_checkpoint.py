"""Checkpoints: what is saved comes back, and nothing else is taken for it."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mvo_jax.errors import EXIT_DAMAGED, EXIT_NON_FINITE, UserError
from mvo_jax.runs import checkpoint
from mvo_jax.runs.checkpoint import SEAL, Checkpoints
from mvo_jax.training.state import TrainState


def state_at(step: int, *, ema: bool = True) -> Any:
    params = {"layer": {"kernel": jnp.full((3, 2), 0.1 * step), "bias": jnp.arange(2.0)}}
    averaged = {"layer": {"kernel": jnp.full((3, 2), 7.0), "bias": jnp.zeros(2)}}
    return TrainState(
        step=jnp.array(step, jnp.int32),
        params=params,
        batch_stats={"norm": {"mean": jnp.full(4, 2.0 * step)}},
        opt_state=({"mu": jnp.ones((3, 2))}, (), jnp.array(step)),
        ema_params=averaged if ema else None,
    )


def save(
    folder: Path, *steps: int, best: int | None = None, auc: float = 0.75, ema: bool = True
) -> None:
    checkpoints = Checkpoints(folder, create=True)
    for step in steps:
        if step == best:
            checkpoints.save_best(state_at(step, ema=ema), {"step": step, "auc": auc})
        checkpoints.save_latest(state_at(step, ema=ema))
    checkpoints.finish()


def save_state(folder: Path, state: Any, **meta: Any) -> None:
    checkpoints = Checkpoints(folder, create=True)
    checkpoints.save_latest(state, meta)
    checkpoints.finish()


def restore(folder: Path, template: Any) -> Any:
    return Checkpoints(folder, create=False).restore_latest(template)


def with_params(step: Any = 0, **layer: Any) -> Any:
    state = state_at(step)
    return state.replace(params={"layer": {**state.params["layer"], **layer}})


@pytest.mark.parametrize("ema", [False, True])
def test_the_newest_state_comes_back(tmp_path, ema):
    save(tmp_path, 10, 20, 30, best=20, ema=ema)
    checkpoints = Checkpoints(tmp_path, create=False)
    assert checkpoints.latest_step() == 30
    restored = checkpoints.restore_latest(state_at(0, ema=ema))
    jax.tree.map(np.testing.assert_array_equal, restored, state_at(30, ema=ema))
    # Host memory: the run may go on with other devices.
    assert {type(leaf) for leaf in jax.tree.leaves(restored)} == {np.ndarray}
    meta = checkpoints.best_meta()
    assert meta is not None
    assert (meta["step"], meta["auc"]) == (20, 0.75)


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_latest_few_and_one_best_are_kept(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, create=True, keep_latest=keep)
    for step in (10, 20, 30):
        checkpoints.save_best(state_at(step), {"step": step, "auc": step / 100})
        checkpoints.save_latest(state_at(step))
    checkpoints.finish()
    assert checkpoints.steps("latest") == [10, 20, 30][-keep:]
    assert checkpoints.steps("best") == [30]


def test_variables_to_evaluate_with_are_the_averaged_ones(tmp_path):
    save(tmp_path, 10, 20, best=10)
    checkpoints = Checkpoints(tmp_path, create=False)
    best, step = checkpoints.restore_variables(state_at(0), "best")
    assert step == 10
    np.testing.assert_array_equal(best["params"]["layer"]["kernel"], 7)
    np.testing.assert_array_equal(best["batch_stats"]["norm"]["mean"], 20)
    latest, step = checkpoints.restore_variables(state_at(0), "latest")
    assert step == 20
    np.testing.assert_array_equal(latest["batch_stats"]["norm"]["mean"], 40)


def test_a_save_is_a_copy_of_that_moment(tmp_path):
    checkpoints = Checkpoints(tmp_path, create=True)
    kernel = np.ones((3, 2), np.float32)
    checkpoints.save_latest(with_params(5, kernel=kernel))
    kernel[:] = -1  # what a donated buffer's next owner does
    checkpoints.finish()
    restored = restore(tmp_path, state_at(0))
    np.testing.assert_array_equal(restored.params["layer"]["kernel"], 1)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (with_params(kernel=jnp.zeros((3, 4))), "kernel is float32(3, 2), not float32(3, 4)"),
        (with_params(kernel=jnp.zeros((3, 2), jnp.bfloat16)), "(3, 2), not bfloat16(3, 2)"),
        (with_params(scale=jnp.zeros(2)), "params/layer/scale is missing, not float32(2,)"),
        (state_at(0).replace(batch_stats={}), "norm/mean is float32(4,), not expected"),
        (state_at(0, ema=False), "ema_params/layer/kernel is"),
        (
            with_params(**{f"a{i}": jnp.zeros(1) for i in range(9)}),
            "a2 is missing, not float32(1,) and 6 more",
        ),
    ],
    ids=["shape", "dtype", "missing", "unexpected", "average", "many"],
)
def test_another_shape_dtype_or_name_is_refused(tmp_path, template, words):
    save(tmp_path, 10)
    with pytest.raises(UserError) as caught:
        restore(tmp_path, template)
    assert words in caught.value.cause
    assert "\n" not in caught.value.cause


@pytest.mark.parametrize("left", [None, 0, 20], ids=["lost", "empty", "cut short"])
def test_a_file_that_is_not_whole_is_a_user_error(tmp_path, left):
    save(tmp_path, 10, best=10)
    for path in tmp_path.glob("checkpoints/*/10/arrays/d/*"):
        content = path.read_bytes()
        path.unlink()
        if left is not None:
            path.write_bytes(content[:left])
    checkpoints = Checkpoints(tmp_path, create=False)
    with pytest.raises(UserError, match=r"latest/10 is damaged: arrays/"):
        checkpoints.restore_latest(state_at(0))
    with pytest.raises(UserError, match=r"best/10 is damaged: arrays/"):
        checkpoints.restore_variables(state_at(0), "best")


def test_a_first_save_without_its_seal_is_moved_aside(tmp_path):
    save(tmp_path, 10)
    latest = tmp_path / "checkpoints" / "latest"
    (latest / "10" / SEAL).unlink()
    with pytest.raises(UserError, match=f"latest/10 is damaged: it has no {SEAL}"):
        Checkpoints(tmp_path, create=False).read("latest")
    assert Checkpoints(tmp_path, create=True).latest_step() is None
    assert [p.name for p in latest.iterdir()] == ["10.damaged"]


def test_several_without_a_seal_are_no_work_of_a_kill(tmp_path):
    save(tmp_path, 10, 20)
    for seal in tmp_path.glob(f"checkpoints/latest/*/{SEAL}"):
        seal.unlink()
    checkpoints = Checkpoints(tmp_path, create=True)
    assert checkpoints.steps("latest") == [10, 20]
    with pytest.raises(UserError, match="and so are 1 older ones") as caught:
        checkpoints.read("latest")
    assert caught.value.exit_code == EXIT_DAMAGED


def test_the_format_before_is_read(tmp_path):
    # It had two hashes more in the metadata.
    save(tmp_path, 10)
    folder = tmp_path / "checkpoints" / "latest" / "10"
    metadata = folder / "meta" / "metadata"
    before = {**json.loads(metadata.read_text()), "format": 2, "sha256": "0", "arrays": {}}
    metadata.write_text(json.dumps(before))
    (folder / SEAL).unlink()
    checkpoint._seal(folder)
    jax.tree.map(np.testing.assert_array_equal, restore(tmp_path, state_at(0)), state_at(10))


def test_a_folder_without_checkpoints_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="has no checkpoints"):
        Checkpoints(tmp_path, create=False)
    checkpoints = Checkpoints(tmp_path, create=True)
    assert checkpoints.latest_step() is None
    assert checkpoints.best_meta() is None
    with pytest.raises(UserError, match="best holds no checkpoint"):
        checkpoints.restore_variables(state_at(0), "best")


def test_the_best_is_on_disk_before_the_latest_is_written(tmp_path, monkeypatch):
    # Killed in between the other way round, a resumed run would never see this best again.
    committed = []
    original = ocp.CheckpointManager.save

    def watched(self, step, **kwargs):
        if self.directory.name == "latest":
            committed.append((tmp_path / "checkpoints" / "best" / str(step) / SEAL).is_file())
        return original(self, step, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", watched)
    for step in (10, 20):
        save(tmp_path, step, best=step)
    assert committed == [True, True]


def test_what_is_already_there_is_replaced(tmp_path):
    # The newest state was damaged, so the run was resumed from before its best.
    for ema, auc in ((False, 0.1), (True, 0.9)):
        save(tmp_path, 20, best=20, auc=auc, ema=ema)
    reader = Checkpoints(tmp_path, create=False)
    assert reader.read("best").meta["auc"] == 0.9
    for which in ("best", "latest"):
        variables, _ = reader.restore_variables(state_at(0), which)
        np.testing.assert_array_equal(variables["params"]["layer"]["kernel"], 7)


def test_what_is_saved_beside_the_arrays_comes_back(tmp_path):
    window = [{"loss": 0.1 + 0.2}]
    save_state(tmp_path, state_at(10), config={"stage_sizes": (1, 2)}, window=window, best=None)
    restored = Checkpoints(tmp_path, create=False).read("latest").meta
    assert restored["config"] == {"stage_sizes": [1, 2]}
    assert restored["window"] == window  # to the bit
    assert restored["best"] is None


def test_bfloat16_is_restored(tmp_path):
    half = with_params(kernel=jnp.full((3, 2), 1.5, jnp.bfloat16))
    save_state(tmp_path, half)
    kernel = restore(tmp_path, half).params["layer"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(kernel, half.params["layer"]["kernel"])


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    save(tmp_path, 10)
    bad = state_at(20).replace(opt_state=({"mu": jnp.full((3, 2), jnp.nan)}, (), jnp.array(20)))
    with pytest.raises(UserError, match="opt_state/0/mu is not finite") as caught:
        save_state(tmp_path, bad)
    assert caught.value.exit_code == EXIT_NON_FINITE
    assert Checkpoints(tmp_path, create=False).steps("latest") == [10]
