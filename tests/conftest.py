"""Eight simulated devices for every test, set before JAX is imported, and fixtures of all rooms."""

import ctypes
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mvo_jax.devices.environment import configure_xla

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
# JAX 0.10 sizes the thread pool that collectives wait in by the number of cores.
os.environ.setdefault("NPROC", "16")
configure_xla(os.environ)
# Under nohup it is ignored, and so by the processes that tests start and send it to.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _compile_each_program_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Most tests start a new run of one network; XLA takes longer than the steps.

    The workers of pytest-xdist share a folder; JAX locks it where its size is limited.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_compilation_cache_max_size", 2**32)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module", autouse=True)
def _release_programs() -> Iterator[None]:
    """A worker that keeps the programs and arrays of all its modules grows to several GB."""
    yield
    if jax := sys.modules.get("jax"):
        jax.clear_caches()
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc alone has it
            trim(0)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """``tiny_config(**{"train.total_steps": 5})``: the paper's config in small."""
    from tests.small_run import make_tiny_config

    return make_tiny_config


@pytest.fixture(scope="session")
def random_split() -> Callable[..., Any]:
    """``random_split(cases=16)``: noise with labels."""
    from tests.small_run import make_random_split

    return make_random_split


@pytest.fixture(scope="session")
def on_disk() -> Callable[..., Any]:
    """The same cases, streamed. Reading TFDS files is tested in tests/data/test_stream.py."""
    from tests.small_run import make_on_disk

    return make_on_disk


_PEAKS: dict[str, float] = {}  # process of the tests -> GB


def _peak_gb() -> float:
    """Largest memory of this process so far; ``ru_maxrss`` is in kB, on macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist sends its peak to the process that prints."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["peak_gb"] = _peak_gb()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the peak of a worker that has finished."""
    _PEAKS[node.gateway.id] = getattr(node, "workeroutput", {}).get("peak_gb", float("nan"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the peaks: a worker that grows to 6 GB is too much for two on a small machine."""
    peaks = _PEAKS or {"this process": _peak_gb()}
    text = ", ".join(f"{name} {peak:.1f} GB" for name, peak in sorted(peaks.items()))
    terminalreporter.write_line(f"peak memory: {text}")
