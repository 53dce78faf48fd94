"""Files that are written as a whole or not at all. Every room may import this module."""

import os
from pathlib import Path

from mvo_jax.errors import UserError


def replace_file(path: str | os.PathLike, text: str) -> None:
    """Writes ``text`` as UTF-8 so that readers see the old file or the new one, never a part.

    Args:
        path: file to write; missing parent folders are made.
        text: the whole content; line ends are kept as given.

    Raises:
        UserError: the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}",
            "choose a folder that can be written and has free space",
        ) from error
