"""`compare`: several systems trained, evaluated and tabulated; repeated, broken, refused."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from mvo_jax import one_run
from mvo_jax.cli.main import run
from mvo_jax.errors import EXIT_FINDINGS, UserError
from mvo_jax.evaluation.predictions import read_predictions
from mvo_jax.evaluation.statistics import paired_delong_test
from mvo_jax.evaluation.table import METRICS, Metric

ROOT = Path(__file__).resolve().parents[2]

# The form of configs/baselines.py, as a user writes it, with the network of the tools.
ROWS_FILE = """
from tools.tiny_run import tiny_config

ROWS = ("plain", "fine", "longer")
REFERENCE = "plain"
PAPER = {"fine": {"auc": 65.45}}


def get_config(argument=""):
    name, _, size = argument.partition("-")
    changes = {"data.dir": %(data)r, "data.preset": "easy", "data.size": "tiny"}
    if size:
        changes["train.batch_size"] = 2 if name == "fine" else 4
    changes["train.total_steps"] = 6 if name == "longer" else 4  # rows may differ in that
    changes["model.mask_size"] = 8 if name == "fine" else 4
    return tiny_config(**changes, **{"train.log_every": 2, "train.eval_every": 2})
"""


@pytest.fixture(scope="module")
def rows_file(data_dir, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "rows.py"
    path.write_text(ROWS_FILE % {"data": str(data_dir)})
    return path


@pytest.fixture(scope="module")
def compared(rows_file, tmp_path_factory) -> Path:
    """Folder of a comparison of all rows with two seeds."""
    out = tmp_path_factory.mktemp("comparison") / "table"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert run("compare", [f"--config={rows_file}", f"--out={out}", "--seeds=0,1"]) == 0
    return out


@pytest.fixture
def copied(compared, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(ROOT)
    return Path(shutil.copytree(compared, tmp_path / "table"))


def table_rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "table.csv").open(encoding="utf-8", newline="") as file:
        return {row["system"]: row for row in csv.DictReader(file)}


def test_every_row_is_in_the_table(compared):
    rows = table_rows(compared)
    assert list(rows) == ["plain", "fine", "longer", "fractional area change alone"]
    for name in ("plain", "fine", "longer"):
        row = rows[name]
        assert row["runs"] == "2"
        assert row["failure"] == ""
        assert 0 <= float(row["auc"]) <= 1
        assert len(row["auc_by_seed"].split()) == 2
        assert int(row["parameters"]) > 0
        assert float(row["seconds_per_step"]) > 0
    assert rows["fine"]["paper_auc"] == "65.45"
    assert int(rows["fine"]["parameters"]) > int(rows["plain"]["parameters"])
    assert rows["plain"]["p"] == ""  # the row that the others are tested against
    page = (compared / "table.html").read_text()
    text = (compared / "table.md").read_text()
    for name in rows:
        assert name in page
        assert f"| {name} |" in text
    assert "4 steps: plain, fine; 6 steps: longer, of 4 clips" in page


def test_tests_are_of_the_written_predictions(compared):
    def mean(name: str):
        runs = [
            read_predictions(
                compared / f"{name}-seed{seed}" / "predictions_test.csv", split="test"
            )[0]
            for seed in (0, 1)
        ]
        return runs[0].label, (runs[0].probability + runs[1].probability) / 2

    label, reference = mean("plain")
    for name in ("fine", "longer"):
        expected = paired_delong_test(label, reference, mean(name)[1])
        row = table_rows(compared)[name]
        assert float(row["reference_minus_system"]) == pytest.approx(expected.value)
        assert float(row["p"]) == pytest.approx(expected.p)
        assert float(row["p_holm"]) >= float(row["p"])


def test_repeated_it_trains_nothing_and_says_the_same(copied, rows_file, monkeypatch):
    def refuse(config, workdir, **options):
        raise AssertionError(f"trained again: {workdir}")

    monkeypatch.setattr(one_run, "train_and_evaluate", refuse)
    # A comparison begun before a key existed goes on: the key is what it was without it.
    marker = json.loads((copied / "comparison.json").read_text())
    del marker["data"]["folds"]
    (copied / "comparison.json").write_text(json.dumps(marker))
    before = (copied / "table.csv").read_bytes()
    assert run("compare", [f"--config={rows_file}", f"--out={copied}", "--seeds=0,1"]) == 0
    assert (copied / "table.csv").read_bytes() == before


def test_a_metric_added_to_the_table_is_a_column(copied, rows_file, monkeypatch):
    def called(label, probability, threshold):
        return float((probability >= threshold).mean())

    monkeypatch.setitem(METRICS, "called", Metric("Called MVO", called))
    words = [f"--config={rows_file}", f"--out={copied}", "--seeds=0,1", "--systems=plain"]
    assert run("compare", words) == 0
    runs = [
        read_predictions(copied / f"plain-seed{seed}" / "predictions_test.csv", split="test")
        for seed in (0, 1)
    ]
    shares = [called(None, predictions.probability, threshold) for predictions, threshold in runs]
    assert float(table_rows(copied)["plain"]["called"]) == sum(shares) / 2
    assert "| called MVO |" in (copied / "table.md").read_text()
    assert ">Called MVO</th>" in (copied / "table.html").read_text()


def test_a_row_cut_off_before_its_report_is_evaluated_again(copied, rows_file):
    folder = copied / "longer-seed0"
    (folder / "report.html").unlink()
    (folder / "predictions_test.csv").unlink()
    before = (copied / "table.csv").read_bytes()
    assert run("compare", [f"--config={rows_file}", f"--out={copied}", "--seeds=0,1"]) == 0
    assert (folder / "report.html").exists()
    assert (copied / "table.csv").read_bytes() == before


@pytest.mark.slow(reason="trains two systems")
def test_a_failing_system_stops_no_other(rows_file, data_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    train = one_run.train_and_evaluate

    def fail_one(config, workdir, **options):
        if "fine" in str(workdir):
            raise UserError("it cannot be trained", "correct it")
        return train(config, workdir, **options)

    monkeypatch.setattr(one_run, "train_and_evaluate", fail_one)
    out = tmp_path / "out"
    words = [f"--config={rows_file}", f"--out={out}", "--systems=plain,fine"]
    assert run("compare", words) == EXIT_FINDINGS
    assert "1 of 2 systems failed: fine" in capsys.readouterr().err
    rows = table_rows(out)
    assert rows["fine"]["failure"] == "seed 0: it cannot be trained"
    assert rows["fine"]["auc"] == ""
    assert 0 <= float(rows["plain"]["auc"]) <= 1
    monkeypatch.setattr(one_run, "train_and_evaluate", train)
    assert run("compare", words) == 0  # tried again, the finished row kept
    assert table_rows(out)["fine"]["failure"] == ""


def test_rows_may_differ_in_the_system_only(refused, rows_file, tmp_path):
    cause, _ = refused("compare", f"--config={rows_file}", f"--out={tmp_path / 'o'}", "--quick")
    assert "config.train of 'fine' differs" in cause
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--systems=plain,vivid"], "no system 'vivid'"),
        (["--seeds=one"], "--seeds is 'one'"),
        (["--seeds=-1"], "--seeds is '-1'"),
        (["--config.data.size=huge"], "huge"),
        (["--config.data.preset=harder"], "harder"),
        (["--split=tomorrow"], "tomorrow"),
        (["--config.model.width=0"], "width"),
    ],
)
def test_refused_before_anything_is_written(refused, rows_file, tmp_path, flags, words):
    out = tmp_path / "out"
    cause, remedy = refused("compare", f"--config={rows_file}", f"--out={out}", *flags)
    assert words in cause + remedy
    assert not out.exists()


def test_folders_that_hold_something_else(refused, copied, rows_file, tmp_path):
    cause, _ = refused(
        "compare", f"--config={rows_file}", f"--out={copied}", "--config.data.seed=5"
    )
    assert "holds another comparison" in cause
    assert json.loads((copied / "comparison.json").read_text())["data"]["seed"] == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    cause, _ = refused("compare", f"--config={rows_file}", f"--out={other}")
    assert "not the folder of a comparison" in cause


def test_a_config_without_rows(refused, tmp_path):
    cause, remedy = refused("compare", "--config=configs/mvo.py", f"--out={tmp_path / 'o'}")
    assert "no rows to compare" in cause
    assert "configs/baselines.py" in remedy
