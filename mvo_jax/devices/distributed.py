"""Several processes as one run: joining, talking between hosts, and what only one of them does.

Collectives of the devices are in ``parallel``. What is here goes through JAX's coordinator, so it
needs no device and may wait for hours, as for a cohort that process 0 generates.
"""

import atexit
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

import mvo_jax
from mvo_jax.devices.cluster import Cluster
from mvo_jax.devices.lifeline import Lifeline, meet
from mvo_jax.errors import EXIT_PEERS, RunInterrupted, UserError
from mvo_jax.files import sha256

T = TypeVar("T")

# A process that has died is noticed by its connection or its heartbeats, not by these waits.
_WAIT_MS = 7 * 24 * 3600 * 1000
_NOTICE_SECONDS = 3
# A network file system may keep what it knows of a folder for so long.
_SHARED_SECONDS = 60
_turns = itertools.count()  # every process talks in the same order


def is_first() -> bool:
    """Whether this process writes logs and reports; True where there is one process."""
    return jax.process_index() == 0


def index() -> int:
    """Which process this is, from 0."""
    return jax.process_index()


def count() -> int:
    """Processes of this run."""
    return jax.process_count()


def versions() -> dict[str, str]:
    """Of what must be the same in all processes, beside the config and the data."""
    return {
        "mvo_jax": mvo_jax.__version__,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
    }


@contextlib.contextmanager
def joined(
    cluster: Cluster | None, *, join_seconds: int = 300, peer_seconds: int = 60
) -> Iterator[None]:
    """Be part of a cluster while the body runs; without one, do nothing.

    Leaves together: a process that is done, or stopped by a signal, waits for the others. One that
    fails tells them, and they end within ten seconds. One that is killed is noticed by its closed
    connection at once, one whose host is lost by its missing heartbeats; the others then end with
    ``EXIT_PEERS``, or are aborted by JAX (SIGABRT) where it notices first.

    Args:
        cluster: from ``cluster.find_cluster``.
        join_seconds: how long to wait for the other processes.
        peer_seconds: after how long without a heartbeat a process counts as dead.

    Raises:
        UserError: the processes did not come together, or JAX has started already.
    """
    if cluster is None:
        yield
        return
    lifeline = _join(cluster, join_seconds, peer_seconds)
    interrupted = None
    try:
        try:
            yield
        except RunInterrupted as stop:  # in all processes at one step
            interrupted = stop
        exchange("done")
    except BaseException as error:
        if lifeline is not None and isinstance(error, jax.errors.JaxRuntimeError):
            time.sleep(_NOTICE_SECONDS)  # a collective may fail before a closed connection is seen
        # JAX's own exit hook would wait for processes that wait for this one.
        atexit.register(_leave_failed, lifeline, _exit_code(error))
        raise
    if lifeline is not None:
        lifeline.leave(failed=False)
    jax.distributed.shutdown()
    if interrupted is not None:
        raise interrupted


def _join(cluster: Cluster, join_seconds: int, peer_seconds: int) -> Lifeline | None:
    about = f"{cluster.num_processes or 'all'} processes ({cluster.found_by})"
    if cluster.process_id is not None:
        about += f" as process {cluster.process_id}, coordinator {cluster.coordinator_address}"
    print(f"joining {about}", file=sys.stderr, flush=True)
    lifeline = None
    if cluster.num_processes and cluster.coordinator_address and cluster.process_id is not None:
        lifeline = meet(
            cluster.coordinator_address,
            cluster.num_processes,
            cluster.process_id,
            seconds=join_seconds,
        )
    # JAX would take SIGTERM for itself: the training loop saves on it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=cluster.coordinator_address,
            num_processes=cluster.num_processes,
            process_id=cluster.process_id,
            local_device_ids=cluster.local_device_ids,
            # With all three known JAX's own detection would only narrow the devices.
            cluster_detection_method="deactivate" if lifeline else None,
            initialization_timeout=join_seconds,
            heartbeat_timeout_seconds=peer_seconds,
            shutdown_timeout_seconds=peer_seconds,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"JAX could not join the other processes: {str(error).splitlines()[0]}",
            "see docs/cluster.md; --distributed=off runs this process alone",
            exit_code=EXIT_PEERS,
        ) from error
    if lifeline is not None:
        lifeline.watch()
    return lifeline


def _exit_code(error: BaseException) -> int:
    """The status with which the command is about to end."""
    if isinstance(error, UserError):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _leave_failed(lifeline: Lifeline | None, code: int) -> None:
    """Tell the others and end without JAX's farewell; runs after everything else at exit."""
    if lifeline is not None:
        lifeline.leave(failed=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exchange(text: str) -> list[str]:
    """Texts of all processes in their order; waits until each has given its own.

    All processes must call this, and the functions below, in the same order.
    """
    if count() == 1:
        return [text]
    client, turn = _client(), next(_turns)
    client.key_value_set(f"mvo_jax/{turn}/{jax.process_index()}", text)
    return [
        client.blocking_key_value_get(f"mvo_jax/{turn}/{index}", _WAIT_MS)
        for index in range(count())
    ]


def first_then_others(action: Callable[[], T]) -> T:
    """Run ``action`` in process 0, and when it is done there in the others.

    For what finds a file where one process has made it. If it fails in process 0, it fails in all.

    Raises:
        UserError: whatever ``action`` raises.
    """
    if is_first():
        result = _shared_failure(action)
        exchange("")
        return result
    said = exchange("")[0]
    if said:
        raise UserError(**json.loads(said))
    return action()


def _shared_failure(action: Callable[[], T]) -> T:
    try:
        return action()
    except UserError as error:
        exchange(
            json.dumps({"cause": error.cause, "remedy": error.remedy, "exit_code": error.exit_code})
        )
        raise


def check_same(values: Mapping[str, Any], remedy: str) -> None:
    """Check that all processes have the same values, before they run into each other's collectives.

    Args:
        values: JSON values, or mappings of such, by the name that the message gives them.
        remedy: what to do where they differ.

    Raises:
        UserError: in all processes, naming the first process and value that differ from process 0.
    """
    first, *others = [json.loads(text) for text in exchange(json.dumps(_flat(values)))]
    for index, other in enumerate(others, 1):
        for name in sorted(first.keys() | other.keys()):
            theirs, ours = other.get(name, "nothing"), first.get(name, "nothing")
            if theirs != ours:
                raise UserError(
                    f"process {index} has another {name} than process 0: {theirs!r}, not {ours!r}",
                    remedy,
                )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(_flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def check_shared(path: Path) -> None:
    """Check that all processes see the file that process 0 has written.

    Raises:
        UserError: in all processes, where one does not within ``_SHARED_SECONDS``.
    """
    ours = sha256(path) if is_first() else ""
    written = exchange(ours)[0]
    deadline = time.monotonic() + _SHARED_SECONDS
    while not ours and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            ours = sha256(path) if sha256(path) == written else ""
        if not ours:
            time.sleep(0.5)
    problem = None if ours else f"does not see {path} as process 0 has written it"
    for index, said in enumerate(exchange(json.dumps(problem))):
        if found := json.loads(said):
            raise UserError(
                f"process {index} {found}",
                "put --workdir on a file system that all hosts share: checkpoints go there",
            )


def _client() -> Any:
    # Not public in JAX; orbax stands on it too. It needs no device and keeps no clique open.
    from jax._src import distributed

    return distributed.global_state.client
