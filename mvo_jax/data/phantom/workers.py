"""Cases rendered by several processes, in order.

Plain child interpreters that talk over pipes: they import neither the caller's main module nor
JAX, so this works from scripts without a main guard and from notebooks, and a child ends by itself
when its parent is gone.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import mvo_jax
from mvo_jax.data.phantom.case import Case, CaseKey, simulate_case

_WORTH_A_PROCESS = 24  # cases; starting an interpreter costs about half a second


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    if jobs <= 1:
        for key in keys:
            yield simulate_case(key, frames=frames, image_size=image_size)
        return

    root = str(Path(mvo_jax.__file__).parents[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    with contextlib.ExitStack() as stack:
        children = []
        for j in range(jobs):
            child = subprocess.Popen(
                [sys.executable, "-m", "mvo_jax.data.phantom.workers"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            stack.callback(_end, child)
            children.append(child)
            assert child.stdin is not None
            pickle.dump((list(keys[j::jobs]), frames, image_size), child.stdin)
            child.stdin.close()
        for i in range(len(keys)):
            child = children[i % jobs]
            assert child.stdout is not None
            try:
                case = pickle.load(child.stdout)
            except EOFError:
                raise RuntimeError(
                    f"A process that simulates cases ended early (exit status {child.wait()})."
                ) from None
            yield case


def _end(child: subprocess.Popen) -> None:
    """Stop a child, finished or not."""
    child.kill()
    if child.stdout is not None:
        child.stdout.close()
    child.wait()


def _main() -> None:
    """Child process: read what to render from stdin, write one pickle a case to stdout."""
    keys, frames, image_size = pickle.load(sys.stdin.buffer)
    out = sys.stdout.buffer
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        for key in keys:
            case = simulate_case(key, frames=frames, image_size=image_size)
            pickle.dump(case, out, protocol=pickle.HIGHEST_PROTOCOL)
            out.flush()
        return
    os._exit(1)  # nobody listens: leave without flushing into a broken pipe


if __name__ == "__main__":
    _main()
