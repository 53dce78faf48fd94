"""A command that is stopped from outside leaves no half-written folder."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mvo_jax.errors import UserError
from mvo_jax.files import new_folder

STOPPED = """
import os, signal, sys, time
from mvo_jax.cli import predict
from mvo_jax.cli.main import main
from mvo_jax.files import new_folder

def half(arguments):
    with new_folder("out") as folder:
        (folder / "picture.png").write_text("of a patient")
        os.kill(os.getpid(), signal.{name})
        time.sleep(20)

predict.main = half
sys.exit(main("predict"))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_nothing_stays(name, code, tmp_path):
    script, work = tmp_path / "stopped.py", tmp_path / "work"
    script.write_text(STOPPED.format(name=name))
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, script], cwd=work, env=environment, timeout=60, check=False
    )
    assert ended.returncode == code
    assert list(work.iterdir()) == []


def test_a_full_disk_keeps_nothing_and_says_so(tmp_path):
    with pytest.raises(UserError) as caught, new_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (caught.value.exit_code, caught.value.remedy.count("nothing of it was kept")) == (5, 1)
    assert list(tmp_path.iterdir()) == []
