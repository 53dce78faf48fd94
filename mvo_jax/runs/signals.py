"""SIGTERM, SIGUSR1 and SIGHUP: save and leave in time; a second one: leave at once.

Python runs signal handlers in the main thread between two of its instructions, which may be a
minute away while XLA compiles. So the handlers do nothing: a thread is woken through the
interpreter's wakeup descriptor, asks the loop to stop, and ends the process itself if the loop does
not in time.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable

from mvo_jax.devices import distributed
from mvo_jax.errors import EXIT_INTERRUPTED

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
# Ten seconds are promised; Slurm and Kubernetes give thirty before they kill.
GRACE_SECONDS = 8.0
_LEAVE_SECONDS = 1.5  # for finishing what is under way, after the grace
_WHEN_SAFE = 0.5  # for the loop to notice, when it has nothing to save


class Interruption:
    """Context in which the signals ask a run to stop.

    SIGHUP does not where it was ignored before, as ``nohup`` has it. Outside of the main thread,
    and after the context, signals do what they did before.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None  # that asked the run to stop
        self.safe = True  # whether leaving now loses nothing: no step was taken since the last save
        self.noticed = False  # set by the loop once it is on its way out
        # Called by the thread before it ends the process, to finish what is under way.
        self.before_leaving: Callable[[], None] = lambda: None
        self._left = threading.Event()

    def __enter__(self) -> "Interruption":
        self._left.clear()
        self._previous: dict[signal.Signals, object] = {}
        if threading.current_thread() is not threading.main_thread():
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._old_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            # The wakeup descriptor wakes the thread.
            self._previous[number] = signal.signal(number, lambda *_: None)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self._previous:
            for number, handler in self._previous.items():
                signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
            signal.set_wakeup_fd(self._old_wakeup)
            os.close(self._write)  # ends the thread

    def _listen(self) -> None:
        while content := os.read(self._read, 1):
            if content[0] not in SIGNALS:
                continue
            if self.requested is not None:
                # A terminal that closes sends SIGHUP, and so does its shell.
                if content[0] == signal.SIGHUP:
                    continue
                self._leave("a second signal")
            self.requested = signal.Signals(content[0])
            name = self.requested.name
            log.warning(f"{name}: saving, then leaving; again: leaving at once")
            threading.Thread(target=self._leave_in_time, daemon=True).start()
        os.close(self._read)

    def _leave_in_time(self) -> None:
        """End the process if the loop does not."""
        asked = time.monotonic()
        while not self._left.wait(0.05):
            waited = time.monotonic() - asked
            # Several processes leave together, after the step or evaluation under way.
            alone = self.safe and not self.noticed and not distributed.is_joined()
            if waited > (_WHEN_SAFE if alone else GRACE_SECONDS):
                # A disk that hangs must not hold the process either.
                finish = threading.Thread(target=self.before_leaving, daemon=True)
                finish.start()
                finish.join(GRACE_SECONDS + _LEAVE_SECONDS - waited)
                if self._left.is_set():  # the loop has left in the meantime
                    return
                late = f"no step ended within {GRACE_SECONDS:.0f} s; what came after the last"
                nothing = "nothing to save since the last checkpoint"
                self._leave(nothing if self.safe else f"{late} checkpoint is lost")

    def _leave(self, why: str) -> None:
        log.warning(f"interrupted ({why}); the same command goes on")
        os._exit(EXIT_INTERRUPTED)
