"""The tools that damage runs, in short; docs/runs.md has their long forms."""

import json
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


@pytest.mark.parametrize(("kind", "outcome"), [("latest", "fell back"), ("best", "refused")])
def test_every_flipped_bit_is_found(tmp_path, kind, outcome):
    tiny_run.start(tmp_path, Clock(), tiny_run.tiny_config(**{"train.total_steps": 8}))
    counts = bitrot.rot(tmp_path, kind, 100, seed=1)
    assert {outcome for counter in counts.values() for outcome in counter} == {outcome}
    assert len(counts) >= 8  # array bytes, metadata of orbax and of ours, the seal
