"""XLA's programs kept between commands: a start that compiled once takes them from disk."""

import hashlib
import importlib.metadata
import platform
import zlib
from collections.abc import MutableMapping
from pathlib import Path

FOLDER = "JAX_COMPILATION_CACHE_DIR"  # JAX's own variable; set to nothing it switches the cache off
_MIN_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_CHECKED = ".checked"


def configure_cache(environment: MutableMapping[str, str]) -> None:
    """Choose a folder for compiled programs, unless the environment names one.

    One folder a processor type and jaxlib version: a home directory is shared by machines, and code
    for a newer processor ends the process on an older one.

    Args:
        environment: changed in place; normally ``os.environ``.
    """
    if FOLDER not in environment:
        home = environment.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
        version = importlib.metadata.version("jaxlib")
        folder = Path(home) / "mvo_jax" / f"xla-{version}-{_processor()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # a read-only home: compile each time
            return
        environment[FOLDER] = str(folder)
        environment.setdefault(_MIN_SECONDS, "0.3")
    if environment[FOLDER]:
        remove_damaged(Path(environment[FOLDER]))


def remove_damaged(folder: Path) -> int:
    """Remove entries that a kill cut short; JAX would warn of them and compile at every start.

    Only what is newer than the last check is read.

    Args:
        folder: of the cache; may be missing.

    Returns:
        How many were removed.
    """
    mark, removed = folder / _CHECKED, 0
    try:
        since = mark.stat().st_mtime_ns if mark.exists() else 0
        # Marked first: what is written meanwhile is looked at next time.
        mark.touch()
        for entry in folder.glob("*-cache"):
            if entry.stat().st_mtime_ns >= since and not _is_whole(entry.read_bytes()):
                entry.unlink()
                removed += 1
    except OSError:  # not there, not ours, or another process tidies up
        pass
    return removed


def _is_whole(content: bytes) -> bool:
    if not content.startswith(b"\x78"):  # zstandard, where it is installed: not for zlib to tell
        return bool(content)
    inflate = zlib.decompressobj()
    try:
        inflate.decompress(content)
    except zlib.error:
        return False
    return inflate.eof


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:12]
