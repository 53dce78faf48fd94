"""Cases rendered by several processes, in order."""

import contextlib
import functools
from collections.abc import Iterator, Sequence

from mvo_jax.data.phantom.case import Case, CaseKey, simulate_case
from mvo_jax.data.processes import Worker, available_cores

_WORTH_A_PROCESS = 24  # cases; starting an interpreter costs about half a second
_AHEAD = 2  # cases a process is asked for beside the one that is waited for


def render_cases(
    keys: Sequence[CaseKey], *, frames: int, image_size: int, jobs: int | None = None
) -> Iterator[Case]:
    """Yield the cases of ``keys`` in order, the same whatever the number of processes.

    Args:
        keys: which cases.
        frames: frames a cine.
        image_size: pixels along each side.
        jobs: processes; None for as many as pay off.

    Raises:
        RuntimeError: a child process failed (its own message is on stderr).
    """
    if jobs is None:
        jobs = min(available_cores(), len(keys) // _WORTH_A_PROCESS)
    render = functools.partial(simulate_case, frames=frames, image_size=image_size)
    if jobs <= 1:
        yield from map(render, keys)
        return
    with contextlib.ExitStack() as stack:
        workers = [Worker(render) for _ in range(jobs)]
        for worker in workers:
            stack.callback(worker.end)
            stack.callback(worker.process.kill)
        for i in range(-jobs * _AHEAD, len(keys)):
            ahead = i + jobs * _AHEAD  # the same process as of i
            if ahead < len(keys):
                workers[ahead % jobs].send((keys[ahead],))
            if i >= 0:
                try:
                    yield workers[i % jobs].receive()
                except EOFError:
                    status = workers[i % jobs].end()
                    raise RuntimeError(
                        f"A process that simulates cases ended early (exit status {status})."
                    ) from None
