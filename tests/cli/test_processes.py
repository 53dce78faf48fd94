"""Commands that several processes run together, as far as one process can show it."""

import signal
import socket

import pytest

from mvo_jax.errors import EXIT_PEERS, EXIT_USER_ERROR


def test_a_process_that_finds_no_other_has_said_where_it_looked(command, tiny, tmp_path):
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    flags = (f"--coordinator_address={address}", "--num_processes=2", "--join_seconds=1")
    result = command("train.py", *tiny, f"--workdir={tmp_path / 'run'}", *flags, "--process_id=1")
    assert result.returncode == -signal.SIGABRT  # by JAX, after which nothing can be said
    about = f"joining 2 processes (flags or JAX_* variables) as process 1, coordinator {address}"
    assert about in result.stderr
    assert f"with exit code {EXIT_PEERS}, or with 134 (SIGABRT)" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_taken(refused, tmp_path):
    with socket.create_server(("", 0)) as server:
        flags = (f"--coordinator_address=localhost:{server.getsockname()[1]}", "--num_processes=2")
        workdir = f"--workdir={tmp_path}"
        cause, remedy = refused("eval", workdir, *flags, "--process_id=0", code=EXIT_PEERS)
    assert "Address already in use" in cause
    assert "is an earlier start still running" in remedy


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num_processes=2"], "coordinator_address should be defined"),
        (["--coordinator_address=h:1", "--num_processes=2"], "process id of the current process"),
        (["--coordinator_address=h:1", "--num_processes=2", "--process_id=2"], "Got process_id=2"),
    ],
    ids=" ".join,
)
def test_half_a_cluster_is_refused(flags, words, command, tmp_path):
    result = command("eval.py", f"--workdir={tmp_path}", *flags)
    assert result.returncode == EXIT_USER_ERROR
    *_, cause, remedy = result.stderr.splitlines()
    assert words in cause
    assert "--process_id" in remedy


def test_compare_is_no_work_for_several(refused, tmp_path, monkeypatch):
    for name, value in (
        ("COORDINATOR_ADDRESS", "h:1"),
        ("NUM_PROCESSES", "2"),
        ("PROCESS_ID", "0"),
    ):
        monkeypatch.setenv(f"JAX_{name}", value)
    cause, remedy = refused(
        "compare", "--config=configs/baselines.py", f"--out={tmp_path / 'table'}"
    )
    assert "compare runs in one process" in cause
    assert "train.py" in remedy
    assert not (tmp_path / "table").exists()
