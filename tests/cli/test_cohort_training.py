"""A simulated cohort written as NIfTI, prepared by the command and trained on: the same numbers."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mvo_jax.cli.main import run
from mvo_jax.config_files import load_config
from mvo_jax.data.clips import SIMULATED_FIELD_OF_VIEW_MM
from mvo_jax.data.splits import Split, load_split
from tests.data.importers import writers

ROOT = Path(__file__).resolve().parents[2]
SPACING_MM = SIMULATED_FIELD_OF_VIEW_MM / 32
SHAPE = ["--frames=8", "--image_size=32", f"--spacing_mm={SPACING_MM}", "--window=0,255"]


@pytest.fixture(scope="module")
def cohort(data_dir, tmp_path_factory) -> Path:
    """The simulated cohort as NIfTI with its splits in a table, prepared."""
    folder = tmp_path_factory.mktemp("prepared")
    rows = []
    data: Any = load_config("mvo").unlock().data
    data.update(dir=str(data_dir), size="tiny", preset="easy", frames=8, image_size=32)
    for name in ("train", "validation", "test"):
        split = load_split(data, name)
        assert isinstance(split, Split)
        for i, case in enumerate(split.case_id):
            writers.write_nifti(
                folder / "source",
                case,
                split.video[i, ..., 0],
                split.lge_mask[i],
                pixel_mm=SPACING_MM,
            )
            rows.append((case, split.patient_id[i], split.label[i], name))
    table = folder / "cases.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("case_id", "patient_id", "label", "split"), *rows])
    out = folder / "cohort"
    arguments = [str(folder / "source"), f"--out={out}", f"--table={table}", "--jobs=1", *SHAPE]
    assert run("prepare", arguments) == 0
    return out


@pytest.mark.slow(reason="trains on two cohorts")
def test_the_first_step_has_the_same_loss(cohort, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    steps = ["--config.train.total_steps=2", "--config.train.log_every=1"]
    steps += ["--config.train.eval_every=2", "--config.optimizer.warmup_steps=1"]
    found = {}
    for name, data in {
        "simulated": [],
        "prepared": ["--config.data.name=cohort", f"--config.data.dir={cohort}"],
    }.items():
        workdir = tmp_path / name
        assert run("train", [*tiny, *data, *steps, f"--workdir={workdir}"]) == 0
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        found[name] = [
            {key: row[key] for key in ("step", "loss", "auc", "brier") if key in row}
            for row in rows
        ]
    assert found["prepared"] == found["simulated"]  # clips are equal, so all is
    assert any("loss" in row and row["step"] == 1 for row in found["prepared"])
    assert any("auc" in row for row in found["prepared"])
    geometry = json.loads((tmp_path / "prepared" / "geometry.json").read_text())
    assert geometry["window"] == [0.0, 255.0]
    assert geometry["spacing_mm"] == pytest.approx(SPACING_MM)
    assert "train: 16 cases of 16 patients, 8 with MVO" in capsys.readouterr().err


def test_prepare_says_what_it_made_and_inspect_agrees(cohort, tmp_path, capsys):
    capsys.readouterr()
    page = tmp_path / "page.html"
    assert run("inspect", [str(cohort), f"--out={page}", "--tiles=4"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[1:4]] == ["train", "validation", "test"]
    assert "crops placed by: mask (32)" in printed
    assert "frames in the source: 8 (32)" in printed
    assert os.fspath(cohort) in page.read_text()
