"""Files and folders that are written whole or not at all. Every room may import this module."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from mvo_jax.errors import UserError


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: str | os.PathLike, text: str) -> None:
    """Writes ``text`` as UTF-8 so that readers see the old file or the new one, never a part.

    Args:
        path: file to write; missing parent folders are made.
        text: the whole content; line ends are kept as given.

    Raises:
        UserError: the folder cannot be written.
    """
    replace_with(path, lambda temporary: temporary.write_bytes(text.encode()))


def replace_with(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Has ``write`` make a file under another name, which takes its own once it is on disk.

    Args:
        path: file to write; missing parent folders are made.
        write: writes the whole content to the path it is given.

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
        raise UserError(
            f"cannot write {path}: {error.strerror or error}",
            "choose a folder that can be written and has free space",
        ) from error


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill under another name; it takes its own name only if nothing goes wrong.

    Args:
        path: folder to make; may exist if it is empty.

    Yields:
        The folder to write to.

    Raises:
        UserError: the path holds something, or cannot be written.
    """
    path = Path(path).expanduser().absolute()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.incomplete")
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(
                f"{path} exists already and is not an empty folder",
                "choose another --out, or move it away",
            )
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
        raise UserError(
            f"cannot write {path}: {error.strerror or error}",
            "choose a folder that can be written and has free space",
        ) from error
