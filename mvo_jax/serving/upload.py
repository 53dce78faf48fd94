"""Files as they arrive: each path and each length is checked before anything is written."""

import contextlib
import io
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mvo_jax.data.importers.cine import printable
from mvo_jax.serving.refusal import Refusal

MAX_BYTES = 2 << 30  # of an upload, and of what a .zip holds
MAX_FILES = 20_000
_ROOM_BYTES = 256 << 20  # of the disk that stays free
_CHUNK = 1 << 20


class Upload:
    """One drop: files in a folder, sent by several requests at a time."""

    def __init__(self, folder: Path):
        self.folder, self._disk = folder, next(p for p in folder.parents if p.is_dir())
        self._lock = threading.Lock()
        self.files, self._bytes, self._writing = 0, 0, 0  # those being sent are counted
        self._sealed, self._deleted = False, False

    def receive(self, name: str, stream: io.BufferedIOBase, length: int) -> None:
        """Store one file.

        Args:
            name: path relative to what was dropped, ``/`` between its parts.
            stream: of which ``length`` bytes are read.
            length: of the file.

        Raises:
            Refusal: a path that could lead out of the folder or that is there already, too many
                bytes or files, a full disk, a drop that is sealed or deleted, or a stream that ends
                early. Nothing of the file stays.
        """
        path = self._reserve(name, length)
        left = length
        try:
            with path.open("wb") as file:
                while left and (chunk := stream.read(min(left, _CHUNK))):
                    try:
                        left -= file.write(chunk)
                    except OSError as error:
                        cause = f"{printable(name)} cannot be stored ({error.strerror})"
                        raise Refusal(507, cause, "free some space") from error
        finally:
            with self._lock:
                self._writing -= 1
                if left:  # the file never was there: neither are its bytes
                    self.files, self._bytes = self.files - 1, self._bytes - length
                if left or self._deleted:
                    path.unlink(missing_ok=True)
        if self._deleted:
            raise Refusal(409, "these images were deleted", "drop them again")
        if left:
            raise Refusal(400, f"{printable(name)} ended early", "drop it again")

    def _reserve(self, name: str, length: int) -> Path:
        """An empty file in its place, and its length counted."""
        parts = _parts(name)
        with self._lock:
            if self._sealed or self._deleted:
                raise Refusal(409, "images are here already", "delete them first")
            if self.files >= MAX_FILES or self._bytes + length > MAX_BYTES:
                raise Refusal(
                    413,
                    f"more than {MAX_BYTES >> 20} MB or {MAX_FILES} files",
                    "drop one patient at a time, or use: python -m mvo_jax predict",
                )
            if shutil.disk_usage(self._disk).free < length + _ROOM_BYTES:
                raise Refusal(507, "the disk is full", "free some space")
            path = self.folder.joinpath(*parts)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(exist_ok=False)
            except OSError as error:
                cause = f"{printable(name)} cannot be stored ({error.strerror})"
                raise Refusal(409, cause, "drop it once, under another name") from error
            self.files, self._bytes = self.files + 1, self._bytes + length
            self._writing += 1
            return path

    def seal(self) -> None:
        """Take no more files, they are going to be read; Refusal where not all are there."""
        with self._lock:
            if not self.files or self._writing or self._sealed or self._deleted:
                raise Refusal(409, "no images are waiting", "drop some first")
            self._sealed = True

    def delete(self) -> None:
        """Delete all of it, and take no more; a file that is just being sent does not stay."""
        with self._lock:
            self._deleted = True
            shutil.rmtree(self.folder, ignore_errors=True)


def _parts(name: str) -> Sequence[str]:
    """The parts of a dropped file's path, unless it could mean another place."""
    parts = name.split("/")
    with contextlib.suppress(UnicodeEncodeError):
        sound = (
            PurePosixPath(name).parts == tuple(parts)
            and len(name.encode()) <= 1024
            and len(parts) <= 16
            and all(len(part.encode()) <= 200 for part in parts)
            and not any(part in (".", "..") or set(part) & set("\\:\0\r\n") for part in parts)
            and name[:1] != "/"
        )
        if sound:
            return parts
    raise Refusal(400, f"{printable(name)[:80]!r} is no name for a file", "rename it")
