"""The public API: what a notebook calls, beside the commands that call the same."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mvo_jax
from mvo_jax.errors import UserError
from tests.small_run import make_random_split, make_tiny_config

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def splits():
    return {
        name: make_random_split(name=name, seed=seed)
        for seed, name in enumerate(("train", "validation", "test"))
    }


@pytest.fixture(scope="module")
def config():
    return make_tiny_config(**{"train.total_steps": 4, "train.eval_every": 2, "train.log_every": 2})


@pytest.fixture(scope="module")
def trained(splits, config, tmp_path_factory):
    """(run folder, what ``train_and_evaluate`` returned)."""
    folder = tmp_path_factory.mktemp("api") / "run"
    return folder, mvo_jax.train_and_evaluate(config, folder, splits=splits)


def test_importing_the_package_loads_no_jax_and_names_the_api():
    code = "import sys, mvo_jax; print('jax' in sys.modules, *dir(mvo_jax))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded, *names = result.stdout.split()
    assert loaded == "False"
    assert {"train_and_evaluate", "evaluate", "load_run", "create_model", "list_models"} <= {*names}
    with pytest.raises(AttributeError, match="no attribute 'train_an_evaluate'"):
        _ = mvo_jax.train_an_evaluate


def test_a_run_is_trained_and_its_test_split_scored(trained):
    folder, result = trained
    assert result["step"] == 4
    assert result["best_step"] in (2, 4)
    assert result["evaluation"]["cases"] == 16
    assert (folder / "report.html").exists()


def test_the_same_call_again_trains_nothing(trained, splits, config):
    folder, result = trained
    again = mvo_jax.train_and_evaluate(config, folder, splits=splits, evaluate_on=None)
    assert (again["step"], again["evaluation"]) == (4, None)
    assert again["best_auc"] == result["best_auc"]


def test_a_loaded_run_predicts_what_the_evaluation_wrote(trained, splits):
    folder, _ = trained
    rows = (folder / "predictions_test.csv").read_text().splitlines()
    column = rows[0].split(",").index("probability")
    written = [float(row.split(",")[column]) for row in rows[1:]]
    run = mvo_jax.load_run(folder)
    video = splits["test"].video
    result = run.predict(video)
    # Written with six digits or more; batches of another size may round otherwise.
    np.testing.assert_allclose(result["probability"], written, atol=1e-6)
    assert result["logits"].shape == (16, 1)
    assert result["coarse_mask"].shape == (16, 32, 32)
    # Without the channel axis, and in batches that do not divide.
    one = run.predict(video[:3, ..., 0])
    np.testing.assert_allclose(one["probability"], result["probability"][:3], atol=1e-6)
    assert one["coarse_mask"].shape == (3, 32, 32)


@pytest.mark.parametrize(
    "video",
    [
        np.zeros((2, 8, 32, 32), np.float32),
        np.zeros((2, 9, 32, 32), np.uint8),
        np.zeros((8, 32, 32), np.uint8),
        np.zeros((0, 8, 32, 32), np.uint8),
        np.zeros((2, 8, 32, 32, 3), np.uint8),
    ],
    ids=["float", "frames", "no batch", "empty", "colour"],
)
def test_clips_of_another_kind_are_refused(trained, video):
    run = mvo_jax.load_run(trained[0])
    with pytest.raises(UserError, match=r"the run takes uint8 \[B, 8, 32, 32\]"):
        run.predict(video)


def test_no_run_and_no_such_checkpoint(trained, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        mvo_jax.load_run(tmp_path / "nothing")
    with pytest.raises(UserError, match="choose best or latest"):
        mvo_jax.load_run(trained[0], checkpoint="newest")


def test_models_are_created_by_name():
    assert set(mvo_jax.list_models()) >= {"mvo_net", "vivit", "c3d", "slowfast"}
    model = mvo_jax.create_model("mvo_net", width=8, variant="backbone")
    assert (model.width, model.variant) == (8, "backbone")
    with pytest.raises(UserError, match="did you mean mvo_net"):
        mvo_jax.create_model("mvonet")
    with pytest.raises(UserError, match=r"did you mean width\?"):
        mvo_jax.create_model("mvo_net", widht=8)
