"""Batches of a split that stays on disk, read ahead of the device by Grain."""

from collections.abc import Callable, Generator

import numpy as np

from mvo_jax.data.splits import StreamedSplit

_READING_THREADS = 2  # one already decodes 1200 clips/s; the second hides the disk's latency


def read_batches(
    split: StreamedSplit, indices_of: Callable[[int], np.ndarray], steps: range, *, ahead: int
) -> Generator[dict[str, np.ndarray], None, None]:
    """Read the batches of some steps in order, a few of them before they are asked for.

    Nothing is shuffled here: which cases a batch holds is the caller's choice, so a stream that
    starts at any step gives what an uninterrupted one gives there.

    Args:
        indices_of: from a step to the int ``[B]`` cases of its batch.
        ahead: batches in host memory beside the one in use, at least 1.

    Yields:
        'video' uint8 ``[B, T, H, W, 1]``, 'lge_mask' uint8 ``[B, H, W]`` and 'label' int32 ``[B]``.
    """
    import grain  # takes a second, and splits in memory do without it

    def read(step: int) -> dict[str, np.ndarray]:
        indices = indices_of(step)
        return {**split.read(indices), "label": split.label[indices]}

    # Explicit, because Grain's default keeps 500 batches in memory.
    options = grain.ReadOptions(num_threads=_READING_THREADS, prefetch_buffer_size=ahead)
    of_step = grain.MapDataset.range(steps.start, steps.stop, steps.step).map(read)
    batches = iter(of_step.to_iter_dataset(options))
    try:
        yield from batches
    finally:
        batches.close()  # a caller may leave before the end: reading stops then
