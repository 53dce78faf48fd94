"""The layers of R(2+1)D: convolutions in space or in time, and the BatchNorm between them.

A TPU stores the last axis in rows of 128 numbers and multiplies matrices of 128x128: 64 channels
take the memory of 128 and use half of the unit, 144 take that of 256. The lowering 'conv3d_pairs'
keeps two neighbouring columns side by side in the channels there: 128, and 288 (stored as 384). The
kernel of such a convolution holds every number of the plain one once for each column of the output,
and zeros elsewhere; the function is the same. Between layers clips are as ever: XLA removes a
division of columns that follows its inverse.
"""

import flax.linen as nn
import jax.numpy as jnp

from mvo_jax.models.ops.layers import BatchNorm, kaiming_normal_fan_out
from mvo_jax.models.ops.lowerings import Triple, convolution, convolution_3d, half
from mvo_jax.models.ops.numerics import Array, Numerics

ROW = 128  # numbers


def columns_together(numerics: Numerics, width: int, channels: int) -> int:
    """Neighbouring columns that a layer keeps in the channels: 2 or 1.

    Two where they save at least a quarter of the rows of 128; a clip itself is read as it is.
    """
    if numerics.lowering != "conv3d_pairs" or width % 2 or channels <= 3:
        return 1
    apart, together = 2 * -(-channels // ROW), -(-2 * channels // ROW)
    return 2 if 4 * together <= 3 * apart else 1


def join_columns(x: Array, columns: int) -> Array:
    """``[B, T, H, W, C]`` to ``[B, T, H, W / columns, columns * C]``, the left column first."""
    return x.reshape(*x.shape[:-2], x.shape[-2] // columns, -1)


def part_columns(x: Array, columns: int) -> Array:
    """The inverse of ``join_columns``."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * columns, -1)


def joined_convolution(
    x: Array, kernel: Array, *, stride: Triple, padding: Triple, columns_in: int, columns_out: int
) -> Array:
    """The 3-D convolution of clips with joined columns.

    ``[B, T, H, W / columns_in, columns_in * C]`` and the plain convolution's ``[kt, kh, kw, C, F]``
    to ``[B, T', H', W' / columns_out, columns_out * F]`` in the dtype of ``x``.

    Raises:
        ValueError: ``columns_out`` columns of the output do not begin at a whole group of the
            input, or the output's width is no multiple of ``columns_out``.
    """
    *sizes, size, channels, features = kernel.shape
    step, pad, groups_in = stride[2], padding[2], x.shape[3]
    width = (groups_in * columns_in + 2 * pad - size) // step + 1
    if step * columns_out % columns_in or width % columns_out:
        raise ValueError(
            f"{width} columns with stride {step} cannot go from {columns_in} to {columns_out} "
            "in the channels"
        )
    # Groups of the input, counted from the output's own, that its first and last column look at.
    first = -pad // columns_in
    last = (step * (columns_out - 1) + size - 1 - pad) // columns_in
    groups = last - first + 1
    parts = []
    for column in range(columns_out):
        before = step * column - pad - first * columns_in
        after = groups * columns_in - size - before
        part = jnp.pad(kernel, ((0, 0), (0, 0), (before, after), (0, 0), (0, 0)))
        parts.append(part.reshape(*sizes, groups, columns_in * channels, features))
    group_step = step * columns_out // columns_in
    beyond = (width // columns_out - 1) * group_step + groups - groups_in + first
    return convolution_3d(
        x,
        # Joined in the dtype of the parameters, so that gradients are summed in it.
        jnp.concatenate(parts, axis=-1).astype(x.dtype),
        (stride[0], stride[1], group_step),
        (padding[0], padding[1], (-first, beyond)),
    )


class FactorisedConv(nn.Module):
    """A (1, k, k) or (k, 1, 1) convolution without bias, padded by half of its kernel.

    The kernel is stored as ``[kt, kh, kw, C, F]``.
    """

    features: int
    kernel_size: Triple  # (kt, kh, kw) with kt == 1 or kh == kw == 1, odd
    numerics: Numerics = Numerics()
    stride: Triple = (1, 1, 1)  # in time, rows and columns, the last two equal

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, T, H, W, C]`` to ``[B, T', H', W', features]``."""
        numerics, stride, padding = self.numerics, self.stride, half(self.kernel_size)
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", kaiming_normal_fan_out, shape, numerics.param_dtype)
        x = x.astype(numerics.dtype)
        columns_in = columns_together(numerics, x.shape[3], x.shape[-1])
        columns_out = columns_together(numerics, -(-x.shape[3] // stride[2]), self.features)
        if stride[2] * columns_out % columns_in:
            columns_in = 1
        if columns_in == columns_out == 1:
            kernel, lowering = kernel.astype(numerics.dtype), numerics.lowering or "conv2d"
            return convolution(x, kernel, stride=stride, padding=padding, lowering=lowering)
        joined = joined_convolution(
            join_columns(x, columns_in),
            kernel,
            stride=stride,
            padding=padding,
            columns_in=columns_in,
            columns_out=columns_out,
        )
        return part_columns(joined, columns_out)


class FactorisedNorm(BatchNorm):
    """``BatchNorm`` behind a ``FactorisedConv``, on the columns that it keeps together."""

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalise ``[B, T, H, W, C]`` over all axes but the last."""
        columns = columns_together(self.numerics, *x.shape[3:])
        out = super().__call__(join_columns(x, columns), train=train, columns=columns)
        return part_columns(out, columns)
