"""The side-by-side benchmarks: arguments, order of the rounds, and whole runs in tiny shapes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import inference, interleaved, train_step
from mvo_jax.errors import EXIT_USER_ERROR
from mvo_jax.models.ops.lowerings import LOWERINGS

ROOT = Path(__file__).resolve().parents[2]
# The network that compiles fastest, at the least size it takes.
TINY = ["--system=c3d", "--frames=16", "--size=16", "--width=2", "--batch=2", "--rounds=2"]


class Recorded:
    """A contender in the same process that notes when it is asked."""

    def __init__(self, name: str, asked: list[str], others: list[float]):
        self.name, self.asked, self.others = name, asked, iter(others)

    def run(self) -> dict[str, Any]:
        self.asked.append(self.name)
        return {"others": next(self.others), "round": len(self.asked)}


def rounds_of(others: list[float], rounds: int, quiet: float) -> tuple[list[str], list[int]]:
    asked: list[str] = []
    workers: list[Any] = [Recorded("a", asked, others), Recorded("b", asked, [0.0] * 9)]
    taken = interleaved.take_rounds(workers, rounds, quiet, patience_s=0)
    return asked, [answers[0]["round"] for answers in taken]


def test_every_other_round_is_in_reverse():
    assert rounds_of([0.0] * 3, 3, quiet=1.0)[0] == ["a", "b", "b", "a", "a", "b"]


def test_without_patience_there_are_no_more_rounds_than_asked_for():
    assert rounds_of([0.9, 0.9], 2, quiet=1.0)[1] == [1, 4]


def test_summary_of_one_and_of_several():
    assert interleaved.summarise([2.0])["quartile3_s"] == 2.0
    five = interleaved.summarise([5.0, 1.0, 2.0, 4.0, 3.0])
    expected = {"median_s": 3, "quartile1_s": 2, "quartile3_s": 4, "min_s": 1, "max_s": 5}
    assert five == expected


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--batch=4,0"], "above 0"),
        (["--batch=four"], "'four'"),
        (["--dtype=float16"], "float32,bfloat16"),
        (["--impl=tensorflow"], "jax,torch"),
        (["--lowering=conv4d"], "conv2d"),
        (["--impl=jax", "--chunk=1,3", "--steps=4"], "--steps 3"),
    ],
)
def test_wrong_arguments_end_with_one_line_of_cause(arguments, named, capsys):
    with pytest.raises(SystemExit) as ended:
        train_step.main(arguments)
    assert ended.value.code == EXIT_USER_ERROR
    assert named in capsys.readouterr().err


def test_torch_where_it_is_not_installed(monkeypatch, capsys):
    monkeypatch.setattr(interleaved.importlib.util, "find_spec", lambda name: None)
    assert interleaved.argument_parser("", {"mvo_net": ""}).parse_args([]).impl == ["jax"]
    with pytest.raises(SystemExit) as ended:
        inference.main(["--impl=jax,torch"])
    assert ended.value.code == EXIT_USER_ERROR
    assert "pip install torch, or --impl jax" in capsys.readouterr().err


def test_work_of_a_clip():
    config = {**interleaved.FULL_SIZE, "system": "mvo_net"}
    # Three passes over the 50.19 of the classifier and 0.08 of the mask branch.
    assert train_step.training_gflop(config) == pytest.approx(150.8, abs=0.05)
    assert inference.inference_gflop({**config, "part": "classify"}) == pytest.approx(50, abs=0.2)


def run_script(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    output = tmp_path / "out.json"
    result = subprocess.run(
        [sys.executable, "-m", "mvo_jax", "bench", *arguments, f"--json={output}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    content = json.loads(output.read_text())
    for row in content["rows"]:
        assert row["name"] in result.stdout
    return content


@pytest.mark.slow(reason="runs a benchmark")
def test_training_beside_torch(tmp_path):
    rows = run_script(tmp_path, "train", *TINY, "--steps=2", "--chunk=2")["rows"]
    assert [row["name"] for row in rows] == ["jax:auto:x2", "torch:eager"]
    for row in rows:
        assert len(row["ratios"]) == 2
        assert row["median_s"] > 0
    assert rows[1]["ratios"] == [1, 1]
    assert rows[0]["about"]["lowering"] in LOWERINGS


@pytest.mark.slow(reason="runs a benchmark")
def test_inference_beside_torch(tmp_path):
    rows = run_script(tmp_path, "inference", *TINY, "--part=classify", "--onnx")["rows"]
    assert [row["impl"] for row in rows] == ["jax", "torch", "onnx"]
    for row in rows:
        assert 0 < row["final_result"] < 1  # a mean probability
    # The graph is that of the torch contender, in float32.
    assert rows[2]["final_result"] == pytest.approx(rows[1]["final_result"], abs=1e-6)
