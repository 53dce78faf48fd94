"""`study`: rows x seeds as small files, tables from these alone, shared by processes, repeated."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest

from mvo_jax import one_run
from mvo_jax.cli.main import run
from mvo_jax.errors import EXIT_COMPARISON, EXIT_FINDINGS
from mvo_jax.evaluation.stored_run import Scores, read_stored_run

ROOT = Path(__file__).resolve().parents[2]

# The form of configs/studies/*.py, with the network of the tools.
STUDY_FILE = """
from tools.tiny_run import tiny_config

TITLE = "Small"
QUESTION = "Does it work?"
SPLIT = "test"
SEEDS = (0, 1)
FEATURES = {"area change": ("fractional_area_change",)}
SHUFFLED = ("shuffled",)
ROWS = {
    "area change": {},
    "full": {},
    "shuffled": {"data.misregistration_mm": 8.0},
}
REFERENCES = {"full": ("area change",), "shuffled": ("full",)}
PAPER = {"full": {"auc": 72.7}}
NOTES = ("A note & a half.",)


def get_config(argument=""):
    if argument not in ROWS:
        raise ValueError("choose from " + ", ".join(ROWS))
    data = {"data.dir": %(data)r, "data.preset": "easy", "data.size": "tiny"}
    steps = {"train.total_steps": 2, "train.log_every": 1, "train.eval_every": 1}
    return tiny_config(**(data | steps | ROWS[argument]))
"""


@pytest.fixture(scope="module")
def study_file(data_dir, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("studies") / "small.py"
    path.write_text(STUDY_FILE % {"data": str(data_dir)})
    return path


@pytest.fixture(scope="module")
def studied(study_file, tmp_path_factory) -> Path:
    """Folder of the whole study."""
    out = tmp_path_factory.mktemp("study") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert run("study", [f"--config={study_file}", f"--out={out}"]) == 0
    return out


@pytest.fixture
def copied(studied, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(ROOT)
    return Path(shutil.copytree(studied, tmp_path / "small"))


@pytest.fixture
def no_training(monkeypatch):
    def refuse(config, workdir, **options):
        raise AssertionError(f"trained: {workdir}")

    monkeypatch.setattr(one_run, "train_and_evaluate", refuse)


def test_each_run_is_one_small_file_and_its_folder_is_gone(studied):
    names = {path.name for path in studied.glob("*-seed*")}
    rows = ("full", "shuffled")
    expected = {f"{row}-seed{seed}.json" for row in rows for seed in (0, 1)}
    assert names == expected | {"area_change-seed0.json"}
    assert max((studied / name).stat().st_size for name in names) < 20_000
    stored = read_stored_run(studied / "full-seed1.json")
    assert (stored.name, stored.seed, stored.split) == ("full", 1, "test")
    assert stored.config["seed"] == 1
    assert len(stored.scored.label) == len(stored.validation.label) == 8
    assert [step for step, _ in stored.curve] == [1, 2]
    assert stored.best_step in (1, 2)
    assert stored.parameters is not None
    assert stored.seconds is not None
    assert stored.localisation is not None
    assert stored.localisation["mean_training_map"] is not None
    assert set(stored.provenance) >= {"git_revision", "versions", "platform"}
    assert "command" not in stored.provenance


def test_tables_are_made_of_the_files_alone(copied, study_file, no_training):
    tables = ("table.csv", "tests.csv", "table.md", "table.html", "table.json")
    before = {name: (copied / name).read_bytes() for name in tables}
    for name in tables:
        (copied / name).unlink()
    assert run("study", ["--tables", f"--out={copied}"]) == 0
    assert {name: (copied / name).read_bytes() for name in tables} == before
    table = json.loads(before["table.json"])
    assert [row["name"] for row in table["rows"]] == ["area change", "full", "shuffled"]
    assert [len(row["seeds"]) for row in table["rows"]] == [1, 2, 2]
    assert [(test["row"], test["reference"]) for test in table["tests"]] == [
        ("full", "area change"),
        ("shuffled", "full"),
    ]
    page = before["table.html"].decode()
    assert "A note &amp; a half." in page
    assert "<svg" in page
    assert "Does it work?" in page


def test_repeated_it_does_nothing_and_a_lost_file_is_done_again(copied, study_file, monkeypatch):
    words = [f"--config={study_file}", f"--out={copied}"]
    lost = copied / "full-seed0.json"
    before = read_stored_run(lost)
    lost.unlink()
    done, train = [], one_run.train_and_evaluate

    def note(config, workdir, **options):
        done.append(Path(workdir).name)
        return train(config, workdir, **options)

    monkeypatch.setattr(one_run, "train_and_evaluate", note)
    assert run("study", words) == 0
    assert done == ["full-seed0"]
    again = read_stored_run(lost)
    np.testing.assert_array_equal(again.scored.probability, before.scored.probability)
    assert run("study", words) == 0
    assert done == ["full-seed0"]


def test_a_run_that_another_process_is_at_is_left_to_it(copied, study_file, capsys, no_training):
    (copied / "full-seed0.json").unlink()
    with filelock.FileLock(copied / "locks" / "full-seed0.lock"):
        words = [f"--config={study_file}", f"--out={copied}"]
        assert run("study", words) == EXIT_FINDINGS
    error = capsys.readouterr().err
    assert "another process is at full, seed 0" in error
    assert "1 of 5 runs are not done: full-seed0" in error
    assert "Planned were 2 seeds a row; so far: full 1." in (copied / "table.md").read_text()


@pytest.mark.slow(reason="trains in three processes")
def test_several_processes_do_each_run_once(study_file, tmp_path, environment):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mvo_jax", "study", f"--config={study_file}", f"--out={out}"]
    words = ["--rows=full", "--seeds=0,1", "--jobs=2", "--keep_runs"]
    result = subprocess.run(
        [*command, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for seed in (0, 1):
        assert read_stored_run(out / f"full-seed{seed}.json").seed == seed
        starts = json.loads((out / f"full-seed{seed}" / "provenance.json").read_text())
        assert len(starts) == 1


@pytest.mark.slow(reason="trains the study's runs again")
def test_verify_trains_again_and_finds_a_changed_run(copied, study_file, capsys):
    for path in copied.glob("*-seed*.json"):
        if path.name != "full-seed0.json":
            path.unlink()
    words = [f"--config={study_file}", f"--out={copied}", "--verify=3"]
    assert run("study", words) == 0
    assert "full-seed0: largest difference 0 of 0" in capsys.readouterr().out
    assert not any((copied / "verify").iterdir())
    path = copied / "full-seed0.json"
    content = json.loads(path.read_text())
    scores = Scores.unpacked(content["scored"])
    other = Scores(scores.label, scores.probability + np.float32(1e-3), scores.cases)
    path.write_text(json.dumps({**content, "scored": other.packed()}))
    assert run("study", words) == EXIT_COMPARISON
    assert "1 of 1 runs came out otherwise: full-seed0" in capsys.readouterr().err


def test_shuffled_labels_are_those_of_training_only(studied):
    full, shuffled = (read_stored_run(studied / f"{n}-seed0.json") for n in ("full", "shuffled"))
    assert shuffled.scored.cases == full.scored.cases
    assert shuffled.validation.cases != full.validation.cases
    assert shuffled.validation.label.sum() == full.validation.label.sum()


def test_a_changed_config_is_refused(copied, study_file, capsys):
    words = [f"--config={study_file}", f"--out={copied}", "--config.optimizer.learning_rate=0.5"]
    assert run("study", words) == EXIT_FINDINGS
    error = capsys.readouterr().err
    assert "holds a run of another config" in error
    assert "config.optimizer.learning_rate" in error


def test_a_damaged_file_is_named(copied, capsys):
    path = copied / "full-seed0.json"
    content = json.loads(path.read_text())
    content["scored"]["count"] = 9
    path.write_text(json.dumps(content))
    assert run("study", ["--tables", f"--out={copied}"]) == 2
    error = capsys.readouterr().err
    assert "full-seed0.json is not the file of a run" in error
    assert "delete it" in error


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('"data.seed": 1', r"'shuffled' is tested against 'full', and data.seed differs (1, 0)"),
        ('"data.preset": "null"', "and data.preset differs ('null', 'easy')"),
        ('"data.size": "small"', "and data.size differs ('small', 'tiny')"),
    ],
)
def test_rows_tested_against_each_other_share_their_cases(
    study_file, tmp_path, refused, change, words
):
    path, out = tmp_path / "other.py", tmp_path / "out"
    path.write_text(study_file.read_text().replace('"data.misregistration_mm": 8.0', change))
    cause, _ = refused("study", f"--config={path}", f"--out={out}")
    assert words in cause
    assert "scored on different cases" in cause
    assert not out.exists()


def test_a_damaged_run_fails_its_row_and_stops_no_other(copied, study_file, capsys, no_training):
    (copied / "full-seed0.json").write_text("{")
    words = [f"--config={study_file}", f"--out={copied}"]
    assert run("study", words) == 2
    error = capsys.readouterr().err
    assert "full-seed0.json is not the file of a run" in error
    assert error.rstrip().splitlines()[-1].startswith("  what to do: delete it")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--config is missing"),
        (["--config=configs/mvo.py"], "is not a study"),
        (["--tables"], "not the folder of a study"),
        (["--config=configs/studies/null.py", "--rows=nul"], "no system 'nul'"),
    ],
)
def test_refused_before_anything_is_written(refused, tmp_path, flags, words):
    out = tmp_path / "out"
    cause, _ = refused("study", f"--out={out}", *flags)
    assert words in cause
    assert not out.exists()


def test_a_row_that_another_study_has_is_taken_from_it(copied, study_file, capsys, no_training):
    """Its runs are those of that row; a run of another config, or of another split, is not."""
    path, out = study_file.parent / "second.py", copied.parent / "second"
    rows = '\nROWS = {"a, b": {}}\nREFERENCES = {}\nSAME_AS = {"a, b": ("small", "full")}\n'
    path.write_text(study_file.read_text() + rows)
    command = [f"--config={path}", '--rows="a, b"']
    assert run("study", [*command, f"--out={out}"]) == 0
    theirs, ours = (
        read_stored_run(path) for path in (copied / "full-seed1.json", out / "a,_b-seed1.json")
    )
    assert ours.name == "a, b"
    np.testing.assert_array_equal(ours.scored.probability, theirs.scored.probability)
    assert ours.provenance == theirs.provenance
    command += [f"--out={copied.parent / 'third'}", "--config.train.total_steps=3"]
    with pytest.raises(AssertionError, match="trained"):
        run("study", command)
    said = capsys.readouterr().err
    assert "is another experiment than 'a, b' (config.train.total_steps 2 -> 3" in said
