"""Standard streams as a machine has them: none of them ends a command."""

import io
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from mvo_jax.cli.streams import check_width, quiet_abandoned_work
from mvo_jax.training.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
# Talks on to both streams, as a run does, and leaves a file when it is through.
TALKS = r"""
import sys, pathlib
from mvo_jax.cli.streams import secure_streams
secure_streams()
for step in range(3000):
    print(f"step {step} \u2013 \u00e9", file=sys.stderr)
    print("a result \u2013")
assert not sys.stdin.read()
pathlib.Path(sys.argv[1]).write_text("through")
"""


def shell(line: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess:
    """A line of sh in which "$@" is ``python ARGUMENTS``."""
    return subprocess.run(
        ["/bin/sh", "-c", line, "sh", sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "line",
    [
        '"$@" 2>&1 | head -3',
        '"$@" | head -1',
        '"$@" >&-',
        '"$@" 2>&-',
        '"$@" <&- >&- 2>&-',
        '"$@" 2>/dev/full >/dev/null',
        'PYTHONIOENCODING=ascii "$@" >/dev/null',
        'LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 "$@" >/dev/null',
    ],
)
def test_what_becomes_of_the_streams_ends_no_command(line, tmp_path):
    ended = shell(line, "-c", TALKS, tmp_path / "end")
    assert (tmp_path / "end").read_text() == "through"
    assert "Traceback" not in ended.stdout + ended.stderr
    assert "Exception" not in ended.stderr


@pytest.mark.parametrize("arguments", [["-m", "mvo_jax", "--help"], ["eval.py", "--help"]])
def test_results_that_a_full_file_did_not_take_are_an_error(arguments):
    ended = shell('"$@" > /dev/full', *arguments)
    assert ended.returncode == 5
    assert ended.stderr.startswith("error: no space left while writing what the command prints\n")


def test_work_that_was_given_up_does_not_complain(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    quiet_abandoned_work()
    for words in ("Event loop is closed", "something else"):
        sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(words)))  # pyright: ignore
    assert [str(about.exc_value) for about in shown] == ["something else"]


@pytest.mark.parametrize("columns", ["0", "-3", "wide", "7", ""])
def test_a_width_that_is_none_is_forgotten(columns):
    environment = {"COLUMNS": columns}
    check_width(environment)
    assert environment in ({}, {"COLUMNS": ""})
    assert shell('"$@"', "eval.py", "--help", COLUMNS=columns).returncode == 0
    environment = {"COLUMNS": "120"}
    check_width(environment)
    assert environment == {"COLUMNS": "120"}


class Gone(io.StringIO):
    def write(self, text: str, /) -> int:
        raise BrokenPipeError(32, "Broken pipe")


class Terminal(Gone):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [None, Gone(), Terminal()], ids=lambda s: type(s).__name__)
def test_progress_ends_no_run_of_a_program_that_imports_the_package(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress(0, 10)
    progress.advance(5, 2.0, 0.7)
    progress.log(2.0, 4, 0.7)
    progress.line("validation")
    progress.close()
