"""Files and folders that are written whole or not at all. Every module may import this one."""

import contextlib
import csv
import errno
import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mvo_jax.errors import EXIT_DISK_FULL, UserError


def local_path(text: str | os.PathLike, name: str) -> str:
    """A path of this machine as a user gave it, with the home of ``~`` in its place.

    Raises:
        UserError: it, ``name`` in the message, is empty, the address of a store, below a home that
            nobody knows, or relative to a folder that is gone.
    """
    path = os.fspath(text)
    if not path.strip():
        raise UserError(f"{name} is empty", "name a path, or . for the current folder")
    if re.match(r"[A-Za-z][\w+.-]+:/", path):
        raise UserError(
            f"{name} is {path!r}, which is an address and no path of this machine",
            "mount that store and give the path of the mount, or copy from and to a folder here",
        )
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UserError(f"{name} is {path!r}, and there is no such home", "give the path without ~")
    try:
        os.path.abspath(expanded)
    except FileNotFoundError as error:
        raise UserError(
            f"{name} is {path!r}, and the current folder is gone", "change into one that is there"
        ) from error
    return expanded


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Why a file system takes no more bytes, and what to do about it.
_FULL = {
    errno.ENOSPC: ("no space left", "free some space"),
    errno.EDQUOT: ("the quota is used up", "free some space, or have the quota raised"),
    errno.EFBIG: ("a file may not grow so large", "raise the limit of a file's size (ulimit -f)"),
}
KEPT = "what was written before is kept, and the same command goes on"


def full(error: BaseException) -> int:
    """The number of the error, or of what caused it, that says why no more bytes are taken, or 0.

    Libraries in C++ give the words of the system without its number.
    """
    seen: BaseException | None = error
    while seen is not None:
        for number in _FULL:
            if os.strerror(number) in str(seen) or getattr(seen, "errno", None) == number:
                return number
        seen = seen.__cause__ or seen.__context__
    return 0


def cannot_write(path: str | os.PathLike, error: BaseException, *, kept: str = KEPT) -> UserError:
    """The error for a file that could not be written; a full disk has its own exit code.

    ``kept`` says what remains where the disk is full.
    """
    if number := full(error):
        why, remedy = _FULL[number]
        cause = f"{why} while writing {path}"
        return UserError(cause, f"{remedy}; {kept}", exit_code=EXIT_DISK_FULL)
    reason = (isinstance(error, OSError) and error.strerror) or str(error).partition("\n")[0][:200]
    remedy = "choose a folder that can be written and has free space"
    return UserError(f"cannot write {path}: {reason}", remedy)


def replace_file(path: str | os.PathLike, text: str) -> None:
    """Writes ``text`` as UTF-8, line ends as given, by ``replace_with``."""
    replace_with(path, lambda temporary: temporary.write_bytes(text.encode()))


def write_csv(
    path: str | os.PathLike, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Writes a table as UTF-8 CSV by ``replace_with``.

    What a row has beside ``columns`` is left out; None is left empty, a float keeps all its digits.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns := tuple(columns))
    writer.writerows([row[column] for column in columns] for row in rows)
    replace_file(path, text.getvalue())


def replace_with(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Has ``write`` make a file, so that readers see the old one or the new one, never a part.

    It has another name until it is on disk. Missing parent folders are made.

    Raises:
        UserError: the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def check_folder(path: str | os.PathLike, name: str) -> None:
    """Say at once that a file stands where a folder is or will be made.

    Raises:
        UserError: it, ``name`` in the message, or the last of its parents that is there, is no
            folder.
    """
    folder = Path(path).expanduser().absolute()
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not os.path.isdir(there):
        raise UserError(f"{name} is {folder}, and {there} is no folder", "name a folder")


def check_writable(path: str | os.PathLike) -> None:
    """Say at once, before hours of computing, that nothing can be written into a folder.

    Raises:
        UserError: it, or the last of its parents that is there, takes no files of this user.
    """
    folder = Path(path).absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not os.access(there, os.W_OK):
        raise cannot_write(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def check_new(path: str | os.PathLike) -> None:
    """Say at once, before hours of computing, that ``new_folder`` would refuse what is there."""
    path = Path(path).expanduser().absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        cause = f"{path} exists already and is not an empty folder"
        raise UserError(cause, "choose another --out, or move it away")


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill under another name; it takes its own name only if nothing goes wrong.

    It may exist if it is empty.

    Raises:
        UserError: the path holds something, or cannot be written.
    """
    path = Path(path).expanduser().absolute()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.incomplete")
    try:
        check_new(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            yield temporary
            if path.exists():
                path.rmdir()
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        # Unlike a run, a folder that is whole or not keeps no part.
        kept = "nothing of it was kept; repeat the command"
        raise cannot_write(path, error, kept=kept) from error
