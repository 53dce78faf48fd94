"""What both kinds of stored cohorts share: files checked by their hashes, quiet TFDS, progress."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tqdm

from mvo_jax.errors import UserError
from mvo_jax.files import sha256

_SECONDS_BETWEEN_LINES = 10

logger = logging.getLogger(__name__)


def hashes(folder: Path, paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Size and sha256 of files by their path below a folder, as they are stored in JSON."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in paths
    }


def check_files(
    folder: Path,
    files: Mapping[str, Mapping[str, Any]],
    damaged: Callable[[Path, str, str], UserError],
) -> None:
    """Check that all are there in full size, and what small ones hold; cases are, when read.

    Args:
        files: as ``hashes`` gave them.
        damaged: the error for (folder, name of the file, what is wrong with it).
    """
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise damaged(folder, name, "is missing")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise damaged(folder, name, f"has {size} bytes instead of {entry['bytes']}")
        if path.suffix == ".json":
            check_content(folder, name, files, damaged)


def check_content(
    folder: Path,
    name: str,
    files: Mapping[str, Mapping[str, Any]],
    damaged: Callable[[Path, str, str], UserError],
) -> None:
    """Check the content of one file, see ``check_files``."""
    if sha256(folder / name) != files.get(name, {}).get("sha256"):
        raise damaged(folder, name, "has changed since it was written")


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Keep TFDS from printing, warning of custom configurations and drawing its own bars."""
    import absl.logging
    import tensorflow_datasets as tfds

    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
            yield
    finally:
        tfds.enable_progress_bar()
        absl.logging.set_verbosity(verbosity)


@contextlib.contextmanager
def progress(title: str, unit: str, *, total: int | None = None) -> Iterator[Callable[..., None]]:
    """``advance(**other_counts)`` after each of many: a bar on a terminal, log lines elsewhere.

    Args:
        total: how many there are, for a line every tenth; else there is one every ten seconds.
    """
    lines = not sys.stderr.isatty()
    started = last = time.monotonic()
    done = 0
    with tqdm.tqdm(total=total, desc=title, unit=unit, disable=lines) as bar:

        def advance(**counts: int) -> None:
            nonlocal last, done
            done += 1
            bar.update()
            bar.set_postfix(counts, refresh=False)
            now, of = time.monotonic(), ""
            due = now - last >= _SECONDS_BETWEEN_LINES
            if total is not None:
                due, of = done * 10 // total > (done - 1) * 10 // total, f"/{total}"
            if lines and due:
                last = now
                more = "".join(f", {n} {name}" for name, n in counts.items())
                logger.info(f"{title}: {done}{of} {unit}{more}, {now - started:.0f} s")

        yield advance
