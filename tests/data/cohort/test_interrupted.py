"""A preparation killed half way goes on and ends in the bytes of one that was never interrupted."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mvo_jax.data.cohort.storage import open_cohort
from tests.data.importers import writers

ROOT = Path(__file__).resolve().parents[3]
CASES = 40


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Stacks of two slices with a ring of myocardium, every third with MVO."""
    folder = tmp_path_factory.mktemp("source")
    radius = np.hypot(*(np.mgrid[:64, :64] - 31.5))
    ring = np.where((radius > 12) & (radius < 18), 3, 0).astype(np.uint8)
    for i in range(CASES):
        cine = np.random.default_rng(i).integers(0, 999, (10, 2, 64, 64)).astype(np.int16)
        mask = np.stack([ring, ring])
        if i % 3 == 0:
            mask[1, 31, 45:48] = 2
        writers.write_nifti(folder, f"case{i:02d}", cine, mask)
    return folder


def start(source: Path, out: Path, jobs: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "mvo_jax", "prepare", str(source), "--out", str(out)]
    return subprocess.Popen(
        [*command, "--frames=30", f"--jobs={jobs}"], cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> None:
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 0, printed


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def results(out: Path) -> dict[Path, int]:
    """Finished series, with the time each was written."""
    found = {}
    with contextlib.suppress(FileNotFoundError):  # tidied away at the end, perhaps just now
        for path in (out / ".work" / "series").glob("*/*.json"):
            found[path] = path.stat().st_mtime_ns
    return found


def test_killed_and_repeated(source, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(source, whole, 1))  # the number of processes must not matter either

    process = start(source, killed, 2)
    deadline = time.monotonic() + 60
    while len(results(killed)) < 5:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(0.5)  # the workers notice that nobody listens
    done = results(killed)
    assert 5 <= len(done) < CASES
    assert not (killed / "cohort.json").exists()

    again = start(source, killed, 2)
    # What was finished is not done again, as long as it can be watched.
    while again.poll() is None:
        now = results(killed)
        assert all(now.get(path, when) == when for path, when in done.items())
        time.sleep(0.005)
    finish(again)

    assert content(killed) == content(whole)
    assert not (killed / ".work").exists()
    assert sum(open_cohort(killed).cases.values()) == 2 * CASES
