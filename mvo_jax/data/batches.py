"""Which cases are in the batch of step k: a pure function of (seed, k).

A resumed run needs no iterator state, and the sample stream is the same for any number of devices
and processes.
"""

import numpy as np


def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """A permutation from raw Philox bits, which numpy keeps stable across versions."""
    bits = np.random.Philox(key=[seed, epoch]).random_raw(size)
    return np.argsort(bits, kind="stable").astype(np.int32)


def batch_indices(seed: int, step: int, *, num_cases: int, batch_size: int) -> np.ndarray:
    """Indices of the cases in one training batch, int32 ``[batch_size]``.

    The stream of cases is one permutation of the split after another; batch k holds positions
    k * batch_size to (k + 1) * batch_size - 1, so no case is left out at the end of an epoch.

    Args:
        seed: of the run, 0 or greater.
        step: from 0.
        batch_size: over all devices.

    Raises:
        ValueError: an empty split or batch.
    """
    if num_cases < 1 or batch_size < 1:
        raise ValueError(f"cannot draw a batch of {batch_size} from {num_cases} cases")
    position = step * batch_size + np.arange(batch_size)
    epoch, offset = np.divmod(position, num_cases)
    permutations = {e: _permutation(seed, int(e), num_cases) for e in np.unique(epoch)}
    return np.array([permutations[e][o] for e, o in zip(epoch, offset, strict=True)], np.int32)
