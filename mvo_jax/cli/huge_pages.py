"""Large arrays in huge pages: malloc reads how when a process starts, so the process starts again.

XLA takes the memory of a step's intermediate results from malloc and gives it back after the step.
In pages of 4 kB that is a million page faults for the full network; in pages of 2 MB the step takes
15 to 20 % less time (docs/decisions.md). Linux gives huge pages to those who ask, if it is set to
``madvise``, the default of most distributions; glibc asks if a tunable says so.
"""

import contextlib
import os
import platform
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb"
OPT_OUT = "MVO_JAX_KEEP_MALLOC"
FIRST_GLIBC = (2, 35)  # the first to know the tunable
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def ask_for_huge_pages(environment: MutableMapping[str, str]) -> bool:
    """Set glibc's tunable for the next process where it has an effect; returns whether it does.

    Nothing is changed when the variable ``MVO_JAX_KEEP_MALLOC`` is set, when the tunable is in
    GLIBC_TUNABLES already, with another C library or an older glibc, or where the system gives huge
    pages to everybody or to nobody. Changes ``environment`` in place.
    """
    tunables = environment.get("GLIBC_TUNABLES", "")
    if environment.get(OPT_OUT) or TUNABLE in tunables or not _helps():
        return False
    environment["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, f"{TUNABLE}=1"]))
    return True


def _helps() -> bool:
    library, version = platform.libc_ver()
    try:
        known = library == "glibc" and tuple(map(int, version.split("."))) >= FIRST_GLIBC
        return known and "[madvise]" in SETTING.read_text()
    except (OSError, ValueError):  # no Linux, or a version that is no number
        return False


def restart(environment: Mapping[str, str]) -> None:
    """Replace this process by the same command in another environment, where it may be started."""
    with contextlib.suppress(OSError):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def restart_with_huge_pages() -> None:
    """Replace this process by the same command with the tunable set, once and where it helps.

    To be called before anything is imported that takes time. The process keeps its number, so
    schedulers and parents notice nothing.
    """
    environment = dict(os.environ)
    if ask_for_huge_pages(environment):
        restart(environment)
