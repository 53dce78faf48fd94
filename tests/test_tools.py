"""The tools that damage runs, in short; docs/runs.md has their long forms."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mvo_jax.config_files import load_config
from mvo_jax.data.phantom.case import oracle_features, plan_case
from mvo_jax.data.splits import phantom_spec
from mvo_jax.errors import UserError
from mvo_jax.runs.goodput import Clock
from tools import bitrot, motion_ceiling, mutate_images, tiny_run

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow(reason="trains in eleven processes")
def test_ten_kills_change_nothing(tmp_path):
    # A process of its own: it forks, which a process with JAX threads cannot.
    command = [sys.executable, "-m", "tools.chaos", "--kills=10", f"--out={tmp_path}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    totals = json.loads((tmp_path / "totals.json").read_text())
    assert totals["kills"] == 10
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


def test_spoilt_images_are_refused_or_seen():
    """Each change once or twice of a few; the long form has thousands."""
    found = list(mutate_images.run(90, seed=4))
    assert [(number, m.name, wrong) for number, m, wrong in found if wrong] == []
    assert {mutation.form for _, mutation, _ in found} == set(mutate_images.SOURCES)


def test_a_reader_that_lets_damage_through_is_a_violation():
    """The judge, on outcomes that must not be."""
    by_group = {mutation.group: mutation for mutation in mutate_images.MUTATIONS}
    row = {"sha256": "1", "label": 1, "step_row": 1.0}
    sound = mutate_images.Outcome({"a": row}, [])
    other = mutate_images.Outcome({"a": row | {"sha256": "2"}}, [])
    refused = mutate_images.Outcome({}, [UserError("cause", "remedy")])
    for group, outcome in (
        ("must refuse", sound),
        ("must refuse", other),
        ("must not matter", other),
        ("must not matter", refused),
    ):
        assert mutate_images.judge(by_group[group], sound, outcome)
    spacing = next(m for m in mutate_images.MUTATIONS if "step_row" in m.columns)
    assert mutate_images.judge(spacing, sound, other)
    for mutation, outcome in ((by_group["must refuse"], refused), (spacing, refused)):
        assert mutate_images.judge(mutation, sound, outcome) is None


def test_what_the_motion_shows_is_what_the_simulator_knows():
    config = load_config("mvo:quick")
    shown, label = motion_ceiling.measure(config.data, "test", 12)
    plans = [plan_case(key) for key in phantom_spec(config.data).keys("test")[:12]]
    assert label.tolist() == [plan.key.mvo for plan in plans]
    assert 0 < label.sum() < 12
    mask = np.zeros((64, 64), np.uint8)
    known = [oracle_features(plan, mask) for plan in plans]
    decimals = 1e-6  # of stored features
    for name, feature in (("area_change", "fractional_area_change"), ("strain", "strain")):
        assert shown[name] == pytest.approx([one[feature] for one in known], abs=decimals)
    # All of it shallow or deep: the angle that an infarct takes is no less than its share.
    assert all(shown["extent"] >= [one["infarct_size"] for one in known])
    assert all(shown["extent"] <= 1)
