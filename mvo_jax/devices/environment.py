"""What must be in the environment before JAX is imported; this module imports no JAX."""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
import zlib
from collections.abc import Mapping, MutableMapping
from pathlib import Path

# models.ops.lowerings.FAST_CPU_CONVOLUTION_FLAG, repeated because that module imports JAX.
FAST_CPU_CONVOLUTION_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
# XLA ends the process on a flag it does not know, so the flag is set only where it was tried.
TRIED_JAXLIB = ("0.10.", "0.11.", "0.12.")
OPT_OUT = "MVO_JAX_KEEP_XLA_FLAGS"
FOLDER = "JAX_COMPILATION_CACHE_DIR"  # JAX's own variable; set to nothing it switches the cache off


def configure(environment: MutableMapping[str, str]) -> None:
    """Set XLA's flags, and a folder for compiled programs unless the environment names one.

    One folder a processor type and jaxlib version: a home directory is shared by machines, and code
    for a newer processor ends the process on an older one. Changes ``environment`` in place.
    """
    if importlib.util.find_spec("jaxlib") is None:  # bundles predict without it
        return
    configure_xla(environment)
    if FOLDER not in environment:
        version = importlib.metadata.version("jaxlib")
        try:
            home = environment.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
            folder = Path(home) / "mvo_jax" / f"xla-{version}-{_features()}"
            folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(folder, os.W_OK)
        except (OSError, RuntimeError):  # a read-only home, or a user without any
            return
        if not writable:  # compile each time
            return
        environment[FOLDER] = str(folder)
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    if environment[FOLDER]:
        remove_damaged(Path(environment[FOLDER]))


def configure_in_time() -> None:
    """``configure`` this process as far as JAX will still read it.

    For programs that import the package, as a notebook: a command calls ``configure`` first.
    """
    if "jax" not in sys.modules:
        configure(os.environ)
    elif not sys.modules["jax._src.xla_bridge"].backends_are_initialized():
        configure_xla(os.environ)  # read when the first array is made; the cache at the import


def configure_xla(environment: MutableMapping[str, str]) -> None:
    """Add the flag that makes 2-D convolutions on a CPU 1.7 times faster in training.

    It changes which kernel runs, and results by rounding only (1e-5). Other backends ignore it.
    Nothing is changed when the variable ``MVO_JAX_KEEP_XLA_FLAGS`` is set, when the flag's name is
    in XLA_FLAGS already, or with a jaxlib it was not tried on. Changes ``environment`` in place.
    """
    flags = environment.get("XLA_FLAGS", "")
    name = FAST_CPU_CONVOLUTION_FLAG.split("=")[0]
    tried = importlib.metadata.version("jaxlib").startswith(TRIED_JAXLIB)
    if tried and name not in flags and not environment.get(OPT_OUT):
        environment["XLA_FLAGS"] = f"{flags} {FAST_CPU_CONVOLUTION_FLAG}".strip()


def why_xla_refuses(environment: Mapping[str, str]) -> str:
    """What XLA has against XLA_FLAGS, with which it would abort the process; empty for nothing.

    Only XLA knows its flags. It is asked in a process of its own, a sixth of a second, and only
    where somebody has set the variable.
    """
    if environment.get("XLA_FLAGS", "").strip() in ("", FAST_CPU_CONVOLUTION_FLAG):
        return ""
    asked = subprocess.run(
        [sys.executable, "-c", "from jaxlib import xla_client; xla_client.CompileOptions()"],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    said = re.search("(Unknown flag|Couldn't interpret value|Could not open file).*", asked.stderr)
    return said[0] if asked.returncode and said else ""


def remove_damaged(folder: Path) -> int:
    """Remove entries that a kill cut short; JAX would warn of them and compile at every start.

    Only what is newer than the last check is read; the folder may be missing. Returns how many were
    removed.
    """
    mark, removed = folder / ".checked", 0
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


def processor() -> str:
    """Model of the processor: XLA compiles for it, so another one may round otherwise."""
    if line := _cpu_line("model name"):
        return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _features() -> str:
    """What tells processors apart that cannot run each other's code."""
    features = _cpu_line("flags", "Features")
    features = platform.processor() if features is None else features
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:12]


def _cpu_line(*begins: str) -> str | None:
    """The first line of Linux about its processors that begins so."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    return next((line for line in lines if line.startswith(begins)), None)
