"""Files of a source, in a fixed order, through links but never in circles."""

import itertools
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path

from mvo_jax.data.importers.cine import Importer, Options, Series, printable
from mvo_jax.data.slices import CineSlice
from mvo_jax.errors import UserError

# In the name of a drawing, whatever its pattern.
DRAWING_WORDS = r"(?<![a-z])(?:masks?|seg|segmentation|labels?|mvo|scar|gt|roi|contours?)(?![a-z])"


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, sorted by path; hidden ones, pipes and devices are left out.

    Links to folders are followed, each real folder once, so a loop ends.

    Raises:
        UserError: a folder cannot be listed.
    """
    seen: set[tuple[int, int]] = set()

    def walk(current: Path) -> Iterator[Path]:
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in seen:
                return
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(current) as listing:
                entries = sorted(
                    (e for e in listing if not e.name.startswith(".")), key=attrgetter("name")
                )
        except OSError as error:
            cause = f"the folder {printable(current)} cannot be listed ({error.strerror})"
            raise UserError(cause, "check its permissions") from error
        for entry in entries:
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link that points at itself: opening the file will say so
                is_folder = False
            if is_folder:
                yield from walk(current / entry.name)
            elif not _is_special(current / entry.name):
                yield current / entry.name

    return walk(folder)


def _is_special(path: Path) -> bool:
    """A pipe, socket or device, which to open might never return. A lost link is none."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def subfolders(folder: Path) -> list[Path]:
    """Folders directly below a folder, sorted; hidden ones are left out."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def what_is_there(source: Path, limit: int = 2000) -> str:
    """Kinds of files below a source, for a message."""
    if source.is_file():
        return f"the file {printable(source.name)}"
    suffixes = (
        "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
        for path in itertools.islice(files_below(source), limit)
    )
    counts = Counter(suffix.lower() or "(no suffix)" for suffix in suffixes)
    listed = (f"{n} {printable(suffix)}" for suffix, n in counts.most_common(6))
    return ", ".join(listed) or "no file"


def of_named_files(
    name: str, title: str, pattern: str, load: Callable[[Series, Options], list[CineSlice]]
) -> Importer:
    """An importer of files whose names say who is the patient.

    Args:
        name: of the importer, as are ``title`` and ``load``; ``Series.path`` is the file.
        pattern: regular expression of the end of a path; its first group is the patient.
    """
    expression = re.compile(rf"(?:^|/){pattern}\Z")

    def found(source: Path) -> Iterator[Series]:
        for path in files_below(source):
            if match := expression.search(path.as_posix()):
                yield Series(match[1], path, match[1])

    def recognise(source: Path) -> bool:
        return source.is_dir() and any(True for _ in found(source))

    def find(source: Path, options: Options) -> Iterator[Series]:
        del options
        return found(source)

    return Importer(name, title, recognise, find, load)


def of_single_files(
    name: str, title: str, suffix: str, load: Callable[[Series, Options], list[CineSlice]]
) -> Importer:
    """An importer of files with a suffix, each a series that is named after its path.

    Args:
        name: of the importer, as are ``title`` and ``load``; ``Series.path`` is the file.
        suffix: with its dot, in small letters.
    """

    def recognise(source: Path) -> bool:
        files = [source] if source.is_file() else files_below(source)
        return any(path.suffix.lower() == suffix for path in files)

    def find(source: Path, options: Options) -> Iterator[Series]:
        del options
        if source.is_file():
            yield Series(source.stem, source)
            return
        for path in files_below(source):
            if path.suffix.lower() == suffix:
                yield Series("_".join(path.relative_to(source).with_suffix("").parts), path)

    return Importer(name, title, recognise, find, load)
