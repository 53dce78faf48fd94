"""Files of a source, in a fixed order, through links but never in circles."""

import itertools
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from mvo_jax.data.importers.cine import Importer, Options, Series, printable
from mvo_jax.data.slices import CineSlice
from mvo_jax.errors import UserError

# In the name of a drawing, whatever its pattern.
DRAWING_WORDS = r"(?<![a-z])(?:masks?|seg|segmentation|labels?|mvo|scar|gt|roi|contours?)(?![a-z])"


def fault(path: object, says: str, remedy: str) -> UserError:
    """What is wrong with a file or folder, as an error that begins with its path."""
    return UserError(f"{printable(path)}{says}", remedy)


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
            names = sorted(name for name in os.listdir(current) if not name.startswith("."))
        except OSError as error:
            cause = f"the folder {printable(current)} cannot be listed ({error.strerror})"
            raise UserError(cause, "check its permissions") from error
        for path in (current / name for name in names):
            try:
                mode = path.stat().st_mode
            except OSError:  # a lost link, or one that points at itself: opening it will say so
                mode = stat.S_IFREG
            if stat.S_ISDIR(mode):
                yield from walk(path)
            elif stat.S_ISREG(mode):  # to open a pipe or device might never return
                yield path

    return walk(folder)


def subfolders(folder: Path) -> list[Path]:
    """Folders directly below a folder, sorted; hidden ones are left out."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def what_is_there(source: Path) -> str:
    """Kinds of files below a source, for a message."""
    if source.is_file():
        return f"the file {printable(source.name)}"
    suffixes = (
        "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
        for path in itertools.islice(files_below(source), 2000)
    )
    counts = Counter(suffix.lower() or "(no suffix)" for suffix in suffixes)
    return ", ".join(f"{n} {printable(kind)}" for kind, n in counts.most_common(6)) or "no file"


def of_named_files(
    name: str, title: str, pattern: str, load: Callable[[Series, Options], list[CineSlice]]
) -> Importer:
    """An importer of files by a pattern of the end of a path; its first group is the patient."""
    expression = re.compile(rf"(?:^|/){pattern}\Z")

    def find(source: Path, _: Options | None = None) -> Iterator[Series]:
        for path in files_below(source):
            if match := expression.search(path.as_posix()):
                yield Series(match[1], path, match[1])

    return Importer(name, title, lambda source: source.is_dir() and any(find(source)), find, load)


def of_single_files(
    name: str, title: str, suffix: str, load: Callable[[Series, Options], list[CineSlice]]
) -> Importer:
    """An importer of files with a suffix (with its dot, in small letters), each a series."""

    def recognise(source: Path) -> bool:
        files = [source] if source.is_file() else files_below(source)
        return any(path.suffix.lower() == suffix for path in files)

    def find(source: Path, _: Options) -> Iterator[Series]:
        for path in [source] if source.is_file() else files_below(source):
            if path == source:  # whatever its suffix
                yield Series(source.stem, source)
            elif path.suffix.lower() == suffix:
                yield Series("_".join(path.relative_to(source).with_suffix("").parts), path)

    return Importer(name, title, recognise, find, load)
