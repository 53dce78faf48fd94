"""The commands as a user runs them, in processes of their own."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mvo_jax.cli import main as entry
from mvo_jax.cli.flags import parse
from mvo_jax.config_files import config_from_json
from mvo_jax.devices.environment import OPT_OUT, configure_xla
from mvo_jax.models.ops.lowerings import FAST_CPU_CONVOLUTION_FLAG
from mvo_jax.runs.checkpoint import Checkpoints
from mvo_jax.runs.folder import RunFolder
from mvo_jax.training.setup import set_up

ROOT = Path(__file__).resolve().parents[2]
FLAG = "--xla_cpu_experimental_ynn_fusion_type"


@pytest.fixture(scope="module")
def trained(command, tiny, tmp_path_factory) -> Path:
    """Run folder of ``train.py``, uninterrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    result = command("train.py", *tiny, f"--workdir={workdir}", "--profile=3")
    assert result.returncode == 0, result.stderr
    assert "trained to step 50" in result.stdout
    assert f"traced steps 3 to 5: {workdir / 'profile'}" in result.stderr
    assert len(list((workdir / "profile").rglob("*.xplane.pb"))) == 1
    assert "best validation AUC" in result.stdout
    assert str(workdir) in result.stdout
    for line in ("train: 16 cases of 16 patients, 8 with MVO", "step 50/50", "clips/s", "left"):
        assert line in result.stderr
    # Plain lines where there is no terminal: nothing is drawn over.
    assert "\r" not in result.stderr
    return workdir


def test_train_then_eval(trained, command):
    result = command("eval.py", f"--workdir={trained}")
    assert result.returncode == 0, result.stderr
    printed = re.search(r"test AUC ([\d.]+) \(95 % interval ([\d.]+) to ([\d.]+)\)", result.stdout)
    assert printed
    assert f"report: {trained / 'report.html'}" in result.stdout
    summary = json.loads((trained / "metrics.json").read_text())
    auc = summary["metrics"]["auc"]
    for text, value in zip(printed.groups(), (auc["value"], auc["low"], auc["high"]), strict=True):
        assert float(text) == pytest.approx(value, abs=5e-5)
    assert summary["checkpoint"]["which"] == "best"
    with (trained / "predictions_test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert sum(int(row["label"]) for row in rows) == 4
    # The printed AUC from the table by counting pairs.
    scores = {
        label: [float(row["probability"]) for row in rows if row["label"] == label]
        for label in "01"
    }
    pairs = [(p > n) + 0.5 * (p == n) for p in scores["1"] for n in scores["0"]]
    assert np.mean(pairs) == pytest.approx(auc["value"], abs=1e-6)
    report = (trained / "report.html").read_text()
    assert f"{auc['value']:.3f}" in report
    assert not re.search(r'(src|href)="https?://', report)  # works offline


def test_eval_of_another_split_and_checkpoint(trained, command):
    result = command("eval.py", f"--workdir={trained}", "--split=validation", "--checkpoint=latest")
    assert result.returncode == 0, result.stderr
    assert (trained / "report_validation_latest.html").exists()
    assert f"report: {trained / 'report_validation_latest.html'}" in result.stdout
    summary = json.loads((trained / "metrics_validation_latest.json").read_text())
    assert summary["checkpoint"] == {"which": "latest", "step": 50}


def test_the_run_folder_tells_where_it_came_from(trained, tiny):
    config = json.loads((trained / "config.json").read_text())
    parsed = parse(tiny, lambda values: None, with_config=True).config
    assert config == json.loads(parsed.to_json())
    assert config_from_json(config).is_locked
    (started,) = json.loads((trained / "provenance.json").read_text())
    assert "train.py" in started["command"]
    assert FAST_CPU_CONVOLUTION_FLAG in started["xla_flags"]


def final_bytes(workdir: Path) -> bytes:
    """Parameters, optimiser state and statistics of the newest checkpoint."""
    config = config_from_json(json.loads((workdir / "config.json").read_text()))
    checkpoints = Checkpoints(workdir, create=False)
    state = checkpoints.restore_latest(set_up(config).state_shapes())
    checkpoints.finish()
    assert int(state.step) == 50
    parts = (state.params, state.opt_state, state.batch_stats)
    return b"".join(np.asarray(leaf).tobytes() for part in parts for leaf in jax.tree.leaves(part))


def rows(workdir: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k != "clips_per_second"}
        for row in RunFolder(workdir).history()
    ]


@pytest.mark.slow(reason="trains in three processes")
def test_a_process_killed_after_30_of_50_steps_resumes_to_the_same_bytes(
    trained, command, environment, tiny, tmp_path
):
    arguments = [sys.executable, "train.py", *tiny, f"--workdir={tmp_path}"]
    metrics = tmp_path / "metrics.jsonl"
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        while process.poll() is None:
            if metrics.exists() and '"step": 30' in metrics.read_text():
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.002)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    assert rows(tmp_path)[-1]["step"] < 50
    resumed = command("train.py", *tiny, f"--workdir={tmp_path}")
    assert resumed.returncode == 0, resumed.stderr
    assert final_bytes(tmp_path) == final_bytes(trained)
    assert rows(tmp_path) == rows(trained)
    assert len(json.loads((tmp_path / "provenance.json").read_text())) == 2


@pytest.mark.slow(reason="trains in a process of its own")
def test_a_loss_that_is_not_finite_ends_with_exit_code_3(command, tiny, tmp_path):
    workdir = tmp_path / "run"
    result = command(
        "train.py", *tiny, "--config.optimizer.learning_rate=1e30", f"--workdir={workdir}"
    )
    assert result.returncode == 3
    assert "Traceback" not in result.stderr
    cause, remedy = result.stderr.splitlines()[-2:]
    assert re.match(r"error: step \d+: loss \S+ and gradient norm \S+ are not finite", cause)
    assert (workdir / "non_finite.json").exists()
    assert "learning_rate" in remedy


@pytest.mark.parametrize("where", ["train.py", "eval.py"])
def test_help_of_the_two_commands(command, where):
    result = command(where, "--help")
    assert result.returncode == 0
    assert "--workdir" in result.stdout
    assert ("--config" in result.stdout) == (where == "train.py")


def test_help_of_the_verbs(command):
    result = command("-m", "mvo_jax", "--help")
    assert result.returncode == 0
    assert all(verb in result.stdout for verb in entry.VERBS)
    result = command("-m", "mvo_jax", "trian")
    assert result.returncode == 2
    assert "usage:" in result.stderr


def test_an_error_has_two_lines_and_with_debug_its_traceback(command, tmp_path):
    result = command("eval.py", f"--workdir={tmp_path}")
    assert result.returncode == 2
    assert result.stdout == ""
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["error", "  what to do"]
    result = command("eval.py", f"--workdir={tmp_path}", "--debug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "UserError" in result.stderr


def test_summary_prints_exact_integers(command):
    released = command("-m", "mvo_jax", "summary", "--config", "configs/mvo.py:released")
    assert released.returncode == 0, released.stderr
    for number in ("31,300,125", "3,155,456", "513", "309,633", "34,765,727", "34,456,094"):
        assert number in released.stdout
    assert "43.72 M (ours 34.77 M)" in released.stdout
    assert "50.2 GFLOP" in released.stdout


@pytest.mark.parametrize(
    ("variant", "total", "paper"),
    [("backbone", "31,300,638", "31.50 M"), ("bert", "34,456,094", "37.86 M")],
)
def test_summary_of_the_variants(capsys, monkeypatch, variant, total, paper):
    monkeypatch.chdir(ROOT)
    flag = f"--config.model.variant={variant}"
    assert entry.run("summary", ["--config=configs/mvo.py", flag]) == 0
    printed = capsys.readouterr().out
    assert total in printed
    assert paper in printed


def test_summary_of_a_reduced_network_claims_no_number_of_the_paper(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert entry.run("summary", ["--config=configs/mvo.py:quick"]) == 0
    assert "paper" not in capsys.readouterr().out


@pytest.mark.parametrize("before", ["", "--xla_force_host_platform_device_count=2"])
def test_the_xla_flag_is_added(before):
    environment = {"XLA_FLAGS": before} if before else {}
    configure_xla(environment)
    assert environment["XLA_FLAGS"].split() == [*before.split(), FAST_CPU_CONVOLUTION_FLAG]
    again = dict(environment)
    configure_xla(again)
    assert again == environment


@pytest.mark.parametrize(
    "environment",
    [{OPT_OUT: "1"}, {"XLA_FLAGS": f"{FLAG}=everything"}, {OPT_OUT: "1", "XLA_FLAGS": "--other"}],
    ids=str,
)
def test_the_xla_flag_is_not_added(environment):
    before = dict(environment)
    configure_xla(environment)
    assert environment == before


def test_the_xla_flag_is_not_added_to_a_jaxlib_it_was_not_tried_on(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.13.0")
    environment = {}
    configure_xla(environment)
    assert environment == {}


@pytest.mark.parametrize(
    ("verb", "words"),
    [("train", "last checkpoint"), ("prepare", "next series"), ("phantom", "interrupted")],
)
def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys, verb, words):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"mvo_jax.cli.{verb}.main", interrupted)
    assert entry.run(verb, []) == 130
    assert words in capsys.readouterr().err
