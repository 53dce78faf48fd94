"""Coarse-grained mask: the share of MVO pixels in each block of an LGE mask (paper Eq. 1)."""

from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from mvo_jax.data.labels import MVO

if TYPE_CHECKING:
    import jax

ArrayT = TypeVar("ArrayT", np.ndarray, "jax.Array")


def coarse_mask(lge_mask: ArrayT, mask_size: int) -> ArrayT:
    """Coarse-grain MVO masks to m x m blocks.

    Blocks have side ceil(n / m); where m does not divide n, zeros are appended at the bottom and
    right, as the paper says. Numpy arrays and jitted JAX arrays give bit-identical results.

    Args:
        lge_mask: ``[..., n, n]``, see ``labels``.
        mask_size: m, 1 to n; m == n returns the raw MVO mask.

    Returns:
        float32 ``[..., m, m]`` in [0, 1].

    Raises:
        ValueError: the mask is not square, or ``mask_size`` is not in 1 to n.
    """
    xnp: Any = np
    if not isinstance(lge_mask, np.ndarray):
        import jax.numpy as xnp  # splits and pages do without JAX
    *lead, height, width = lge_mask.shape
    if height != width:
        raise ValueError(f"the LGE mask must be square, not {height}x{width}")
    if not 1 <= mask_size <= height:
        raise ValueError(f"mask_size must be 1 to {height}, not {mask_size}")
    block = -(-height // mask_size)
    pad = block * mask_size - height
    mvo = xnp.pad(lge_mask == MVO, [(0, 0)] * len(lead) + [(0, pad), (0, pad)])
    blocks = mvo.reshape(*lead, mask_size, block, mask_size, block)
    count = blocks.sum(axis=(-3, -1), dtype=xnp.int32)
    # A table of quotients, because XLA replaces division by a constant with a product.
    share = np.arange(block * block + 1, dtype=np.float32) / np.float32(block * block)
    return cast(ArrayT, xnp.asarray(share)[count])
