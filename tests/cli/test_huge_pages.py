"""Asking malloc for huge pages: where it helps, once, and only there."""

import json
import os
import subprocess
import sys

import pytest

from mvo_jax.cli import huge_pages
from mvo_jax.cli.huge_pages import OPT_OUT, TUNABLE, ask_for_huge_pages


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine on which it helps; ``machine(libc, setting)`` makes another one."""

    def make(libc=("glibc", "2.36"), setting="always [madvise] never"):
        monkeypatch.setattr("platform.libc_ver", lambda: libc)
        file = tmp_path / "enabled"
        file.write_text(setting)
        monkeypatch.setattr(huge_pages, "SETTING", file)

    make()
    return make


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, f"{TUNABLE}=1"),
        ({"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}, f"glibc.pthread.rseq=0:{TUNABLE}=1"),
    ],
    ids=str,
)
def test_the_tunable_is_set_once(machine, before, after):
    assert ask_for_huge_pages(before)
    assert before == {"GLIBC_TUNABLES": after}
    assert not ask_for_huge_pages(before)


@pytest.mark.parametrize(
    "environment", [{OPT_OUT: "1"}, {"GLIBC_TUNABLES": f"{TUNABLE}=0"}], ids=str
)
def test_a_user_can_decide_otherwise(machine, environment):
    before = dict(environment)
    assert not ask_for_huge_pages(environment)
    assert environment == before


@pytest.mark.parametrize(
    "other",
    [
        {"libc": ("", "")},
        {"libc": ("glibc", "2.34")},
        {"libc": ("glibc", "unknown")},
        {"setting": "[always] madvise never"},
        {"setting": "always madvise [never]"},
    ],
    ids=str,
)
def test_nothing_is_set_where_it_does_not_help(machine, other):
    machine(**other)
    environment = {}
    assert not ask_for_huge_pages(environment)
    assert environment == {}


def test_without_the_system_setting_nothing_is_set(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(huge_pages, "SETTING", tmp_path / "none")
    assert not ask_for_huge_pages({})


SCRIPT = """
import json, os, sys
from pathlib import Path
from mvo_jax.cli import huge_pages
huge_pages.platform.libc_ver = lambda: ("glibc", "2.36")
huge_pages.SETTING = Path(sys.argv[1])
huge_pages.restart_with_huge_pages()
print(json.dumps([os.getpid(), sys.argv[2:], sys.flags.dont_write_bytecode,
                  os.environ["GLIBC_TUNABLES"]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="os.execve keeps the process number on Linux")
def test_the_command_starts_again_as_it_was(tmp_path):
    script, setting = tmp_path / "script.py", tmp_path / "enabled"
    script.write_text(SCRIPT)
    setting.write_text("always [madvise] never")
    environment = {k: v for k, v in os.environ.items() if k not in (OPT_OUT, "GLIBC_TUNABLES")}
    process = subprocess.Popen(
        [sys.executable, "-B", str(script), str(setting), "--config", "a file.py:quick"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"PYTHONPATH": os.getcwd()},
    )
    printed = json.loads(process.communicate(timeout=60)[0])
    arguments = ["--config", "a file.py:quick"]
    assert printed == [process.pid, arguments, 1, f"{TUNABLE}=1"]
