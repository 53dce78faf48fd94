"""Functions called in child interpreters, which talk over pipes.

They import neither the caller's main module nor JAX, so this works from scripts without a main
guard and from notebooks; a child that crashes or is killed for memory costs one answer, and one
whose parent is gone ends.
"""

import contextlib
import itertools
import os
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mvo_jax

_AHEAD = 2  # calls for each child that are begun before the first is taken


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Child:
    """An interpreter that calls one function, on one thread, with what it is sent."""

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
        self._send(function)

    def _send(self, value: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading the answer will say that it is gone
            self.process.stdin.write(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
            self.process.stdin.flush()

    def ask(self, item: Any) -> Any:
        """What the function returns; EOFError where the child ends before."""
        assert self.process.stdout is not None
        self._send(item)
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


def map_in_children(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    jobs: int,
    lost: Callable[[Any, int], Any],
) -> Iterator[Any]:
    """``map`` by children that work on one item each; results come in order.

    Args:
        function: of a module, or a partial of one: it is found by its name.
        items: taken a few ahead of the result that is waited for.
        jobs: children; 1 or fewer works in this process.
        lost: result for an item whose child ended early, and its exit status. A new child takes its
            place.
    """
    if jobs <= 1:
        yield from map(function, items)
        return
    children: list[_Child] = []
    idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()

    def ask(item: Any) -> Any:
        try:
            child = idle.get_nowait()
        except queue.Empty:
            child = _Child(function)
            children.append(child)
        try:
            answer = child.ask(item)
        except EOFError:
            return lost(item, child.end())
        idle.put(child)
        return answer

    items = iter(items)
    threads = ThreadPoolExecutor(jobs)
    try:
        waiting = deque(threads.submit(ask, one) for one in itertools.islice(items, _AHEAD * jobs))
        while waiting:
            answer = waiting.popleft().result()
            # Before the answer is worked on: that is what the children work ahead of.
            waiting.extend(
                threads.submit(ask, following) for following in itertools.islice(items, 1)
            )
            yield answer
    finally:
        for child in children:
            child.process.kill()  # wakes the threads that wait for an answer
        threads.shutdown(cancel_futures=True)
        for child in children:
            child.end()


def _main() -> None:
    """Child process: a function, then items one by one on stdin; results on stdout."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    try:
        function = pickle.load(source)
        while True:
            pickle.dump(function(pickle.load(source)), sink, pickle.HIGHEST_PROTOCOL)
            sink.flush()
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        os._exit(0)  # nobody listens: leave without flushing into a broken pipe


if __name__ == "__main__":
    _main()
