"""`predict` with several runs and with scaled probabilities."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from mvo_jax.cli.main import run
from mvo_jax.data.slices import ORIENTATION_RULE
from mvo_jax.errors import UserError
from mvo_jax.evaluation.calibration import Temperature
from mvo_jax.run import train_and_evaluate
from mvo_jax.trained_run import load_run
from tools.tiny_run import tiny_config, tiny_split


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def column(folder: Path, name: str, table: str = "predictions.csv") -> np.ndarray:
    return np.array([float(row[name]) for row in rows(folder / table)])


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Three runs of one network with different seeds, evaluated on validation."""
    folder = tmp_path_factory.mktemp("runs")
    splits = {name: tiny_split(name, i) for i, name in enumerate(("train", "validation"))}
    for seed in range(3):
        config = tiny_config(seed=seed, **{"train.total_steps": 4, "train.eval_every": 4})
        path = folder / f"run{seed}"
        train_and_evaluate(config, path, evaluate_on="validation", splits=splits)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two patients with two slices each."""
    folder = tmp_path_factory.mktemp("images")
    draws = np.random.default_rng(0)
    for name in ("a", "b"):
        cine = draws.integers(0, 1000, (2, 8, 40, 40)).astype(np.uint16)
        np.savez(folder / f"{name}.npz", cine=cine, pixel_mm=3.8, patient_id=[name, name])
    return folder


def predict(runs: list[Path], images: Path, out: Path, *flags: str) -> Path:
    workdir = ",".join(map(str, runs))
    arguments = [f"--workdir={workdir}", str(images), f"--out={out}", "--pictures=1", *flags]
    assert run("predict", arguments) == 0
    return out


@pytest.fixture(scope="module")
def alone(runs, images, tmp_path_factory) -> list[Path]:
    """What each run predicts alone."""
    folder = tmp_path_factory.mktemp("alone")
    return [predict([one], images, folder / one.name) for one in runs]


def test_it_is_the_mean_made_by_hand_with_its_spread(runs, images, alone, tmp_path, capsys):
    out = predict(runs, images, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "probabilities: as the network gives it, not scaled" in printed
    by_hand = np.stack([column(one, "probability") for one in alone])
    assert np.ptp(by_hand, axis=0).min() > 0
    # The ensemble predicts in batches of another size, which moves the last bits of a float32.
    close = {"rtol": 0, "atol": 1e-7}
    np.testing.assert_allclose(column(out, "probability"), by_hand.mean(axis=0), **close)
    np.testing.assert_allclose(column(out, "probability_sd"), by_hand.std(axis=0, ddof=1), **close)
    np.testing.assert_allclose(column(out, "probability_low"), by_hand.min(axis=0), **close)
    np.testing.assert_allclose(column(out, "probability_high"), by_hand.max(axis=0), **close)
    mean = float(np.mean([column(one, "threshold")[0] for one in alone]))
    assert column(out, "threshold")[0] == pytest.approx(mean)
    assert (column(out, "decision") == (column(out, "probability") >= mean)).all()
    table = "predictions_patients.csv"
    slices = by_hand.reshape(3, 2, 2)
    np.testing.assert_allclose(
        column(out, "probability", table), slices.mean(axis=0).max(axis=1), **close
    )
    np.testing.assert_allclose(
        column(out, "probability_sd", table), slices.max(axis=2).std(axis=0, ddof=1), **close
    )
    content = json.loads((out / "predictions.json").read_text())
    assert content["members"] == 3
    assert all(str(one) in content["run"] for one in runs)
    assert content["threshold"]["origin"].startswith("mean of the thresholds of 3 runs")
    np.testing.assert_allclose(content["cases"][0]["members"], by_hand[:, 0], **close)
    page = (out / "summary.html").read_text()
    assert "by an ensemble of 3 runs" in page
    assert "the mean of 3 networks" in page
    assert page.count("±") == 6  # four slices, two patients
    assert "±" not in (alone[0] / "summary.html").read_text()
    assert "probability_sd" not in rows(alone[0] / "predictions.csv")[0]


def test_calibrated_probabilities_are_scaled_and_say_so(runs, images, alone, tmp_path, capsys):
    path = Path(shutil.copytree(runs[0], tmp_path / "run"))
    metrics = json.loads((path / "metrics_validation.json").read_text())
    metrics["temperature"].update(value=2.5, origin="fitted on the validation split (16 cases)")
    (path / "metrics_validation.json").write_text(json.dumps(metrics))
    before = column(alone[0], "probability")
    expected = sigmoid(np.log(before / (1 - before)) / 2.5)
    capsys.readouterr()
    out = predict([path], images, tmp_path / "out", "--calibrated")
    printed = capsys.readouterr().out
    assert "probabilities: scaled by temperature 2.5000, fitted on the validation split" in printed
    # The logit is worked out from a probability in float32, whose last digit is 6e-8.
    np.testing.assert_allclose(column(out, "probability"), expected, atol=1e-6)
    assert (column(out, "decision") == column(alone[0], "decision")).all()
    threshold = column(alone[0], "threshold")[0]
    moved = Temperature(2.5, "").scale(threshold)
    assert column(out, "threshold")[0] == pytest.approx(float(moved))
    assert "scaled by temperature 2.5000" in (out / "summary.html").read_text()
    assert "not scaled" in (alone[0] / "summary.html").read_text()


def test_each_run_of_an_ensemble_has_its_own_temperature(runs, images, alone, tmp_path):
    expected, copies = [], []
    for run_folder, by_itself, temperature in zip(runs, alone, (2.5, 0.5, 1.0), strict=True):
        path = Path(shutil.copytree(run_folder, tmp_path / run_folder.name))
        metrics = json.loads((path / "metrics_validation.json").read_text())
        metrics["temperature"]["value"] = temperature
        (path / "metrics_validation.json").write_text(json.dumps(metrics))
        copies.append(path)
        before = column(by_itself, "probability")
        expected.append(sigmoid(np.log(before / (1 - before)) / temperature))
    out = predict(copies, images, tmp_path / "out", "--calibrated")
    # As above: from probabilities in float32.
    np.testing.assert_allclose(column(out, "probability"), np.mean(expected, axis=0), atol=1e-6)
    content = json.loads((out / "predictions.json").read_text())
    assert content["threshold"]["origin"].endswith("scaled as its probabilities are")
    assert all(f"temperature {value}" in content["probability"] for value in ("2.5", "0.5", "1.0"))


def test_a_run_without_a_temperature_is_refused(runs, images, tmp_path, refused):
    path = Path(shutil.copytree(runs[0], tmp_path / "run"))
    metrics = json.loads((path / "metrics_validation.json").read_text())
    metrics["temperature"].update(value=None, origin="not fitted: it has one class")
    (path / "metrics_validation.json").write_text(json.dumps(metrics))
    flags = [f"--workdir={path}", images, f"--out={tmp_path / 'out'}", "--calibrated"]
    cause, remedy = refused("predict", *flags)
    assert f"{path} has no temperature: not fitted: it has one class" in cause
    assert "--calibrated" in remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spacing_mm": 3.0}, "spacing_mm is 3.0"),
        ({"orientation": 1}, "orientation is 1"),
        ({"window": [0.0, 900.0]}, "window is (0.0, 900.0)"),
        ({"end_diastole_first": True}, "end_diastole_first is True"),
    ],
)
def test_runs_of_other_clips_are_refused(runs, images, tmp_path, refused, changes, words):
    other = Path(shutil.copytree(runs[1], tmp_path / "other"))
    geometry = {"frames": 8, "image_size": 32, "spacing_mm": 121.5 / 32, "window": None}
    geometry |= {"end_diastole_first": False, "orientation": ORIENTATION_RULE}
    (other / "geometry.json").write_text(json.dumps(geometry | changes))
    workdir = f"--workdir={runs[0]},{other}"
    cause, _ = refused("predict", workdir, images, f"--out={tmp_path / 'out'}")
    assert f"{other}: {words}, that of {runs[0]} is" in cause
    assert not (tmp_path / "out").exists()


def test_a_run_counts_once(runs, images, tmp_path, refused):
    workdir = f"--workdir={runs[0]},{runs[1]},{runs[0]}"
    cause, _ = refused("predict", workdir, images, f"--out={tmp_path / 'out'}")
    assert f"{runs[0]} is named twice" in cause


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is damaged"), ("{}", "KeyError"), ('{"share_with_mvo": [0.5]}', "shape (1,)")],
)
def test_a_damaged_training_map_is_named(runs, tmp_path, content, words):
    path = Path(shutil.copytree(runs[0], tmp_path / "run"))
    (path / "training_map.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        _ = load_run(path).training_map
    assert "training_map.json" in caught.value.cause
