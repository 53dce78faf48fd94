"""The processes of a run meet before JAX starts, and notice at once when one of them is gone.

JAX ends a process from C++ where its coordinator is missing, a number is wrong or a peer has died;
nothing can be said then, and a dead peer is found by its missing heartbeats only. So process 0
takes one TCP connection from each other process first, at the address that JAX's coordinator uses
afterwards. The kernel closes it when a process ends, however it ends.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from mvo_jax.errors import EXIT_PEERS, UserError

_GRACE_SECONDS = 10.0  # for a process to end by itself after another has said goodbye
_BYE = b"bye\n"
_FAILED = b"failed\n"


class Lifeline:
    """One connection to process 0, or in process 0 one to each other process.

    Args:
        index: of this process.
        peers: sockets by the process at their other end.
    """

    def __init__(self, index: int, peers: Mapping[int, socket.socket]):
        self._index, self._peers = index, dict(peers)
        self._gone = threading.Event()
        self._leaving = False

    def watch(self, end: Callable[[str], None] | None = None) -> None:
        """Start a thread that calls ``end(why)`` once a peer is gone and this process is not done.

        Args:
            end: by default prints the reason and ends the process with ``EXIT_PEERS``.
        """
        thread = threading.Thread(
            target=self._watch, args=(end or end_process,), name="lifeline", daemon=True
        )
        thread.start()

    def leave(self, *, failed: bool) -> None:
        """Say goodbye. Process 0 waits for the others a while: with it JAX's coordinator goes.

        Args:
            failed: the others cannot go on, and have ``_GRACE_SECONDS`` to end by themselves.
        """
        self._leaving = True
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(_FAILED if failed else _BYE)
        if failed and self._index == 0:
            self._gone.wait(_GRACE_SECONDS)

    def _watch(self, end: Callable[[str], None]) -> None:
        said: dict[int, bytes] = dict.fromkeys(self._peers, b"")
        selector = selectors.DefaultSelector()
        for index, peer in self._peers.items():
            peer.setblocking(False)
            selector.register(peer, selectors.EVENT_READ, index)
        deadline, why = None, ""
        while selector.get_map():
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            ready = selector.select(left)
            if not ready and deadline is not None:
                return None if self._leaving else end(why)
            for key, _ in ready:
                index, peer = key.data, self._peers[key.data]
                try:
                    words = peer.recv(64)
                except OSError:
                    words = b""
                said[index] += words
                if _FAILED in said[index] and deadline is None:
                    deadline = time.monotonic() + _GRACE_SECONDS
                    why = f"process {index} ended with an error"
                if not words:
                    selector.unregister(peer)
                    peer.close()
                    if not said[index] and not self._leaving:
                        return end(f"process {index} is gone")
        self._gone.set()
        return None


def end_process(why: str) -> None:
    """Say why and end this process at once, wherever it waits: nothing in flight will come back."""
    print(
        f"error: {why}; no process can go on alone\n"
        "  what to do: see its own last lines; the same command in all processes goes on from the "
        "last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_PEERS)


def meet(address: str, count: int, index: int, *, seconds: float) -> Lifeline:
    """Wait for all processes of a run.

    Args:
        address: HOST:PORT; process 0 listens at the port, the others connect to both.
        count: processes.
        index: of this process.
        seconds: how long to wait.

    Raises:
        UserError: not all came in time, the port is taken, the host has no address, or two
            processes disagree on the count or claim one index. The exit code is ``EXIT_PEERS``
            where a repetition may succeed.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    if index == 0:
        return Lifeline(0, _receive(int(port), count, deadline, seconds))
    return Lifeline(index, {0: _call(host.strip("[]"), int(port), count, index, deadline, seconds)})


def _receive(port: int, count: int, deadline: float, seconds: float) -> dict[int, socket.socket]:
    """Process 0: one connection of each other process, all told whether the run can start."""
    came: dict[int, socket.socket] = {}
    problem: tuple[str, str] | None = None
    with _listening(port) as server:
        while len(came) < count - 1 and problem is None:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                peer, _ = server.accept()
            except TimeoutError:
                absent = ", ".join(str(i) for i in range(1, count) if i not in came)
                problem = (
                    f"of {count} processes, {absent} did not come within {seconds:g} s",
                    "start all of them; is the port of --coordinator_address open between hosts?",
                )
                break
            peer.settimeout(5)
            hello = _line(peer)
            # A port scanner, or another program.
            if not all(isinstance(hello.get(key), int) for key in ("index", "count")):
                peer.close()
                continue
            for index in [index for index, known in came.items() if _closed(known)]:
                came.pop(index).close()  # ended meanwhile; it may have been started again
            other = hello["index"]
            if hello["count"] != count or not 0 < other < count:
                problem = (
                    f"process {other} believes in {hello['count']} processes, process 0 in {count}",
                    "start all of them with the same --num_processes",
                )
            elif other in came:
                problem = (
                    f"two processes say that they are process {other}",
                    "give each another --process_id; is an earlier start still running?",
                )
            came[-1 if problem else other] = peer
    answer = json.dumps({"problem": problem}).encode() + b"\n"
    for peer in came.values():
        with contextlib.suppress(OSError):
            peer.sendall(answer)
    if problem:
        for peer in came.values():
            peer.close()
        raise UserError(*problem, exit_code=EXIT_PEERS)
    return came


def _closed(peer: socket.socket) -> bool:
    """Whether the process at the other end has gone; a restarted one may take its place."""
    peer.setblocking(False)
    try:
        return peer.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    # Dual stack where the machine has it, as JAX's coordinator.
    dual = socket.has_dualstack_ipv6()
    try:
        server = socket.create_server(
            ("", port),
            family=socket.AF_INET6 if dual else socket.AF_INET,
            dualstack_ipv6=dual,
            backlog=128,
        )
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at port {port}: {error.strerror}",
            "choose another port in --coordinator_address (JAX_COORDINATOR_PORT under Slurm); is "
            "an earlier start still running?",
            exit_code=EXIT_PEERS,
        ) from error
    with server:
        yield server


def _call(
    host: str, port: int, count: int, index: int, deadline: float, seconds: float
) -> socket.socket:
    """Another process: a connection to process 0, which says that all are there."""
    last = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            peer = socket.create_connection((host, port), timeout=min(left, 5))
        except OSError as error:  # not started yet, or a name that is not known yet
            last = error.strerror or str(error)
            time.sleep(min(0.2, max(left, 0)))
            continue
        try:
            peer.sendall(json.dumps({"index": index, "count": count}).encode() + b"\n")
            # Process 0 gives up by the same clock, a moment later where it started later.
            peer.settimeout(max(deadline - time.monotonic(), 0) + 30)
            answer = _line(peer)
        except OSError as error:
            answer, last = {}, error.strerror or str(error)
        if "problem" not in answer:  # process 0 was stopped, or something else listens there
            peer.close()
            time.sleep(0.2)
            continue
        if answer["problem"]:
            peer.close()
            raise UserError(*answer["problem"], exit_code=EXIT_PEERS)
        peer.settimeout(None)
        return peer
    raise UserError(
        f"process {index} did not reach process 0 at {host}:{port} within {seconds:g} s ({last})",
        "check --coordinator_address, that process 0 runs, and that its port is open between hosts",
        exit_code=EXIT_PEERS,
    )


def _line(peer: socket.socket) -> dict:
    """One line of JSON; empty where something else comes."""
    text = b""
    try:
        while not text.endswith(b"\n") and len(text) < 4096:
            part = peer.recv(1)
            if not part:
                break
            text += part
        content = json.loads(text)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
