"""Functions called in child interpreters, which talk over pipes.

They import neither the caller's main module nor JAX, so this works from scripts without a main
guard and from notebooks; a child that crashes or is killed for memory costs one answer, and one
whose parent is gone ends.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mvo_jax


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Worker:
    """A child that calls one function, on one thread, with what it is sent.

    Args:
        function: of a module, or a partial of one: it is found by its name.
    """

    def __init__(self, function: Callable[..., Any]):
        root = str(Path(mvo_jax.__file__).parents[1])
        paths = [root, os.environ.get("PYTHONPATH"), *filter(None, sys.path)]
        one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mvo_jax.data.processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | one_thread | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        self.send(function)

    def send(self, value: Any) -> None:
        """Send the arguments of a call; the child works through them in order."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # ``receive`` will say that it is gone
            self.process.stdin.write(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
            self.process.stdin.flush()

    def receive(self) -> Any:
        """What the next call returned.

        Raises:
            EOFError: the child ended before.
        """
        assert self.process.stdout is not None
        try:
            return pickle.load(self.process.stdout)
        except pickle.UnpicklingError as error:  # it died within an answer
            raise EOFError from error

    def end(self) -> int:
        """Stop the child, whatever it is doing; its exit status."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            return self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def _main() -> None:
    """Child process: a function, then arguments one by one on stdin; results on stdout."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    try:
        function = pickle.load(source)
        while True:
            arguments = pickle.load(source)
            pickle.dump(function(*arguments), sink, pickle.HIGHEST_PROTOCOL)
            sink.flush()
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        os._exit(0)  # nobody listens: leave without flushing into a broken pipe


if __name__ == "__main__":
    _main()
