"""The tools that damage runs, in short; docs/runs.md has their long forms."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mvo_jax.runs.goodput import Clock
from tools import bitrot, tiny_run

ROOT = Path(__file__).resolve().parents[1]


def test_twenty_kills_change_nothing(tmp_path):
    # A process of its own: it forks, which a process with JAX threads cannot.
    command = [sys.executable, "-m", "tools.chaos", "--kills=20", f"--out={tmp_path}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    totals = json.loads((tmp_path / "totals.json").read_text())
    assert totals["kills"] == 20
    assert set(totals["by_signal"]) == {"SIGKILL", "SIGTERM"}
    assert totals["runs_compared"] >= 1
    assert totals["largest_loss"] <= tiny_run.SAVE_EVERY
    assert totals["violations"] == []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bitrot") / "run"
    changes = {"train.total_steps": 4, "train.eval_every": 4, "optimizer.warmup_steps": 1}
    tiny_run.start(folder, Clock(), tiny_run.tiny_config(**changes))
    return folder


@pytest.mark.parametrize("kind", ["latest", "best"])
def test_every_flipped_bit_is_detected(run, kind):
    counts = bitrot.rot(run, kind, 100, seal=True, seed=1)
    assert {outcome for counter in counts.values() for outcome in counter} == {"detected"}
    assert len(counts) >= 8  # array bytes, metadata of orbax and of ours, the seal


# orbax abandons its other reads when one fails; they complain to a closed event loop later.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_a_seal_no_flipped_bit_is_taken_for_what_was_saved(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    counts = bitrot.rot(copy, "latest", 12, seal=False, seed=2)
    assert sum(counter.get("missed", 0) for counter in counts.values()) == 0
    assert counts["array bytes"]["detected"] > 0
