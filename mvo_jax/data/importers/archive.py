"""A ``.zip`` as a source, unpacked without trusting it."""

import contextlib
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mvo_jax.data.importers.cine import printable
from mvo_jax.errors import UserError

MAX_ARCHIVE_BYTES = 1 << 40  # unpacked; free space on the disk is the tighter limit
_MAX_RATIO = 200  # of unpacked to packed; images reach 20, bombs 1000 and more
_MAX_NAMES = 10_000_000


def unpack(
    source: Path, scratch: Path, *, limit: int = MAX_ARCHIVE_BYTES, most_names: int = _MAX_NAMES
) -> Path:
    """The folder to read: the source itself, or where a ``.zip`` was unpacked to.

    Args:
        source: folder, image file or ``.zip``.
        scratch: where an archive is unpacked to; made anew.
        limit: most bytes of its content.
        most_names: most files and folders in it.

    Raises:
        UserError: the archive is damaged, holds paths that lead out of it, links, encrypted or
            duplicate names, or would not fit on the disk.
    """
    if source.suffix.lower() != ".zip" or not source.is_file():
        return source
    name, done = printable(source), scratch / ".unpacked"
    if done.is_file():  # by an earlier run that was interrupted later
        return scratch
    try:
        with _emptied_on_errors(scratch), zipfile.ZipFile(source) as archive:
            items = archive.infolist()
            for item in items:  # as some programs of Windows write them
                item.filename = item.filename.replace("\\", "/")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            free = min(limit, shutil.disk_usage(scratch).free)
            if len(items) > most_names:
                cause = f"{name} holds {len(items):,} files, more than {most_names:,}"
                raise UserError(cause, "unpack it yourself and give the folder")
            _check(name, items, source.stat().st_size, free)
            for item in items:
                archive.extract(item, scratch)
            done.touch()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{name} is no sound .zip ({error})", "copy it again") from error
    except OSError as error:
        raise UserError(
            f"{name} cannot be unpacked to {printable(scratch)} ({error.strerror or error})",
            "free some space, or unpack it yourself and give the folder",
        ) from error
    return scratch


@contextlib.contextmanager
def _emptied_on_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def named_after(source: Path, folder: Path) -> Iterator[None]:
    """Have errors name the archive that was given, not the folder ``unpack`` made of it."""
    try:
        yield
    except UserError as error:
        raise UserError(
            renamed(error.cause, folder, source), error.remedy, exit_code=error.exit_code
        ) from error


def renamed(text: str, folder: Path, source: Path) -> str:
    """A message or path with the unpacked folder called by its archive's name."""
    return text if folder == source else text.replace(printable(folder), printable(source))


def _check(name: str, items: list[zipfile.ZipInfo], packed: int, free: int) -> None:
    def bad(cause: str) -> UserError:
        return UserError(f"{name} {cause}", "unpack it yourself and give the folder")

    total, seen = 0, set()
    for item in items:
        path = PurePosixPath(item.filename)
        if path.is_absolute() or ".." in path.parts or ":" in item.filename:
            raise bad(f"holds the path {printable(item.filename)!r}, which leads out of it")
        if stat.S_ISLNK(item.external_attr >> 16):
            raise bad(f"holds the link {printable(item.filename)!r}")
        if item.flag_bits & 1:
            raise bad("is encrypted")
        if path in seen:
            raise bad(f"holds {printable(item.filename)!r} twice")
        seen.add(path)
        total += item.file_size
    if total > max(packed * _MAX_RATIO, 1 << 24):
        raise bad(f"would unpack to {total:,} bytes, {total // max(packed, 1)} times its size")
    if total > free:
        raise bad(f"would unpack to {total:,} bytes; there is room for {free:,}")
