"""The whole schedule by part, the data's share of a step, and the table of a GPU's figures."""

import json
import math
from typing import Any

import pytest

from benchmarks import data_step, gpu_table, run_8000
from benchmarks.resident import AUGMENTATION, MASK_SIZE
from mvo_jax.config_files import load_config

TINY = ["--system=c3d", "--frames=16", "--size=32", "--width=2"]


def test_augmentation_is_that_of_the_paper_s_config():
    config: Any = load_config("mvo")
    assert config.augment.to_dict() == AUGMENTATION
    assert config.model.mask_size == MASK_SIZE


def schedule(tmp_path, *arguments: str):
    output = tmp_path / "run.json"
    fixed = ("--cohort=tiny", "--batch=4", "--dtype=float32", f"--json={output}")
    run_8000.main([*TINY, *fixed, *arguments])
    (row,) = json.loads(output.read_text())["rows"]
    return row


@pytest.mark.slow(reason="runs a benchmark")
def test_schedule_by_part(tmp_path, capsys):
    row = schedule(tmp_path, "--steps=6", "--eval-every=4", "--chunk=2")
    assert row["steps_taken"] == 6
    assert 0 <= row["best_auc"] <= 1
    assert math.isfinite(row["final_loss"])
    parts = {"cohort", "set-up", "compile", "steps", "evaluation", "checkpoints"}
    assert set(row["seconds"]) == parts
    assert row["clips_per_s"] == pytest.approx(4 * 4 / row["seconds"]["steps"])
    printed = capsys.readouterr().out
    assert "6 of 6 steps of 4 clips" in printed
    assert all(part in printed for part in parts)


@pytest.mark.slow(reason="runs a benchmark")
def test_limit_stops_after_the_first_chunk_and_reports(tmp_path):
    row = schedule(tmp_path, "--steps=40", "--eval-every=40", "--chunk=1", "--limit=0")
    assert row["steps_taken"] == 1
    assert row["best_auc"] == -1  # never evaluated
    assert math.isnan(row["clips_per_s"])  # the first chunk compiles and is not counted


@pytest.mark.slow(reason="runs a benchmark")
def test_data_beside_a_fixed_batch(capsys):
    data_step.main([*TINY, "--batch=2", "--rounds=2", "--cases=6"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[-2:] == ["fixed", "augmentation"]
    assert float(printed[1].split()[-2]) > 0


def training_row(**changes):
    about = {"lowering": "conv2d", "device": "A GPU", "jax": "0.11.2"}
    row = {"impl": "jax", "batch": 16, "dtype": "bfloat16", "chunk": 20, "median_s": 0.010}
    return row | {"about": about} | changes


def test_real_data_is_set_against_the_fixed_batch_with_all_else_the_same():
    run = {"batch": 16, "dtype": "bfloat16", "chunk": 20, "lowering": "conv2d"}
    run["clips_per_s"] = 1600.0
    others = [training_row(chunk=1), training_row(dtype="float32"), training_row(impl="torch")]
    assert gpu_table.real_against_fixed(run, others) is None
    pair = gpu_table.real_against_fixed(run, [*others, training_row(median_s=0.0095)])
    assert pair == pytest.approx((10.0, 9.5))


def test_table_of_an_empty_folder_is_a_failure(tmp_path):
    assert gpu_table.main([str(tmp_path)]) == 1


def test_a_failed_part_is_named_and_fails_the_table(tmp_path, capsys):
    (tmp_path / "parts.txt").write_text("run_8000: done, 3 s\ndata: out of time, 9 s\n")
    assert gpu_table.main([str(tmp_path)]) == 1
    assert "data: out of time" in capsys.readouterr().out
