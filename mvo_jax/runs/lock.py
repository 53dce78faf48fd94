"""One process a run folder: a lock that ends with its owner, and a record of what the owner did."""

import contextlib
import errno
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import filelock

from mvo_jax.errors import EXIT_LOCKED, UserError
from mvo_jax.files import cannot_write

LOCK, OWNER = "run.lock", "run.owner.json"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


class RunLock(contextlib.AbstractContextManager):
    """Holds ``run.lock`` in a run folder until ``release`` or the end of the process.

    The kernel releases the lock however the owner ends. The owner's record beside it is for
    messages, and for the next start to know how long a killed one ran: it keeps the last records of
    earlier owners that were killed until ``account``, however often the folder changes hands.

    Raises:
        UserError: another process holds the lock, or the file system has no locks.
    """

    def __init__(self, folder: Path):
        self._path = folder / OWNER
        # A file that exists instead of a lock would outlive a killed owner.
        self._lock = filelock.FileLock(folder / LOCK, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire(blocking=False)
        except filelock.Timeout as error:
            pid, host = (self._read().get(name, "?") for name in ("pid", "host"))
            raise UserError(
                f"{folder} is in use by process {pid} on {host}",
                "wait for it or stop it; a run folder takes one process at a time",
                exit_code=EXIT_LOCKED,
            ) from error
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise UserError(
                    f"the file system of {folder} has no locks ({error.strerror}), so two "
                    "processes could train in one folder",
                    "choose a --workdir on another file system, or mount this one with locks",
                ) from error
            raise cannot_write(folder / LOCK, error) from error
        before = self._read()
        self._unaccounted: list[dict[str, Any]] = before.pop("unaccounted", [])
        if before and not before.get("ended"):
            self._unaccounted.append(before)
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
        self.record({})

    def record(self, what: dict[str, Any]) -> None:
        """Write down what the owner is doing; a full disk does not stop it."""
        if not self._lock.is_locked:
            return
        about = {**self._owner, "now": time.time(), **what, "unaccounted": self._unaccounted}
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(about))
            temporary.replace(self._path)
        except OSError:
            # A record that cannot say that its owner has ended would make it one that was killed.
            for left in (temporary, *([self._path] if what.get("ended") else [])):
                with contextlib.suppress(OSError):
                    left.unlink(missing_ok=True)

    def account(self) -> list[dict[str, Any]]:
        """The last records of owners that were killed, once."""
        records, self._unaccounted = self._unaccounted, []
        return records

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the folder back; the next start does not count this one as killed."""
        if self._lock.is_locked:
            self.record({"ended": True})
            self._lock.release()

    def _read(self) -> dict[str, Any]:
        try:
            record = json.loads(self._path.read_text())
        except (OSError, ValueError):  # new, or damaged
            return {}
        return record if isinstance(record, dict) else {}
