"""A thread that keeps a run's record fresh, and names the phase that does not end."""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvo_jax.errors import EXIT_HUNG
from mvo_jax.runs.goodput import Clock

TRACES = "hung.txt"
_RECORD_SECONDS = 2.0

log = logging.getLogger(__name__)


class Watchdog:
    """Context that watches a clock from a thread of its own.

    Args:
        clock: entered anew by a run that gets on.
        folder: gets ``hung.txt``, the stacks of all threads, when a phase takes too long.
        seconds: how long a phase may take; 0 for any time.
        leave: also end the process, with ``EXIT_HUNG``, so that a scheduler starts it again.
        record: called every two seconds with ``clock.row()``.
    """

    def __init__(
        self,
        clock: Clock,
        folder: Path,
        *,
        seconds: float,
        leave: bool,
        record: Callable[[dict[str, Any]], None],
    ):
        self._clock, self._path, self._record = clock, folder / TRACES, record
        self._seconds, self._leave = seconds, leave
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._record(self._clock.row())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        every = min(_RECORD_SECONDS, self._seconds / 4 or _RECORD_SECONDS)
        named = 0.0  # when the phase began that was named last
        while not self._stop.wait(every):
            self._record(self._clock.row())
            since = self._clock.since
            taken = time.perf_counter() - since
            if self._seconds and taken > self._seconds and since != named:
                named = since
                self._name(taken)

    def _name(self, taken: float) -> None:
        phase, step = self._clock.phase, self._clock.step
        step += phase in ("step", "input", "compile")  # the one under way
        try:
            with self._path.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            stacks = f"stacks of all threads in {self._path}"
        except OSError as error:
            stacks = f"{self._path} cannot be written: {error.strerror}"
        log.error(
            f"watchdog: step {step} has not finished for {taken:.0f} s (phase: {phase}); {stacks}"
        )
        if self._leave:
            log.error("watchdog: leaving; the same command goes on")
            os._exit(EXIT_HUNG)
