"""What to do when a batch does not fit: the largest one that does, from compiled sizes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvo_jax.errors import EXIT_OUT_OF_MEMORY, UserError

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA, or the host, had no memory left."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def device_bytes(device: Any) -> int:
    """Memory that a program may take: of the accelerator, or of the host and its container."""
    statistics = device.memory_stats() or {}
    if "bytes_limit" in statistics:
        return int(statistics["bytes_limit"])
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(host, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return host


def program_bytes(compiled: Any) -> int:
    """Memory of a compiled program: arguments, results and what it needs in between."""
    sizes = compiled.memory_analysis()
    kept = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return kept + sizes.temp_size_in_bytes


def largest_batch(
    bytes_of: Callable[[int], int], *, failed: int, multiple: int, limit: int
) -> int | None:
    """The largest batch that fits, from a line through two compiled sizes; None where none does.

    Args:
        bytes_of: memory of the step at a batch size, without running it.
        failed: batch size that did not fit.
        multiple: of which a batch size must be a multiple: the number of devices.
        limit: bytes there are.
    """
    small = max(failed // 4 // multiple, 1) * multiple
    at_small = bytes_of(small)
    slope = (bytes_of(2 * small) - at_small) / small
    fits = small + int((limit - at_small) // slope) if slope > 0 else failed
    fits = min(fits, failed - 1) // multiple * multiple
    return fits if fits >= multiple else None


def too_large(batch: int, fits: int | None, limit: int, what: str) -> UserError:
    """The message for a batch that did not fit into ``limit`` bytes.

    ``fits`` is the largest that does, None if none does or it is not known; ``what`` is the config
    key of the batch size.
    """
    remedy = f"lower {what}, or take a device with more memory"
    if fits:
        remedy = f"by the sizes of the compiled program {fits} fits: set {what}={fits}"
    return UserError(
        f"out of memory: a batch of {batch} does not fit into the {limit / 1e9:.1f} GB of a device",
        remedy,
        exit_code=EXIT_OUT_OF_MEMORY,
    )
