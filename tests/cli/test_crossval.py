"""`crossval`: every patient once, out of fold; interrupted and repeated, the same bytes."""

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvo_jax import one_run
from mvo_jax.cli.main import run
from mvo_jax.errors import EXIT_FINDINGS, UserError
from mvo_jax.evaluation.metrics import roc_auc
from mvo_jax.evaluation.statistics import delong_interval
from mvo_jax.evaluation.stored_run import read_stored_run, write_stored_run
from tools.simulated_images import write_images

ROOT = Path(__file__).resolve().parents[2]
SHAPE = ["--frames=8", "--image_size=32", "--spacing_mm=3.796875", "--jobs=1"]
WRITTEN = ("predictions.csv", "predictions_patients.csv", "table.json", "table.md", "table.html")
# The network of the tools, which compiles in no time.
CONFIG = """
from tools.tiny_run import tiny_config

def get_config(argument=""):
    return tiny_config(**{"train.total_steps": 2, "train.log_every": 1, "train.eval_every": 1})
"""


def prepared(folder: Path, **options: Any) -> Path:
    write_images(folder / "images", frames=8, image_size=32, **options)
    arguments = [str(folder / "images"), f"--out={folder / 'cohort'}", *SHAPE]
    assert run("prepare", arguments) == 0
    return folder / "cohort"


def words(cohort: Path, out: Path, *more: str) -> list[str]:
    data = ["--config.data.name=cohort", f"--config.data.dir={cohort}"]
    config = cohort.parent / "tiny.py"
    config.write_text(CONFIG)
    return [f"--config={config}", f"--out={out}", "--folds=3", *data, *more]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Nine patients with two slices each, four of them with MVO."""
    return prepared(tmp_path_factory.mktemp("crossval"), patients=9, slices=2, positive=4)


@pytest.fixture(scope="module")
def done(cohort, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("crossval") / "out"
    assert run("crossval", words(cohort, out)) == 0
    return out


def test_every_patient_is_scored_once_by_a_network_that_never_saw_it(done, cohort):
    manifest = rows(cohort / "manifest.csv")
    cases, patients = (rows(done / name) for name in WRITTEN[:2])
    assert sorted(row["case_id"] for row in cases) == sorted(row["case_id"] for row in manifest)
    assert [row["patient_id"] for row in patients] == sorted({r["patient_id"] for r in manifest})
    for row in patients:
        slices = [one for one in cases if one["patient_id"] == row["patient_id"]]
        assert {one["fold"] for one in slices} == {row["fold"]}
        assert (
            row["probability"] == max(slices, key=lambda s: float(s["probability"]))["probability"]
        )
        assert int(row["decision"]) == (float(row["probability"]) >= float(row["threshold"]))
        # The network that scored it had none of its slices in training or validation.
        folder = done / f"fold_{row['fold']}-seed0"
        tested = {one["patient_id"] for one in rows(folder / "predictions_test.csv")}
        chosen_on = {one["patient_id"] for one in rows(folder / "predictions_validation.csv")}
        assert row["patient_id"] in tested - chosen_on
        assert json.loads((folder / "config.json").read_text())["data"]["fold"] == int(row["fold"])
    assert len({row["fold"] for row in patients}) == 3


def test_one_interval_over_the_pooled_patients(done, capsys):
    patients = rows(done / "predictions_patients.csv")
    label = np.array([int(row["label"]) for row in patients])
    probability = np.array([float(row["probability"]) for row in patients])
    table = json.loads((done / "table.json").read_text())
    expected = delong_interval(label, probability)
    assert table["auc"]["value"] == roc_auc(label, probability) == expected.value
    assert (table["auc"]["low"], table["auc"]["high"]) == (expected.low, expected.high)
    assert (table["cases"], table["patients"], table["positive"]) == (18, 9, int(label.sum()))
    assert sum(row["patients"] for row in table["by_fold"]) == 9
    before = (done / "table.html").read_bytes()
    assert run("crossval", ["--tables", f"--out={done}"]) == 0
    assert "9 patients, each once" in capsys.readouterr().out
    assert (done / "table.html").read_bytes() == before
    assert "scored once" in before.decode()
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", before.decode())


def test_interrupted_and_repeated_it_ends_in_the_same_bytes(done, cohort, tmp_path, monkeypatch):
    out = Path(shutil.copytree(done, tmp_path / "out"))
    (out / "fold_1-seed0.json").unlink()
    shutil.rmtree(out / "fold_1-seed0")
    train = one_run.train_and_evaluate

    def interrupted(config, workdir, **options):
        assert config.data.fold == 1  # the others are done
        raise UserError("the disk is full", "free some space")

    monkeypatch.setattr(one_run, "train_and_evaluate", interrupted)
    assert run("crossval", words(cohort, out)) == EXIT_FINDINGS
    table = json.loads((out / "table.json").read_text())
    assert not table["complete"]
    assert table["auc"] is None
    assert any("Not done yet: fold 1, seed 0" in note for note in table["notes"])
    kept = (out / "fold_0-seed0.json").read_bytes()
    monkeypatch.setattr(one_run, "train_and_evaluate", train)
    assert run("crossval", words(cohort, out)) == 0
    assert (out / "fold_0-seed0.json").read_bytes() == kept
    for name in WRITTEN:
        assert (out / name).read_bytes() == (done / name).read_bytes(), name


def test_seeds_are_pooled_each_and_share_one_interval(done, tmp_path):
    out = Path(shutil.copytree(done, tmp_path / "out"))
    for path in done.glob("fold_*-seed0.json"):
        first = read_stored_run(path)
        other = 1 - first.scored.probability  # of a network that ranks the other way round
        scored = dataclasses.replace(first.scored, probability=other)
        second = dataclasses.replace(first, seed=1, scored=scored)
        write_stored_run(out / path.name.replace("seed0", "seed1"), second)
    about = json.loads((out / "crossval.json").read_text())
    (out / "crossval.json").write_text(json.dumps({**about, "seeds": [0, 1]}))
    assert run("crossval", ["--tables", f"--out={out}"]) == 0
    table = json.loads((out / "table.json").read_text())
    aucs = [row["auc"] for row in table["by_seed"]]
    assert len(aucs) == 2
    assert table["auc"]["value"] == pytest.approx(np.mean(aucs))
    assert "seeds as readers" in table["auc"]["method"]
    assert len(rows(out / "predictions_patients.csv")) == 18
    drawn = [(of / "table.html").read_text().count("stroke-width: 1.4") for of in (done, out)]
    assert drawn == [6, 9]  # a curve for each of the runs, and three in the legend


def test_what_cannot_be_cross_validated_is_refused_before_anything_is_written(
    cohort, tmp_path, refused
):
    out = tmp_path / "out"
    few = prepared(tmp_path, patients=9, slices=1, positive=2)
    cause, _ = refused("crossval", *words(few, out))
    assert re.search(r"fold \d of 3 has one class: 3 cases, none with MVO", cause)
    cause, _ = refused("crossval", "--config=demo", f"--out={out}")
    assert "data.name is 'phantom'" in cause
    cause, _ = refused("crossval", f"--out={out}")
    assert "--config is missing" in cause
    cause, _ = refused("crossval", f"--out={out}", "--tables")
    assert "not the folder of a crossval" in cause
    assert not out.exists()


def test_a_cohort_that_was_prepared_again_does_not_mix(done, tmp_path, refused):
    other = prepared(tmp_path, patients=9, slices=1, positive=4)
    cause, _ = refused("crossval", *words(other, done))
    assert "holds another comparison (cohort" in cause
