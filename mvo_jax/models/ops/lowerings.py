"""Lowerings of factorised convolutions: different XLA programs for one kernel.

Parameters are identical and results equal up to rounding. Which one is fast depends on the backend
and the shape, so it is a choice of the layer and not of the model (docs/decisions.md has the
numbers).
"""

import jax
import jax.numpy as jnp
from jax import lax

from mvo_jax.models.ops.cpu_convolution import cpu_convolution

Array = jax.Array

# name -> (form of the spatial (1, k, k) convolution, form of the temporal (k, 1, 1) convolution)
LOWERINGS: dict[str, tuple[str, str]] = {
    "conv3d": ("conv3d", "conv3d"),
    "conv3d_pairs": ("conv3d", "conv3d"),  # R(2+1)D: the first stage on pairs of columns
    "conv2d": ("conv2d", "conv2d"),
    "conv2d_cpu": ("conv2d_cpu", "conv2d_cpu"),  # conv2d with a derivative of its own
    "conv2d_conv1d": ("conv2d", "conv1d"),
    "im2col_conv1d": ("im2col", "conv1d"),
    "im2col_matmul": ("im2col", "matmul"),
}

# The XLA:CPU flag that makes the backward pass of 2-D convolutions fast (docs/decisions.md).
FAST_CPU_CONVOLUTION_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


def choose_lowering(backend: str, xla_flags: str = "") -> str:
    """Name of the lowering that was measured fastest.

    Args:
        backend: ``jax.default_backend()``: 'cpu', 'gpu' or 'tpu'.
        xla_flags: the XLA_FLAGS in force; on a CPU they decide which form is fast.

    Returns:
        A key of ``LOWERINGS``. TPU: true 3-D convolutions, pairs of columns in the first stage.
        CPU: the 2-D fold with its own derivative where XLA has the flag for it, im2col elsewhere.
        GPU: 2-D fold.
    """
    if backend == "tpu":
        return "conv3d_pairs"
    if backend == "cpu":
        return "conv2d_cpu" if FAST_CPU_CONVOLUTION_FLAG in xla_flags else "im2col_conv1d"
    return "conv2d"


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


def spatial_convolution(x: Array, kernel: Array, *, stride: int, padding: int, form: str) -> Array:
    """Convolution of every frame with one 2-D kernel.

    Args:
        x: ``[B, T, H, W, C]``.
        kernel: ``[1, k, k, C, F]``.
        stride: in-plane stride.
        padding: zeros on each side, explicit as in torch ('SAME' would shift strided windows).
        form: 'conv3d', 'conv2d' (frames folded into the batch), 'conv2d_cpu' (the same, see
            ``cpu_convolution``) or 'im2col' (patches times matrix).

    Returns:
        ``[B, T, H', W', F]``.
    """
    size = kernel.shape[1]
    if size == 1 and padding == 0 and form != "conv3d":
        return x[:, :, ::stride, ::stride] @ kernel[0, 0, 0]
    if form == "conv3d":
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, stride, stride),
            ((0, 0), (padding, padding), (padding, padding)),
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
    batch, frames = x.shape[:2]
    folded = x.reshape(batch * frames, *x.shape[2:])
    if form == "conv2d":
        out = lax.conv_general_dilated(
            folded,
            kernel[0],
            (stride, stride),
            ((padding, padding), (padding, padding)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    elif form == "conv2d_cpu":
        pads = ((padding, padding), (padding, padding))
        out = cpu_convolution(folded, kernel[0], (stride, stride), pads)
    elif form == "im2col":
        patches = _im2col(folded, size, stride, padding)
        out = patches @ kernel.reshape(-1, kernel.shape[-1])
    else:
        raise ValueError(f"unknown form {form!r} of a spatial convolution")
    return out.reshape(batch, frames, *out.shape[1:])


def temporal_convolution(x: Array, kernel: Array, *, stride: int, padding: int, form: str) -> Array:
    """Convolution of every pixel's time course with one 1-D kernel.

    Args:
        x: ``[B, T, H, W, C]``.
        kernel: ``[k, 1, 1, C, F]``.
        stride: stride in time.
        padding: zero frames on each side.
        form: 'conv3d', 'conv2d' (kernel (k, 1) over [B, T, H*W, C]), 'conv2d_cpu' (the same, see
            ``cpu_convolution``), 'conv1d' (pixels folded into the batch) or 'matmul' (a sum over
            taps of shifted frames times a matrix).

    Returns:
        ``[B, T', H, W, F]``.
    """
    batch, frames, height, width, channels = x.shape
    size = kernel.shape[0]
    if form == "conv3d":
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, 1, 1),
            ((padding, padding), (0, 0), (0, 0)),
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
    if form == "conv2d":
        out = lax.conv_general_dilated(
            x.reshape(batch, frames, height * width, channels),
            kernel[:, :, 0],
            (stride, 1),
            ((padding, padding), (0, 0)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return out.reshape(batch, -1, height, width, out.shape[-1])
    if form == "conv2d_cpu":
        out = cpu_convolution(
            x.reshape(batch, frames, height * width, channels),
            kernel[:, :, 0],
            (stride, 1),
            ((padding, padding), (0, 0)),
        )
        return out.reshape(batch, -1, height, width, out.shape[-1])
    if form == "conv1d":
        pixels = x.transpose(0, 2, 3, 1, 4).reshape(-1, frames, channels)
        out = lax.conv_general_dilated(
            pixels,
            kernel[:, 0, 0],
            (stride,),
            ((padding, padding),),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        out = out.reshape(batch, height, width, -1, out.shape[-1])
        return out.transpose(0, 3, 1, 2, 4)
    if form == "matmul":
        x = jnp.pad(x, ((0, 0), (padding, padding), (0, 0), (0, 0), (0, 0)))
        steps = (x.shape[1] - size) // stride + 1
        taps = [
            x[:, i : i + stride * (steps - 1) + 1 : stride] @ kernel[i, 0, 0] for i in range(size)
        ]
        return sum(taps[1:], start=taps[0])
    raise ValueError(f"unknown form {form!r} of a temporal convolution")
