"""CONTRIBUTING.md: its files and lines are put into a copy of the repository, its commands run."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r'^```python title="([^"]+)"(?: below="([^"]+)")?\n(.*?)^```$', re.M | re.S)
# A network that trains in seconds on the smallest cohort.
SMALL = (
    "--config.data.dir=data",
    "--config.data.size=tiny",
    "--config.train.total_steps=4",
    "--config.train.batch_size=8",
    "--config.train.eval_every=4",
    "--config.train.log_every=2",
)


@dataclasses.dataclass(frozen=True)
class Step:
    """A block of the page: a file of its own, or lines below the line that begins with a word."""

    path: str
    below: str
    text: str


STEPS = [Step(*found) for found in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The repository with what the page adds."""
    folder = tmp_path_factory.mktemp("copy") / "repository"
    folder.mkdir()
    for name in ("mvo_jax", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "eval.py"):
        shutil.copy(ROOT / name, folder / name)
    for step in STEPS:
        path = folder / step.path
        if not step.below:
            assert not path.exists(), f"{step.path} is there already"
            path.write_text(step.text)
            continue
        lines = path.read_text().splitlines(keepends=True)
        (place,) = [i for i, line in enumerate(lines) if re.match(rf"{step.below}\b.*{{$", line)]
        path.write_text("".join([*lines[: place + 1], step.text, *lines[place + 1 :]]))
    return folder


@pytest.fixture(scope="module")
def command(copy):
    def command(*words: str) -> str:
        environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
        result = subprocess.run(
            [sys.executable, *words],
            cwd=copy,
            env=environment | {"PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return command


def test_each_addition_is_one_file_and_one_line():
    files = [step for step in STEPS if not step.below]
    lines = [step for step in STEPS if step.below]
    assert [step.path.split("/")[0] for step in files] == [
        "mvo_jax",
        "configs",
        "mvo_jax",
        "mvo_jax",
    ]
    assert [len(step.text.splitlines()) for step in lines] == [1, 1, 1]


def test_the_network_trains_and_the_metric_is_reported(command, copy):
    command("train.py", "--config", "configs/mean_frame.py", "--workdir", "runs/mean_frame", *SMALL)
    command("eval.py", "--workdir", "runs/mean_frame")
    run = copy / "runs" / "mean_frame"
    assert json.loads((run / "config.json").read_text())["model"]["name"] == "mean_frame"
    metric = json.loads((run / "metrics.json").read_text())["metrics"]["youden_index"]
    metric = metric["value"] if isinstance(metric, dict) else metric
    rows = (run / "predictions_test.csv").read_text().splitlines()
    columns = rows[0].split(",")
    label = np.array([row.split(",")[columns.index("label")] == "1" for row in rows[1:]])
    decision = np.array([row.split(",")[columns.index("decision")] == "1" for row in rows[1:]])
    assert metric == pytest.approx(decision[label].mean() - decision[~label].mean())
    assert "Youden" in (run / "report.html").read_text()


def test_the_importer_reads_its_format(command, copy):
    images = copy / "images"
    images.mkdir()
    draws = np.random.default_rng(0)
    for case in ("one", "two", "three"):
        np.save(images / f"{case}.npy", draws.integers(0, 255, (20, 96, 96), dtype=np.uint8))
    (images / "cut.npy").write_bytes((images / "one.npy").read_bytes()[:200])
    command("-m", "mvo_jax", "prepare", "images", "--out", "cohort")
    index = json.loads((copy / "cohort" / "cohort.json").read_text())
    assert index["cases"] == {"unlabelled": 3}
    rejected = (copy / "cohort" / "rejected.csv").read_text()
    assert [row.split(",")[0] for row in rejected.splitlines()[1:]] == ["cut"]
