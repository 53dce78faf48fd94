"""One process a run folder: a lock that dies with its owner, and remembers what the owner did."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from mvo_jax.errors import EXIT_LOCKED, UserError
from mvo_jax.files import cannot_write

STALE_SECONDS = 120.0  # of an owner whose file system has no locks, and who is not heard of
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class RunLock:
    """Holds ``run.lock`` in a run folder until ``release`` or the end of the process.

    ``flock`` is the lock: the kernel releases it however the owner ends. What is in the file is for
    messages, and for the next start to know how long a killed one ran. Where the file system has no
    locks, an owner of another host counts as alive for ``STALE_SECONDS`` after its last record.

    Args:
        folder: the run's folder; must exist.

    Attributes:
        unaccounted: last records of earlier owners that did not end by themselves; kept in the file
            until ``account``, however often the folder changes hands.

    Raises:
        UserError: another process holds the lock.
    """

    def __init__(self, folder: Path):
        path = folder / "run.lock"
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise cannot_write(path, error) from error
        record = self._read()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = False
        except BlockingIOError:
            taken = True
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise cannot_write(path, error) from error
            taken = _seems_alive(record)
        if taken:
            os.close(self._file)
            owner = f"process {record.get('pid', '?')} on {record.get('host', '?')}"
            raise UserError(
                f"{folder} is in use by {owner}",
                "wait for it or stop it; a run folder takes one process at a time",
                exit_code=EXIT_LOCKED,
            )
        self.unaccounted: list[dict[str, Any]] = record.pop("unaccounted", [])
        if record and not record.get("ended"):
            self.unaccounted.append(record)
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
        self.record({})

    def record(self, what: dict[str, Any]) -> None:
        """Write down what the owner is doing; a full disk does not stop it."""
        if self._file < 0:
            return
        about = {**self._owner, "now": time.time(), **what, "unaccounted": self.unaccounted}
        text = json.dumps(about).encode()
        with contextlib.suppress(OSError):
            os.pwrite(self._file, text, 0)
            os.ftruncate(self._file, len(text))

    def account(self) -> list[dict[str, Any]]:
        """Earlier records, once."""
        records, self.unaccounted = self.unaccounted, []
        return records

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the folder back; the next start is not told of this one."""
        if self._file >= 0:
            self.record({"ended": True})
            os.close(self._file)  # also unlocks
            self._file = -1

    def _read(self) -> dict[str, Any]:
        try:
            record = json.loads(os.pread(self._file, 65536, 0))
        except (OSError, ValueError):  # new, or cut short by a kill
            return {}
        return record if isinstance(record, dict) else {}


def _seems_alive(record: dict[str, Any]) -> bool:
    """Without locks: a living process of this host, or another host heard of lately."""
    if not record or record.get("ended"):
        return False
    if record.get("host") == socket.gethostname():
        try:
            os.kill(int(record.get("pid", 0)), 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True  # somebody else's process
        return record.get("pid") != os.getpid()
    return time.time() - float(record.get("now", 0)) < STALE_SECONDS
