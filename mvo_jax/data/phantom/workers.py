"""Cases rendered by several processes, in order."""

import functools
from collections.abc import Iterator, Sequence

from mvo_jax.data.phantom.case import Case, CaseKey, simulate_case
from mvo_jax.data.processes import available_cores, map_in_children

_WORTH_A_PROCESS = 24  # cases; starting an interpreter costs about half a second


def render_cases(
    keys: Sequence[CaseKey], *, frames: int, image_size: int, jobs: int | None = None
) -> Iterator[Case]:
    """The cases of ``keys`` in order, the same whatever the number of processes.

    Args:
        jobs: processes; None for as many as pay off.

    Raises:
        RuntimeError: a child process failed (its own message is on stderr).
    """

    def lost(key: CaseKey, status: int) -> Case:
        raise RuntimeError(f"A process that simulates {key.case_id} ended early (status {status}).")

    if jobs is None:
        jobs = min(available_cores(), len(keys) // _WORTH_A_PROCESS)
    render = functools.partial(simulate_case, frames=frames, image_size=image_size)
    return map_in_children(render, keys, jobs=jobs, lost=lost)
