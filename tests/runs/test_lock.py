"""The lock of a run folder: what is known of owners that were killed."""

import subprocess
import sys

import pytest

from mvo_jax.errors import EXIT_LOCKED, UserError
from mvo_jax.runs.lock import RunLock

OWNER = """
import os, sys
from pathlib import Path
from mvo_jax.runs.lock import RunLock

lock = RunLock(Path(sys.argv[1]))
lock.record({"last_step": int(sys.argv[2])})
if sys.argv[3] == "killed":
    os._exit(1)
lock.release()
"""


def test_starts_that_were_killed_are_accounted_for_once(tmp_path):
    for step, end in (("3", "killed"), ("5", "released"), ("8", "killed")):
        subprocess.run([sys.executable, "-c", OWNER, tmp_path, step, end], check=False)
    with RunLock(tmp_path) as lock:
        assert [record["last_step"] for record in lock.account()] == [3, 8]
        assert lock.account() == []
    with RunLock(tmp_path) as lock:
        assert lock.account() == []


def test_who_holds_the_lock_is_named_and_not_disturbed(tmp_path):
    with RunLock(tmp_path) as lock:
        lock.record({"last_step": 3})
        before = (tmp_path / "run.owner.json").read_bytes()
        with pytest.raises(UserError, match=r"in use by process \d+ on ") as caught:
            RunLock(tmp_path)
        assert caught.value.exit_code == EXIT_LOCKED
        assert (tmp_path / "run.owner.json").read_bytes() == before
