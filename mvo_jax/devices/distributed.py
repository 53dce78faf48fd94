"""Several processes as one run: joining, talking between hosts, and what only one of them does.

Collectives of the devices are in ``parallel``. What is here goes through JAX's coordinator, so it
needs no device and may wait for hours, as for a cohort that process 0 generates.
"""

import atexit
import contextlib
import dataclasses
import itertools
import json
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

from mvo_jax.devices import computation
from mvo_jax.devices.cluster import Cluster
from mvo_jax.errors import EXIT_PEERS, EXIT_USER_ERROR, RunInterrupted, UserError
from mvo_jax.files import sha256

T = TypeVar("T")

log = logging.getLogger(__name__)

# A process that has died is noticed by its heartbeats, not by these waits.
_WAIT_MS = 7 * 24 * 3600 * 1000
# What a collective or the coordinator's client says when a process at its other end has gone.
_LOST = re.compile(r"gloo|nccl|unavailable|connection (closed|reset)|heartbeat", re.IGNORECASE)
_GRACE_SECONDS = 5  # for the others to end by themselves before process 0 does
# A network file system may keep what it knows of a folder for so long.
_SHARED_SECONDS = 60
SAME_START = "start all processes with one command, one environment and one installation"
_turns = itertools.count()  # every process talks in the same order


def is_first() -> bool:
    """Whether this process writes logs and reports; True where there is one process."""
    return jax.process_index() == 0


def index() -> int:
    """Which process this is, from 0."""
    return jax.process_index()


def is_joined() -> bool:
    """Whether this process is one of several, or about to be; asking starts no device."""
    return jax.distributed.is_initialized()


def count() -> int:
    """Processes of this run."""
    return jax.process_count()


@contextlib.contextmanager
def joined(
    cluster: Cluster | None, *, join_seconds: int = 300, peer_seconds: int = 30
) -> Iterator[None]:
    """Be part of a cluster while the body runs; without one, do nothing.

    Leaves together: a process that is done, or stopped by a signal, waits for the others. One that
    has died or failed is noticed by JAX's heartbeats, and by collectives that fail for want of it:
    the others end with ``EXIT_PEERS``, or JAX aborts them (SIGABRT, exit code 134) where it notices
    first. Nothing of Python runs then.

    Args:
        cluster: from ``cluster.find_cluster``.
        join_seconds: how long to wait for the other processes; JAX aborts this one afterwards.
        peer_seconds: after how long without a heartbeat a process counts as dead.

    Raises:
        UserError: the processes cannot be joined, or one of them is gone.
    """
    if cluster is None:
        yield
        return
    _join(cluster, join_seconds, peer_seconds)
    interrupted = None
    try:
        _check_count()
        # Before a device is started: hosts of two backends would wait for each other's devices.
        platforms = {"JAX_PLATFORMS": jax.config.values["jax_platforms"] or ""}
        same = computation.settings() | platforms | computation.installation()
        check_same(same, SAME_START)
        try:
            yield
        except RunInterrupted as stop:  # in all processes at one step
            interrupted = stop
        exchange("done")
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError | ValueError) and _LOST.search(str(error)):
            # JAX's own exit hook would wait for processes that wait for this one.
            atexit.register(_leave, EXIT_PEERS)
            raise UserError(
                f"another process is gone: {str(error).splitlines()[0]}",
                "see its own last lines; the same command in all processes goes on from the last "
                "checkpoint",
                exit_code=EXIT_PEERS,
            ) from error
        atexit.register(_leave, _exit_code(error))
        raise
    jax.distributed.shutdown()
    if interrupted is not None:
        raise interrupted


def _join(cluster: Cluster, join_seconds: int, peer_seconds: int) -> None:
    log.info(
        "joining %s processes (%s) as process %s, coordinator %s, for at most %d s\n"
        "  where one is lost, the others end within %d s: with exit code %d, or with 134 (SIGABRT) "
        "and JAX's message that another task died; the same command in all of them goes on",
        *(cluster.num_processes, cluster.found_by, cluster.process_id, cluster.coordinator_address),
        *(join_seconds, peer_seconds, EXIT_PEERS),
    )
    given = dataclasses.asdict(cluster)
    del given["found_by"]
    by_hand = None not in (cluster.coordinator_address, cluster.num_processes, cluster.process_id)
    # JAX would take SIGTERM for itself: the training loop saves on it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        if cluster.process_id == 0 and cluster.coordinator_address:
            _try_port(int(cluster.coordinator_address.rpartition(":")[2]))
        jax.distributed.initialize(
            **given,
            # JAX's own detection would only narrow the devices.
            cluster_detection_method="deactivate" if by_hand else None,
            initialization_timeout=join_seconds,
            heartbeat_timeout_seconds=peer_seconds,
            shutdown_timeout_seconds=peer_seconds,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"the other processes cannot be joined: {str(error).splitlines()[0]}",
            "give --coordinator_address, --num_processes and --process_id as flags or as JAX_* "
            "variables (docs/cluster.md); is an earlier start still running?",
            # A value that JAX misses, or cannot use, is no better in another start.
            exit_code=EXIT_USER_ERROR if isinstance(error, ValueError) else EXIT_PEERS,
        ) from error


def _try_port(port: int) -> None:
    """Raise OSError where JAX's coordinator cannot listen: JAX 0.10 may end by SIGSEGV there."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()


def _check_count() -> None:
    """Check that this process and process 0 expect as many: JAX would wait for those not there."""
    state, key = _state(), "mvo_jax/num_processes"
    if state.process_id == 0:
        state.client.key_value_set(key, str(state.num_processes))
    expected = state.client.blocking_key_value_get(key, _WAIT_MS)
    if expected != str(state.num_processes):
        raise UserError(
            f"process {state.process_id} is one of {state.num_processes}, but process 0 one of "
            f"{expected}",
            "start all of them with the same --num_processes",
        )


def _exit_code(error: BaseException) -> int:
    """The status with which the command is about to end."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)


def _leave(code: int) -> None:
    """End without JAX's exit hook; runs after everything else at exit.

    With process 0 JAX's coordinator goes, and all others are aborted, so it gives them time to say
    what they have to say and to end by themselves.
    """
    state, deadline = _state(), time.monotonic() + _GRACE_SECONDS
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        state.client.key_value_set(f"mvo_jax/left/{state.process_id}", "")
        for other in range(1, state.num_processes if state.process_id == 0 else 0):
            left = max(int(1000 * (deadline - time.monotonic())), 1)
            state.client.blocking_key_value_get(f"mvo_jax/left/{other}", left)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exchange(text: str) -> list[str]:
    """Texts of all processes in their order; waits until each has given its own.

    All processes must call this, and the functions below, in the same order.
    """
    state = _state()
    if state.client is None:
        if count() > 1:  # the hosts of a TPU know each other without JAX's coordinator
            cause = f"JAX runs in {count()} processes that have not been joined"
            raise UserError(cause, "start each of them with --distributed=on")
        return [text]
    turn = next(_turns)
    state.client.key_value_set(f"mvo_jax/{turn}/{state.process_id}", text)
    return [
        state.client.blocking_key_value_get(f"mvo_jax/{turn}/{index}", _WAIT_MS)
        for index in range(state.num_processes)
    ]


def first_then_others(action: Callable[[], T]) -> T:
    """Run ``action`` in process 0, and when it is done there in the others.

    For what finds a file where one process has made it. A UserError of process 0 is one of all.
    """
    if not is_first():
        if said := exchange("")[0]:
            raise UserError(**json.loads(said))
        return action()
    try:
        result = action()
    except UserError as error:
        about = {name: getattr(error, name) for name in ("cause", "remedy", "exit_code")}
        exchange(json.dumps(about))
        raise
    exchange("")
    return result


def check_same(values: Mapping[str, Any], remedy: str) -> None:
    """Check that all processes have the same values, before they run into each other's collectives.

    Args:
        values: JSON values, or mappings of such, by the name that the message gives them.
        remedy: what to do where they differ.

    Raises:
        UserError: in all processes, naming the first process, its host and the value that differ
            from process 0.
    """
    leaves = jax.tree_util.tree_leaves_with_path(dict(values))
    flat = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    said = exchange(json.dumps([socket.gethostname(), flat]))
    (first_host, first), *others = map(json.loads, said)
    for index, (host, other) in enumerate(others, 1):
        for name in sorted(first.keys() | other.keys()):
            theirs, ours = other.get(name, "nothing"), first.get(name, "nothing")
            if theirs != ours:
                cause = f"process {index} on {host} has another {name} than process 0 on"
                raise UserError(f"{cause} {first_host}: {theirs!r}, not {ours!r}", remedy)


def check_shared(path: Path) -> None:
    """Raise UserError in all processes where one does not see the file that process 0 has written.

    It may take ``_SHARED_SECONDS`` to be seen.
    """
    written = exchange(sha256(path) if is_first() else "")[0]
    deadline, seen = time.monotonic() + _SHARED_SECONDS, is_first()
    while not seen and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            seen = sha256(path) == written
        if not seen:
            time.sleep(0.5)
    for index, said in enumerate(exchange("" if seen else str(path))):
        if said:
            raise UserError(
                f"process {index} does not see {said} as process 0 has written it",
                "put --workdir on a file system that all hosts share: checkpoints go there",
            )


def _state() -> Any:
    # Not public in JAX; orbax stands on it too. It needs no device and keeps no clique open.
    from jax._src import distributed

    return distributed.global_state
