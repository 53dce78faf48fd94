"""The run folder: one config, honest metrics, provenance."""

import json

import pytest

from mvo_jax.errors import UserError
from mvo_jax.runs.folder import MetricsWriter, RunFolder, provenance

CONFIG = {"seed": 0, "model": {"width": 8, "stage_sizes": (1, 1)}, "train": {"steps": 5}}


def log(folder: RunFolder, first: int, step: int, loss: float) -> None:
    """A row of a run that goes on after step ``first``."""
    writer = MetricsWriter(folder, first)
    writer.write(step, "train", {"loss": loss})
    writer.close()


def test_a_new_folder_keeps_config_and_provenance(tmp_path):
    folder = RunFolder(tmp_path / "deep" / "run")
    folder.open_for_training(CONFIG)
    assert folder.config() == json.loads(json.dumps(CONFIG))
    folder.open_for_training(CONFIG)
    starts = json.loads((folder.path / "provenance.json").read_text())
    assert len(starts) == 2
    assert {"git_revision", "versions", "devices", "backend", "xla_flags"} <= starts[0].keys()
    assert len(starts[0]["devices"]) == 8


def test_another_config_is_refused_and_every_difference_named(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open_for_training(CONFIG)
    other = {"seed": 0, "model": {"width": 16, "stage_sizes": [1, 1], "depth": 2}, "train": {}}
    with pytest.raises(UserError) as caught:
        folder.open_for_training(other)
    assert "config.model.width 8 -> 16" in caught.value.cause
    assert "config.model.depth 'absent' -> 2" in caught.value.cause
    assert "config.train.steps 5 -> 'absent'" in caught.value.cause
    assert "stage_sizes" not in caught.value.cause  # a tuple comes back as a list
    assert folder.config()["model"]["width"] == 8


def test_damaged_or_missing_files_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        RunFolder(tmp_path).config()
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        RunFolder(tmp_path).open_for_training(CONFIG)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create"):
        RunFolder(tmp_path / "file" / "run").open_for_training(CONFIG)


def test_provenance_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr("mvo_jax.runs.folder.SOURCE", tmp_path)
    assert provenance()["git_revision"] == "not a git checkout"


def test_rows_are_appended_and_not_finite_values_become_null(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.history() == []
    for first in (0, 10):
        writer = MetricsWriter(folder, first)
        writer.write(first + 10, "train", {"loss": 0.5})
        writer.write(first + 10, "validation", {"auc": float("nan"), "brier": float("inf")})
        writer.close()
    assert folder.history() == [
        {"step": 10, "kind": "train", "loss": 0.5},
        {"step": 10, "kind": "validation", "auc": None, "brier": None},
        {"step": 20, "kind": "train", "loss": 0.5},
        {"step": 20, "kind": "validation", "auc": None, "brier": None},
    ]
    # Strict JSON: no NaN or Infinity for other readers to stumble on.
    assert "NaN" not in folder.metrics_path.read_text()
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("tail", ['{"step": 30, "spl', "{", "\x00\x00", '"'])
def test_a_half_written_last_line_is_left_out_and_removed(tmp_path, tail):
    folder = RunFolder(tmp_path)
    rows = [{"step": s, "kind": "train", "loss": 0.1 * s} for s in (10, 20)]
    folder.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    assert folder.history() == rows
    folder.forget_after(20)
    log(folder, 20, 30, 3.0)
    assert folder.history() == [*rows, {"step": 30, "kind": "train", "loss": 3.0}]


def test_a_last_line_that_lacks_only_its_end_is_kept(tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics_path.write_text('{"step": 10, "kind": "train"}')
    folder.forget_after(10)
    log(folder, 10, 20, 1.0)
    assert [row["step"] for row in folder.history()] == [10, 20]


def test_rows_that_a_resumed_run_repeats_are_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    folder.forget_after(0)  # a run that was never logged
    text = "".join(json.dumps({"step": s, "kind": "train"}) + "\n" for s in (10, 20, 30))
    folder.metrics_path.write_text(text)
    folder.forget_after(20)
    assert [row["step"] for row in folder.history()] == [10, 20]
    folder.forget_after(0)
    assert folder.history() == []


def test_rows_of_the_first_revisions_are_read_and_written_anew(tmp_path):
    folder = RunFolder(tmp_path)
    old = [(10, "train"), (10, "validation"), (12, "goodput")]
    text = "".join(json.dumps({"step": s, "split": kind, "loss": 1.0}) + "\n" for s, kind in old)
    folder.metrics_path.write_text(text)
    assert [(row["step"], row["kind"]) for row in folder.history()] == old[:2]
    assert len(folder.starts()) == 1
    folder.forget_after(10, evaluation=True)
    expected = text.replace('"split"', '"kind"').splitlines()
    assert folder.metrics_path.read_text().splitlines() == [expected[0], expected[2]]
