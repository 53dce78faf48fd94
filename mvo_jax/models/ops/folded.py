"""Convolutions on clips whose neighbouring columns are kept in the channels.

A TPU stores the last axis in rows of 128 numbers and multiplies matrices of 128x128: 64 channels
take the memory of 128 and use half of the unit, 144 take that of 256. Two columns side by side make
128 and 288 (stored as 384) of them. The kernel of such a convolution holds every number of the
plain one once for each column of the output, and zeros elsewhere; the function is the same.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def fold_columns(x: Array, fold: int) -> Array:
    """``[B, T, H, W, C]`` to ``[B, T, H, W / fold, fold * C]``, the left column first."""
    *rest, width, channels = x.shape
    return x.reshape(*rest, width // fold, fold * channels)


def unfold_columns(x: Array, fold: int) -> Array:
    """The inverse of ``fold_columns``."""
    *rest, groups, channels = x.shape
    return x.reshape(*rest, groups * fold, channels // fold)


def folded_convolution(
    x: Array,
    kernel: Array,
    *,
    strides: tuple[int, int, int],
    padding: tuple[int, int, int],
    fold_in: int,
    fold_out: int,
) -> Array:
    """The 3-D convolution of folded clips.

    Args:
        x: ``[B, T, H, W / fold_in, fold_in * C]``.
        kernel: ``[kt, kh, kw, C, F]`` of the plain convolution.
        strides: in time, rows and columns.
        padding: zeros on each side in time, rows and columns.
        fold_in: columns in the channels of ``x``.
        fold_out: columns in the channels of the result.

    Returns:
        ``[B, T', H', W' / fold_out, fold_out * F]`` in the dtype of ``x``.

    Raises:
        ValueError: ``fold_out`` columns of the output do not begin at a whole group of the input,
            or the output's width is no multiple of ``fold_out``.
    """
    *sizes, size, channels, features = kernel.shape
    stride, pad, groups_in = strides[2], padding[2], x.shape[3]
    width = (groups_in * fold_in + 2 * pad - size) // stride + 1
    if stride * fold_out % fold_in or width % fold_out:
        raise ValueError(
            f"{width} columns with stride {stride} cannot be folded from {fold_in} to {fold_out}"
        )
    # Groups of the input, counted from the output's own, that its first and last column look at.
    first = -pad // fold_in
    last = (stride * (fold_out - 1) + size - 1 - pad) // fold_in
    groups = last - first + 1
    parts = []
    for column in range(fold_out):
        before = stride * column - pad - first * fold_in
        after = groups * fold_in - size - before
        part = jnp.pad(kernel, ((0, 0), (0, 0), (before, after), (0, 0), (0, 0)))
        parts.append(part.reshape(*sizes, groups, fold_in * channels, features))
    step = stride * fold_out // fold_in
    beyond = (width // fold_out - 1) * step + groups - groups_in + first
    return lax.conv_general_dilated(
        x,
        # Folded in the dtype of the parameters, so that gradients are summed in it.
        jnp.concatenate(parts, axis=-1).astype(x.dtype),
        (*strides[:2], step),
        (*((p, p) for p in padding[:2]), (-first, beyond)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
