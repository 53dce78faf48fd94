"""The public API: what a notebook calls, beside the commands that call the same."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import mvo_jax
from mvo_jax.errors import UserError
from mvo_jax.evaluation.predictions import read_predictions
from mvo_jax.interop.weight_sources import read_start
from mvo_jax.run import report_suffix
from mvo_jax.runs.folder import RunFolder, read_json, write_json
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
    with pytest.raises(ImportError, match="cannot import name 'train_an_evaluate'"):
        exec("from mvo_jax import train_an_evaluate")


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


def test_an_evaluation_says_which_checkpoint_it_is_of_and_overwrites_no_other(
    trained, splits, tmp_path, monkeypatch
):
    folder, _ = trained
    before = {path.name: path.read_bytes() for path in folder.glob("*[tn].*") if path.is_file()}
    card = (folder / "cohort_card.json").stat().st_mtime_ns
    assert {"report.html", "predictions_test.csv", "predictions_validation.csv"} <= {*before}
    out = tmp_path / "elsewhere"
    mvo_jax.evaluate(folder, splits=splits, out=out, batch_size=5)
    # Nothing in the run's folder, which may be read-only, is written then.
    assert (folder / "cohort_card.json").stat().st_mtime_ns == card
    assert "test" in read_json(out / "cohort_card.json")["splits"]
    mvo_jax.evaluate(folder, splits=splits, checkpoint="latest")
    with monkeypatch.context() as patch:
        patch.setattr("mvo_jax.files.os.access", lambda *_: False)
        with pytest.raises(UserError, match=r"cannot write .*: Permission denied"):
            mvo_jax.evaluate(folder, splits={})  # before the cases are looked at
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert (folder / "report_latest.html").exists()
    assert (folder / "predictions_validation_latest.csv").exists()
    latest = json.loads((folder / "metrics_latest.json").read_text())
    assert latest["checkpoint"] == {"which": "latest", "step": 4}
    ours, there = (
        read_predictions(f / "predictions_test.csv", split="test")[0] for f in (folder, out)
    )
    # Batches of another size may round otherwise.
    np.testing.assert_allclose(there.probability, ours.probability, atol=1e-6)
    assert report_suffix("validation", "latest") == "_validation_latest"


def test_a_run_starts_from_the_best_of_another(trained, splits, config, tmp_path):
    folder, result = trained
    changes = {"init_from": str(folder), "optimizer.learning_rate": 0.0, "train.total_steps": 1}
    started = make_tiny_config(**{**changes, "train.eval_every": 1, "optimizer.warmup_steps": 0})
    mvo_jax.train_and_evaluate(started, tmp_path / "next", splits=splits, evaluate_on=None)
    ours = mvo_jax.load_run(folder).variables["params"]
    theirs = mvo_jax.load_run(tmp_path / "next").variables["params"]
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))
    (about,) = json.loads((tmp_path / "next" / "provenance.json").read_text())
    assert about["init_from"]["run"] == "run"
    assert about["init_from"]["step"] == result["best_step"]


def test_where_the_data_of_a_run_lie_is_kept(trained, tmp_path, monkeypatch, caplog):
    folder = RunFolder(shutil.copytree(trained[0], tmp_path / "copy"))
    *_, start = read_json(folder.path / "provenance.json")
    assert "data_dir" not in start  # its splits were given
    (tmp_path / "mine").mkdir()
    start["data_dir"] = str(tmp_path / "mine")
    write_json(folder.path / "provenance.json", [start])
    monkeypatch.chdir(tmp_path / "copy")
    assert mvo_jax.load_run(folder.path).config.data.dir == str(tmp_path / "mine")
    assert mvo_jax.load_run(folder.path, data_dir="other").config.data.dir == "other"
    (tmp_path / "mine").rmdir()
    assert mvo_jax.load_run(folder.path).config.data.dir == "data"


def test_other_data_than_a_run_was_trained_with_are_told(trained, splits, tmp_path, caplog):
    other = {**splits, "validation": make_random_split(name="validation", seed=9)}
    mvo_jax.evaluate(trained[0], splits=other, out=tmp_path)
    assert "is not the one that" in caplog.text


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
    inside = trained[0] / "checkpoints" / "best"
    for action in (mvo_jax.load_run, lambda path: read_start(str(path))):
        with pytest.raises(UserError, match="lies inside a run") as caught:
            action(inside)
        assert caught.value.remedy == f"name the folder of the run, {trained[0].resolve()}"
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
