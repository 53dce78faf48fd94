"""Checkpoints: what is saved comes back, and nothing else is taken for it."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mvo_jax.errors import EXIT_NON_FINITE, UserError
from mvo_jax.runs.checkpoint import SEAL, Checkpoints
from mvo_jax.training.state import TrainState


def state_at(step: int, *, ema: bool = True) -> Any:
    params = {"layer": {"kernel": jnp.full((3, 2), 0.1 * step), "bias": jnp.arange(2.0)}}
    return TrainState(
        step=jnp.array(step, jnp.int32),
        params=params,
        batch_stats={"norm": {"mean": jnp.full(4, 2.0 * step)}},
        opt_state=({"mu": jnp.ones((3, 2))}, (), jnp.array(step)),
        ema_params={"layer": {"kernel": jnp.full((3, 2), 7.0), "bias": jnp.zeros(2)}}
        if ema
        else None,
    )


def save(folder: Path, *steps: int, best: int | None = None, ema: bool = True) -> None:
    checkpoints = Checkpoints(folder, create=True)
    for step in steps:
        if step == best:
            checkpoints.save_best(state_at(step, ema=ema), {"step": step, "auc": 0.75})
        checkpoints.save_latest(state_at(step, ema=ema))
    checkpoints.finish()


def assert_same(ours: Any, theirs: Any) -> None:
    assert int(ours.step) == int(theirs.step)
    np.testing.assert_array_equal(ours.params["layer"]["kernel"], theirs.params["layer"]["kernel"])
    np.testing.assert_array_equal(
        ours.batch_stats["norm"]["mean"], theirs.batch_stats["norm"]["mean"]
    )
    np.testing.assert_array_equal(ours.opt_state[0]["mu"], theirs.opt_state[0]["mu"])
    assert ours.opt_state[1] == ()
    assert (ours.ema_params is None) == (theirs.ema_params is None)


@pytest.mark.parametrize("ema", [False, True])
def test_the_newest_state_comes_back(tmp_path, ema):
    save(tmp_path, 10, 20, 30, best=20, ema=ema)
    checkpoints = Checkpoints(tmp_path, create=False)
    assert checkpoints.latest_step() == 30
    restored = checkpoints.restore_latest(state_at(0, ema=ema))
    assert_same(restored, state_at(30, ema=ema))
    # Host memory: the run may go on with other devices.
    assert {type(leaf) for leaf in jax.tree.leaves(restored)} == {np.ndarray}
    meta = checkpoints.best_meta()
    assert meta is not None
    assert (meta["step"], meta["auc"]) == (20, 0.75)


def test_two_of_the_latest_and_one_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, create=True)
    for step in (10, 20, 30):
        checkpoints.save_best(state_at(step), {"step": step, "auc": step / 100})
        checkpoints.save_latest(state_at(step))
    checkpoints.finish()
    kept = {
        kind: sorted(p.name for p in (tmp_path / "checkpoints" / kind).iterdir() if p.is_dir())
        for kind in ("latest", "best")
    }
    assert kept == {"latest": ["20", "30"], "best": ["30"]}


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
    state = state_at(5).replace(params={"layer": {"kernel": kernel, "bias": np.zeros(2)}})
    checkpoints.save_latest(state)
    kernel[:] = -1  # what a donated buffer's next owner does
    checkpoints.finish()
    template = state_at(0).replace(params={"layer": {"kernel": kernel, "bias": np.zeros(2)}})
    restored = Checkpoints(tmp_path, create=False).restore_latest(template)
    np.testing.assert_array_equal(restored.params["layer"]["kernel"], 1)


def test_another_shape_dtype_or_name_is_refused(tmp_path):
    save(tmp_path, 10)
    good = state_at(0)

    def with_params(**layer):
        return good.replace(params={"layer": {**good.params["layer"], **layer}})

    wider = with_params(kernel=jnp.zeros((3, 4)))
    half = with_params(kernel=jnp.zeros((3, 2), jnp.bfloat16))
    more = with_params(scale=jnp.zeros(2))
    fewer = good.replace(params={"layer": {"kernel": jnp.zeros((3, 2))}})
    for template, words in (
        (wider, ["params/layer/kernel", "(3, 2)", "(3, 4)"]),
        (half, ["params/layer/kernel", "float32", "bfloat16"]),
        (more, ["params/layer/scale missing"]),
        (fewer, ["params/layer/bias unexpected"]),
        (good.replace(ema_params=None), ["ema_params/layer/kernel unexpected"]),
    ):
        with pytest.raises(UserError) as caught:
            Checkpoints(tmp_path, create=False).restore_latest(template)
        assert all(word in caught.value.cause for word in words), caught.value.cause


def test_a_long_list_of_differences_is_cut(tmp_path):
    save(tmp_path, 10)
    template = state_at(0).replace(params={f"layer{i}": jnp.zeros(1) for i in range(9)})
    with pytest.raises(UserError, match=r"and \d+ more") as caught:
        Checkpoints(tmp_path, create=False).restore_latest(template)
    assert "\n" not in caught.value.cause


def data_files(folder: Path) -> list[Path]:
    """Files that hold array bytes."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and "/d/" in str(p))


# orbax abandons its other reads when one fails; they complain to a closed event loop later.
abandoned_reads = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@abandoned_reads
def test_a_lost_or_cut_file_is_a_user_error(tmp_path):
    save(tmp_path / "good", 10, best=10)
    for number, damage in enumerate(("lose", "cut", "empty")):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", folder)
        for path in data_files(folder / "checkpoints"):
            if damage == "lose":
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[: 20 if damage == "cut" else 0])
        checkpoints = Checkpoints(folder, create=False)
        with pytest.raises(UserError, match=r"latest/10 is damaged: arrays/"):
            checkpoints.restore_latest(state_at(0))
        with pytest.raises(UserError, match=r"best/10 is damaged: arrays/"):
            checkpoints.restore_variables(state_at(0), "best")


@abandoned_reads
def test_a_flipped_bit_is_never_restored(tmp_path):
    save(tmp_path / "good", 10)
    files = data_files(tmp_path / "good" / "checkpoints" / "latest")
    assert files
    draws = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", folder)
        path = folder / files[number % len(files)].relative_to(tmp_path / "good")
        content = bytearray(path.read_bytes())
        content[draws.integers(len(content))] ^= 1 << draws.integers(8)
        path.write_bytes(bytes(content))
        # Either refused, or a byte that nothing reads.
        with contextlib.suppress(UserError):
            assert_same(Checkpoints(folder, create=False).restore_latest(state_at(0)), state_at(10))


def test_arrays_that_are_not_those_saved_are_refused(tmp_path):
    # Whole files of another state of the same shapes: orbax itself has nothing to complain of.
    save(tmp_path / "a", 10)
    save(tmp_path / "b", 20)
    arrays = "checkpoints/latest/{}/arrays"
    shutil.rmtree(tmp_path / "a" / arrays.format(10))
    shutil.copytree(tmp_path / "b" / arrays.format(20), tmp_path / "a" / arrays.format(10))
    with pytest.raises(UserError, match=r"latest/10 is damaged"):
        Checkpoints(tmp_path / "a", create=False).restore_latest(state_at(0))


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
    original = ocp.Checkpointer.save

    def watched(self, path, *args, **kwargs):
        path = Path(path)
        if path.parent.name == "latest":
            committed.append((tmp_path / "checkpoints" / "best" / path.name / SEAL).is_file())
        return original(self, path, *args, **kwargs)

    monkeypatch.setattr(ocp.Checkpointer, "save", watched)
    for step in (10, 20):
        save(tmp_path, step, best=step)
    assert committed == [True, True]


def test_a_best_that_is_already_there_is_replaced(tmp_path):
    # The kill came after the best of step 20 and before its latest; the resumed run is there again.
    save(tmp_path, 10, best=10)
    checkpoints = Checkpoints(tmp_path, create=True)
    checkpoints.save_best(state_at(20, ema=False), {"step": 20, "auc": 0.1})
    checkpoints.finish()
    checkpoints = Checkpoints(tmp_path, create=True)
    checkpoints.save_best(state_at(20), {"step": 20, "auc": 0.9})
    checkpoints.finish()
    reader = Checkpoints(tmp_path, create=False)
    meta = reader.best_meta()
    assert meta is not None
    assert meta["auc"] == 0.9
    best, _ = reader.restore_variables(state_at(0), "best")
    np.testing.assert_array_equal(best["params"]["layer"]["kernel"], 7)


def test_a_save_that_is_there_already_is_left_alone(tmp_path):
    # Between removing a checkpoint and writing the same one again a kill would cost it.
    save(tmp_path, 10, 20)
    seal = tmp_path / "checkpoints" / "latest" / "20" / SEAL
    before = seal.stat().st_mtime_ns
    save(tmp_path, 20)
    assert seal.stat().st_mtime_ns == before
    save(tmp_path, 20, ema=False)
    assert seal.stat().st_mtime_ns > before
    assert Checkpoints(tmp_path, create=False).latest_step() == 20


def test_as_many_of_the_latest_are_kept_as_asked_for(tmp_path):
    checkpoints = Checkpoints(tmp_path, create=True, keep_latest=3)
    for step in (10, 20, 30, 40, 50):
        checkpoints.save_latest(state_at(step))
    checkpoints.finish()
    assert checkpoints.steps("latest") == [30, 40, 50]


def test_what_is_saved_beside_the_arrays_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path, create=True)
    meta = {"config": {"stage_sizes": (1, 2)}, "window": [{"loss": 0.1 + 0.2}], "best": None}
    checkpoints.save_latest(state_at(10), meta)
    checkpoints.finish()
    restored = Checkpoints(tmp_path, create=False).read("latest").meta
    assert restored["config"] == {"stage_sizes": [1, 2]}
    assert restored["window"] == [{"loss": 0.1 + 0.2}]  # to the bit
    assert restored["best"] is None


def test_bfloat16_is_hashed_and_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path, create=True)
    half = {"layer": {"kernel": jnp.full((3, 2), 1.5, jnp.bfloat16), "bias": jnp.zeros(2)}}
    checkpoints.save_latest(state_at(10).replace(params=half))
    checkpoints.finish()
    restored = Checkpoints(tmp_path, create=False).restore_latest(state_at(0).replace(params=half))
    assert restored.params["layer"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(restored.params["layer"]["kernel"], half["layer"]["kernel"])


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    save(tmp_path, 10)
    checkpoints = Checkpoints(tmp_path, create=True)
    bad = state_at(20).replace(opt_state=({"mu": jnp.full((3, 2), jnp.nan)}, (), jnp.array(20)))
    with pytest.raises(UserError, match="opt_state/0/mu is not finite") as caught:
        checkpoints.save_latest(bad)
    assert caught.value.exit_code == EXIT_NON_FINITE
    checkpoints.finish()
    assert checkpoints.steps("latest") == [10]
