"""Lowerings of convolutions over [B, T, H, W, C]: different XLA programs for one kernel.

Parameters are identical and results equal up to rounding. Which one is fast depends on the backend
and the shape, so it is a choice of the layer and not of the model (docs/decisions.md has the
numbers).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mvo_jax.models.ops.cpu_convolution import cpu_convolution, plain_convolution

Array = jax.Array
Triple = tuple[int, int, int]

# name -> what convolutions become
LOWERINGS: dict[str, str] = {
    "conv3d": "3-D convolutions",
    "conv3d_pairs": "the same; where R(2+1)D is narrow, on pairs of columns (factorised.py)",
    "conv3d_padded": "3-D convolutions, channels filled up with zeros to a multiple of 8",
    "conv2d": "2-D convolutions, with frames in the batch or with the pixels in one row",
    "conv2d_padded": "the same, channels filled up with zeros to a multiple of 8",
    "conv2d_cpu": "2-D convolutions with a derivative of its own (cpu_convolution.py)",
    "im2col_conv1d": "in space patches times a matrix, in time 1-D convolutions",
}

# The XLA:CPU flag that makes the backward pass of 2-D convolutions fast (docs/decisions.md).
FAST_CPU_CONVOLUTION_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
THREE_D = ("conv3d", "conv3d_pairs")
PADDED = "_padded"  # ends the name of a lowering with filled channels
TENSOR_CORE = 8  # channels: 16 bytes of bfloat16, the alignment of a tensor core's operands
WIDE = 128  # channels; measured on a CPU: 3 to 96 are faster joined, 160 to 512 summed


def choose_lowering(backend: str, xla_flags: str = "") -> str:
    """The key of ``LOWERINGS`` that was measured fastest on a 'cpu', 'gpu' or 'tpu'.

    TPU: 3-D convolutions, pairs of columns in the first stage. CPU: 2-D ones with their own
    derivative where the XLA_FLAGS in force have the flag for it, im2col elsewhere. GPU: 2-D.
    """
    if backend == "tpu":
        return "conv3d_pairs"
    if backend == "cpu":
        return "conv2d_cpu" if FAST_CPU_CONVOLUTION_FLAG in xla_flags else "im2col_conv1d"
    return "conv2d"


def half(kernel_size: Triple) -> Triple:
    """The padding that keeps the size of a clip where the stride is 1 and the kernel odd."""
    return kernel_size[0] // 2, kernel_size[1] // 2, kernel_size[2] // 2


def convolution_3d(
    x: Array, kernel: Array, stride: Triple, padding: Sequence[int | tuple[int, int]]
) -> Array:
    """XLA's 3-D convolution of ``[B, T, H, W, C]`` with ``[kt, kh, kw, C, F]``.

    Stride and padding are of time, rows and columns; zeros on both sides, or (before, after).
    """
    pads = [p if isinstance(p, tuple) else (p, p) for p in padding]
    return lax.conv_general_dilated(
        x, kernel, stride, pads, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


def convolution(
    x: Array, kernel: Array, *, stride: Triple, padding: Triple, lowering: str
) -> Array:
    """``[B, T, H, W, C]`` with a square kernel ``[kt, k, k, C, F]`` to ``[B, T', H', W', F]``.

    Args:
        stride: in time, rows and columns, the last two equal.
        padding: zeros on each side of the same; explicit as in torch ('SAME' would shift strided
            windows). None where the kernel has size 1.
        lowering: key of ``LOWERINGS``.
    """
    if lowering.endswith(PADDED):
        x, filled, plain = _filled(x, -1), _filled(kernel, -1), lowering.removesuffix(PADDED)
        out = convolution(x, _filled(filled, -2), stride=stride, padding=padding, lowering=plain)
        return out[..., : kernel.shape[-1]]
    in_space = {"stride": stride[1], "padding": padding[1], "lowering": lowering}
    in_time = {"stride": stride[0], "padding": padding[0], "lowering": lowering}
    if kernel.shape[0] == 1:
        return spatial_convolution(x[:, :: stride[0]], kernel, **in_space)
    if kernel.shape[1] == 1:
        return temporal_convolution(x[:, :, :: stride[1], :: stride[2]], kernel, **in_time)
    if lowering in THREE_D:
        return convolution_3d(x, kernel, stride, padding)
    # XLA:CPU has no fast 3-D convolution. The taps in time are summed by a 2-D one itself (the
    # frames under the kernel joined to one of kt * C channels) or, where that is wide, after it.
    taps = _taps(x, kernel.shape[0], stride[0], padding[0])
    if lowering == "im2col_conv1d" or x.shape[-1] < WIDE:
        flat = kernel.transpose(1, 2, 0, 3, 4).reshape(1, *kernel.shape[1:3], -1, kernel.shape[-1])
        return spatial_convolution(jnp.concatenate(taps, axis=-1), flat, **in_space)
    parts = [spatial_convolution(tap, kernel[i : i + 1], **in_space) for i, tap in enumerate(taps)]
    return sum(parts[1:], start=parts[0])


def _filled(x: Array, axis: int) -> Array:
    """``x`` with zero channels up to a multiple of ``TENSOR_CORE``; a clip's own few stay alone."""
    size = x.shape[axis]
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -size % TENSOR_CORE if size > TENSOR_CORE else 0)
    return jnp.pad(x, widths)


def spatial_convolution(
    x: Array, kernel: Array, *, stride: int, padding: int, lowering: str
) -> Array:
    """``convolution`` of every frame with one kernel ``[1, k, k, C, F]``."""
    if lowering in THREE_D:
        return convolution_3d(x, kernel, (1, stride, stride), (0, padding, padding))
    size = kernel.shape[1]
    if size == 1 and padding == 0:
        return x[:, :, ::stride, ::stride] @ kernel[0, 0, 0]
    batch, frames = x.shape[:2]
    images = x.reshape(batch * frames, *x.shape[2:])
    if lowering == "im2col_conv1d":
        out = _im2col(images, size, stride, padding) @ kernel.reshape(-1, kernel.shape[-1])
    else:
        pads = ((padding, padding), (padding, padding))
        out = _convolution_2d(lowering)(images, kernel[0], (stride, stride), pads)
    return out.reshape(batch, frames, *out.shape[1:])


def temporal_convolution(
    x: Array, kernel: Array, *, stride: int, padding: int, lowering: str
) -> Array:
    """``convolution`` of every pixel's time course with one kernel ``[k, 1, 1, C, F]``."""
    if lowering in THREE_D:
        return convolution_3d(x, kernel, (stride, 1, 1), (padding, 0, 0))
    batch, frames, height, width, channels = x.shape
    if lowering == "im2col_conv1d":
        pixels = x.transpose(0, 2, 3, 1, 4).reshape(-1, frames, channels)
        pads, axes = ((padding, padding),), ("NWC", "WIO", "NWC")
        out = lax.conv_general_dilated(
            pixels, kernel[:, 0, 0], (stride,), pads, dimension_numbers=axes
        )
        out = out.reshape(batch, height, width, -1, out.shape[-1])
        return out.transpose(0, 3, 1, 2, 4)
    rows, pads = x.reshape(batch, frames, height * width, channels), ((padding, padding), (0, 0))
    out = _convolution_2d(lowering)(rows, kernel[:, :, 0], (stride, 1), pads)
    return out.reshape(batch, -1, height, width, out.shape[-1])


def _convolution_2d(lowering: str) -> Any:
    return cpu_convolution if lowering == "conv2d_cpu" else plain_convolution


def _taps(x: Array, kernel: int, stride: int, padding: int) -> list[Array]:
    """The frames of ``x [B, T, ...]`` that each tap of a kernel in time meets."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (0, 0), (0, 0), (0, 0)))
    steps = (x.shape[1] - kernel) // stride + 1
    return [x[:, i : i + stride * (steps - 1) + 1 : stride] for i in range(kernel)]


def _im2col(x: Array, kernel: int, stride: int, padding: int) -> Array:
    """Patches of ``x [N, H, W, C]`` as ``[N, H', W', kernel * kernel * C]``, row-major taps."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((n - kernel) // stride + 1 for n in x.shape[1:3])
    taps = [
        x[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        for i in range(kernel)
        for j in range(kernel)
    ]
    return jnp.concatenate(taps, axis=-1)
