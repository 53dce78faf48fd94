"""The paper's config in small, as flags, and a tiny cohort made once."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mvo_jax.cli.main import run
from tests.small_run import TINY

ROOT = Path(__file__).resolve().parents[2]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="package")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the cohort `tiny` of 8 frames and 32 pixels: 16 cases to train, 8 and 8."""
    folder = tmp_path_factory.mktemp("data")
    arguments = ["--size=tiny", "--preset=easy", "--frames=8", "--image_size=32"]
    assert run("phantom", [f"--data_dir={folder}", *arguments]) == 0
    return folder


@pytest.fixture(scope="package")
def tiny(data_dir: Path) -> list[str]:
    """Flags of a run that takes seconds."""
    values = TINY | {"data.dir": data_dir, "data.size": "tiny", "data.preset": "easy"}
    return ["--config=mvo", *(f"--config.{key}={value}" for key, value in values.items())]


@pytest.fixture(scope="package")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a fresh process: no simulated devices, and XLA's programs kept between processes."""
    variables = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    return variables | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("xla"))}


@pytest.fixture(scope="package")
def command(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess]:
    """Runs ``python ARGUMENTS`` from the top of the repository."""

    def command(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return command


@pytest.fixture
def refused(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Runs a verb that must end in exit code 2 and two lines; returns (cause, remedy)."""
    monkeypatch.chdir(ROOT)

    def refused(verb: str, *arguments: object, code: int = 2) -> tuple[str, str]:
        capsys.readouterr()
        assert run(verb, [str(a) for a in arguments]) == code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        cause, remedy = captured.err.splitlines()[-2:]
        assert cause.startswith("error: ")
        assert remedy.startswith("  what to do: ")
        assert len(remedy) > len("  what to do: ")
        return cause, remedy

    return refused
