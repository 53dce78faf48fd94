"""Processes that meet, do not meet, and go; in threads and without JAX."""

import concurrent.futures
import json
import queue
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mvo_jax.devices import lifeline
from mvo_jax.devices.lifeline import Lifeline, meet
from mvo_jax.errors import EXIT_PEERS, UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def together(port: int, *processes: tuple[int, int], seconds: float = 20) -> list[Any]:
    """``meet`` of several (count, index) at once: a Lifeline or a UserError of each."""

    def one(count: int, index: int) -> Any:
        try:
            return meet(f"localhost:{port}", count, index, seconds=seconds)
        except UserError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(one, *zip(*processes, strict=True)))


def close(*lines: Any) -> None:
    for line in lines:
        if isinstance(line, Lifeline):
            for peer in line._peers.values():
                peer.close()


def test_all_meet_in_any_order(port):
    lines = together(port, (3, 2), (3, 0), (3, 1))
    assert [sorted(line._peers) for line in lines] == [[0], [1, 2], [0]]
    # The port is free for JAX's coordinator while the connections stand.
    socket.create_server(("localhost", port)).close()
    close(*lines)


def test_those_who_did_not_come_are_named(port):
    first, second = together(port, (4, 0), (4, 2), seconds=1)
    for error in (first, second):
        assert isinstance(error, UserError)
        assert "of 4 processes, 1, 3 did not come within 1 s" in error.cause
        assert error.exit_code == EXIT_PEERS


def test_nobody_listens(port):
    (error,) = together(port, (2, 1), seconds=0.5)
    assert f"did not reach process 0 at localhost:{port} within 0.5 s" in error.cause
    assert error.exit_code == EXIT_PEERS


def test_a_host_without_address():
    with pytest.raises(UserError, match=r"process 0 at no\.such\.host\.invalid:1"):
        meet("no.such.host.invalid:1", 2, 1, seconds=0.5)


def test_a_port_that_is_taken(port):
    with socket.create_server(("", port)), pytest.raises(UserError, match="cannot listen at port"):
        meet(f"localhost:{port}", 2, 0, seconds=1)


def test_processes_that_disagree_on_the_count(port):
    for error in together(port, (2, 0), (3, 1)):
        assert "process 1 believes in 3 processes, process 0 in 2" in error.cause


def test_one_index_twice(port):
    for error in together(port, (3, 0), (3, 1), (3, 1)):
        assert "two processes say that they are process 1" in error.cause


def test_other_programs_at_the_port_are_not_counted(port):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet, f"localhost:{port}", 2, 0, seconds=20)
        for words in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"[1]\n",
            b'{"index": 1}\n',
            b'{"index": "1", "count": 2}\n',
            b"",
        ):
            with connected(port) as stranger:
                stranger.sendall(words)
        second = meet(f"localhost:{port}", 2, 1, seconds=20)
        close(first.result(), second)


def test_a_process_that_starts_again_takes_its_own_place(port):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, f"localhost:{port}", 3, 0, seconds=20)
        with connected(port) as killed:
            killed.sendall(json.dumps({"index": 1, "count": 3}).encode() + b"\n")
            time.sleep(0.2)
        again = pool.submit(meet, f"localhost:{port}", 3, 1, seconds=20)
        third = meet(f"localhost:{port}", 3, 2, seconds=20)
        assert sorted(first.result()._peers) == [1, 2]
        close(first.result(), again.result(), third)


def connected(port: int) -> socket.socket:
    for _ in range(100):
        try:
            return socket.create_connection(("localhost", port))
        except OSError:
            time.sleep(0.05)
    raise AssertionError("nobody listens")


@pytest.fixture
def pair(port):
    first, second = together(port, (2, 0), (2, 1))
    yield first, second
    close(first, second)


def test_a_peer_that_is_gone_ends_this_process(pair):
    first, second = pair
    reasons: queue.Queue[str] = queue.Queue()
    first.watch(reasons.put)
    close(second)
    assert reasons.get(timeout=10) == "process 1 is gone"


def test_a_peer_that_said_goodbye_does_not(pair):
    first, second = pair
    reasons: queue.Queue[str] = queue.Queue()
    first.watch(reasons.put)
    second.leave(failed=False)
    close(second)
    with pytest.raises(queue.Empty):
        reasons.get(timeout=0.5)


def test_a_peer_that_failed_leaves_time_to_end(pair, monkeypatch):
    monkeypatch.setattr(lifeline, "_GRACE_SECONDS", 0.5)
    first, second = pair
    reasons: queue.Queue[str] = queue.Queue()
    first.watch(reasons.put)
    left = time.monotonic()
    second.leave(failed=True)
    assert reasons.get(timeout=10) == "process 1 ended with an error"
    assert time.monotonic() - left >= 0.4


def test_the_process_ends_with_its_own_code_and_two_lines():
    code = "from mvo_jax.devices.lifeline import end_process; end_process('process 1 is gone')"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == EXIT_PEERS == 69
    assert result.stderr.splitlines()[0] == ("error: process 1 is gone; no process can go on alone")
    assert len(result.stderr.splitlines()) == 2
