"""Asking malloc for huge pages: where it helps, once, and only there."""

import json
import os
import subprocess
import sys

import pytest

from mvo_jax.cli import huge_pages
from mvo_jax.cli.huge_pages import OPT_OUT, TUNABLE, ask_for_huge_pages

HELPS = {"libc": ("glibc", "2.36"), "setting": "always [madvise] never"}


@pytest.mark.parametrize(
    ("machine", "before", "after"),
    [
        ({}, {}, f"{TUNABLE}=1"),
        ({}, {"GLIBC_TUNABLES": "glibc.x=0"}, f"glibc.x=0:{TUNABLE}=1"),
        # The user decides otherwise.
        ({}, {OPT_OUT: "1"}, None),
        ({}, {"GLIBC_TUNABLES": f"{TUNABLE}=0"}, None),
        # It does not help here.
        ({"libc": ("", "")}, {}, None),
        ({"libc": ("glibc", "2.34")}, {}, None),
        ({"libc": ("glibc", "unknown")}, {}, None),
        ({"setting": "[always] madvise never"}, {}, None),
        ({"setting": "always madvise [never]"}, {}, None),
        ({"setting": None}, {}, None),
    ],
    ids=str,
)
def test_the_tunable_is_set_once_and_where_it_helps(monkeypatch, tmp_path, machine, before, after):
    machine = HELPS | machine
    monkeypatch.setattr("platform.libc_ver", lambda: machine["libc"])
    monkeypatch.setattr(huge_pages, "SETTING", tmp_path / "enabled")
    if machine["setting"]:
        (tmp_path / "enabled").write_text(machine["setting"])
    environment = dict(before)
    assert ask_for_huge_pages(environment) == (after is not None)
    assert environment == ({"GLIBC_TUNABLES": after} if after else before)
    assert not ask_for_huge_pages(environment)


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
    setting.write_text(HELPS["setting"])
    environment = {k: v for k, v in os.environ.items() if k not in (OPT_OUT, "GLIBC_TUNABLES")}
    arguments = ["--config", "a file.py:quick"]
    process = subprocess.Popen(
        [sys.executable, "-B", str(script), str(setting), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"PYTHONPATH": os.getcwd()},
    )
    printed = json.loads(process.communicate(timeout=60)[0])
    assert printed == [process.pid, arguments, 1, f"{TUNABLE}=1"]
