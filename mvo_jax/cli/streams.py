"""Standard streams as a machine has them: closed, a pipe nobody reads, ASCII, without a width.

Nothing that is said on the way ends a command or changes its exit code. Results that cannot be
stored are an error, results that nobody reads are not.
"""

import io
import locale
import os
import sys
from collections.abc import MutableMapping
from typing import Any

from mvo_jax.cli.huge_pages import restart

_LEAST_WIDTH = 40  # absl's help cannot be set in less


class LastingStream(io.TextIOWrapper):
    """A text stream that goes on into nothing once its other end is gone.

    Attributes:
        lost: why what was written is missing where somebody would miss it: the file is full.
    """

    lost: OSError | None = None

    def write(self, text: str, /) -> int:
        """As every text stream; without an error."""
        try:
            return super().write(text)
        except OSError as error:
            self._go_on(error)
            return len(text)

    def flush(self) -> None:
        """As every text stream; without an error."""
        try:
            super().flush()
        except OSError as error:
            self._go_on(error)

    def _go_on(self, error: OSError) -> None:
        # A reader that left (`| head`) and a terminal that was closed miss nothing.
        if not isinstance(error, BrokenPipeError) and not self.isatty():
            self.lost = error
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())
        os.close(nothing)


def secure_streams() -> None:
    """Make the three standard streams usable, whatever they are; for the start of a process."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would take its place
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115 - for the whole process
    sys.stdout, sys.stderr = _lasting(sys.stdout, 1), _lasting(sys.stderr, 2)


def _lasting(stream: Any, number: int) -> LastingStream:
    """The same stream, or one into nothing where there was none."""
    if stream is None:
        nothing = open(number, "wb", closefd=False)  # noqa: SIM115 - for the whole process
        return LastingStream(nothing, encoding="utf-8", errors="backslashreplace")
    options = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
    encoding = stream.encoding
    # In ASCII a dash becomes '\\u2013', in place of an error.
    return LastingStream(stream.detach(), encoding=encoding, errors="backslashreplace", **options)


def quiet_abandoned_work() -> None:
    """Show no traceback of work that was given up because something else failed, which is said.

    Where a save or a restore fails, orbax closes an event loop that tensorstore's threads still
    report to, and each array that is under way complains.
    """
    shown = sys.unraisablehook

    def show(about: Any) -> None:
        if str(about.exc_value) != "Event loop is closed":
            shown(about)

    sys.unraisablehook = show


def check_width(environment: MutableMapping[str, str]) -> None:
    """Forget a COLUMNS that is no width; changes ``environment`` in place."""
    columns = environment.get("COLUMNS", "")
    if columns and not (columns.isdecimal() and int(columns) >= _LEAST_WIDTH):
        del environment["COLUMNS"]


def restart_in_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding.

    Python does by itself in the locales C and POSIX; files of the package are UTF-8 in all of them.
    """
    if sys.flags.utf8_mode or locale.getpreferredencoding(False).lower() in ("utf-8", "utf8"):
        return
    restart({**os.environ, "PYTHONUTF8": "1"})
