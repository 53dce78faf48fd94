"""A ``.zip`` as a source, unpacked without trusting it."""

import contextlib
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mvo_jax.data.importers.cine import printable
from mvo_jax.data.importers.walk import fault
from mvo_jax.errors import UserError

_MAX_BYTES = 1 << 40  # unpacked; free space on the disk is the tighter limit
_MAX_RATIO = 200  # of unpacked to packed; images reach 20, bombs 1000 and more
_MAX_NAMES = 10_000_000
_BY_HAND = "unpack it yourself and give the folder"


def unpack(
    source: Path, scratch: Path, *, limit: int = _MAX_BYTES, most_names: int = _MAX_NAMES
) -> Path:
    """The folder to read: the source itself, or ``scratch``, made anew, where it is a ``.zip``.

    Of that at most ``limit`` bytes and ``most_names`` files and folders are unpacked.

    Raises:
        UserError: the archive is damaged, holds paths that lead out of it, links, encrypted or
            duplicate names, or would not fit on the disk.
    """
    if source.suffix.lower() != ".zip" or not source.is_file():
        return source
    done = scratch / ".unpacked"
    if done.is_file():  # by an earlier run that was interrupted later
        return scratch
    try:
        with zipfile.ZipFile(source) as archive:
            items = archive.infolist()
            for item in items:  # as some programs of Windows write them
                item.filename = item.filename.replace("\\", "/")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            if len(items) > most_names:
                says = f" holds {len(items):,} files, more than {most_names:,}"
                raise fault(source, says, _BY_HAND)
            _check(source, items, min(limit, shutil.disk_usage(scratch).free))
            for item in items:
                archive.extract(item, scratch)
            done.touch()
    except Exception as error:
        shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(error, zipfile.BadZipFile | zlib.error | EOFError | NotImplementedError):
            raise fault(source, f" is no sound .zip ({error})", "copy it again") from error
        if isinstance(error, OSError):
            says = f" cannot be unpacked to {printable(scratch)} ({error.strerror or error})"
            raise fault(source, says, f"free some space, or {_BY_HAND}") from error
        raise
    return scratch


@contextlib.contextmanager
def named_after(source: Path, folder: Path) -> Iterator[None]:
    """Have errors name the archive that was given, not the folder ``unpack`` made of it."""
    try:
        yield
    except UserError as error:
        cause = renamed(error.cause, folder, source)
        raise UserError(cause, error.remedy, exit_code=error.exit_code) from error


def renamed(text: str, folder: Path, source: Path) -> str:
    """A message or path with the unpacked folder called by its archive's name."""
    return text if folder == source else text.replace(printable(folder), printable(source))


def _check(source: Path, items: list[zipfile.ZipInfo], free: int) -> None:
    total, seen, packed = 0, set(), source.stat().st_size
    for item in items:
        path, name = PurePosixPath(item.filename), f"{printable(item.filename)!r}"
        if path.is_absolute() or ".." in path.parts or ":" in item.filename:
            raise fault(source, f" holds the path {name}, which leads out of it", _BY_HAND)
        if stat.S_ISLNK(item.external_attr >> 16):
            raise fault(source, f" holds the link {name}", _BY_HAND)
        if item.flag_bits & 1:
            raise fault(source, " is encrypted", _BY_HAND)
        if path in seen:
            raise fault(source, f" holds {name} twice", _BY_HAND)
        seen.add(path)
        total += item.file_size
    if total > max(packed * _MAX_RATIO, 1 << 24):
        times = total // max(packed, 1)
        raise fault(source, f" would unpack to {total:,} bytes, {times} times its size", _BY_HAND)
    if total > free:
        says = f" would unpack to {total:,} bytes; there is room for {free:,}"
        raise fault(source, says, _BY_HAND)
