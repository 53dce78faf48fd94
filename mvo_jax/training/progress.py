"""How far a run is, for whoever watches it; a watcher that has gone ends no run."""

import contextlib
import io
import sys
from typing import Any

from tqdm import tqdm

from mvo_jax.devices import distributed

# A pipe without a reader, a terminal that was closed, a stream that a notebook has taken away.
_unseen = contextlib.suppress(OSError, ValueError)


class Progress:
    """A progress bar with clips/s and time left on a terminal, plain lines elsewhere.

    Args:
        step: updates done.
        total: updates of the whole run.
    """

    def __init__(self, step: int, total: int):
        self._first = distributed.is_first()
        self._stream = sys.stderr or io.StringIO()  # none where it was closed at the start
        options: dict[str, Any] = {"total": total, "initial": step, "unit": "step"}
        self._bar = tqdm(disable=True, **options)
        with _unseen:
            if self._first and self._stream.isatty():
                self._bar = tqdm(file=self._stream, **options)
        self._total, self._step = total, step

    def advance(self, step: int, clips_per_second: float, loss: float) -> None:
        """Move on to ``step``."""
        with _unseen:
            self._bar.set_postfix_str(
                f"{clips_per_second:.1f} clips/s, loss {loss:.4f}", refresh=False
            )
            self._bar.update(step - self._step)
        self._step = step

    def line(self, text: str) -> None:
        """Print a line beside the bar."""
        if self._first:
            with _unseen:
                self._bar.write(text, file=self._stream)

    def log(self, clips_per_second: float, clips_per_step: int, loss: float) -> None:
        """Without a terminal: one line with speed and time left."""
        if self._bar.disable:
            left = (self._total - self._step) * clips_per_step / clips_per_second
            self.line(
                f"step {self._step}/{self._total}  loss {loss:.4f}  "
                f"{clips_per_second:.1f} clips/s  {left / 60:.1f} min left"
            )

    def close(self) -> None:
        """Leave the bar as it is."""
        with _unseen:
            self._bar.close()
