"""Commands that several processes run together, as far as one process can show it."""

import socket

from mvo_jax.errors import EXIT_PEERS


def test_a_process_that_finds_no_other_says_where_it_looked(refused, tiny, tmp_path):
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    flags = (f"--coordinator_address=localhost:{port}", "--num_processes=2", "--join_seconds=1")
    workdir = f"--workdir={tmp_path / 'run'}"
    cause, remedy = refused("train", *tiny, workdir, *flags, "--process_id=1", code=EXIT_PEERS)
    assert f"process 1 did not reach process 0 at localhost:{port} within 1 s" in cause
    assert "--coordinator_address" in remedy
    cause, _ = refused("eval", workdir, *flags, "--process_id=0", code=EXIT_PEERS)
    assert "of 2 processes, 1 did not come within 1 s" in cause
    assert not (tmp_path / "run").exists()


def test_half_a_cluster_is_refused(refused, tiny, tmp_path):
    cause, remedy = refused("train", *tiny, f"--workdir={tmp_path / 'run'}", "--num_processes=2")
    assert "--coordinator_address and --process_id not known" in cause
    assert "JAX_PROCESS_ID" in remedy


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
