"""2-D convolution for a CPU, with a backward pass that reads each array where it lies.

XLA:CPU computes elementwise chains again wherever they are read. In front of a weight gradient it
does so inside a transposing loop, which takes up to 95 ms for an array that is transposed in 10 ms
once it is in memory (docs/decisions.md).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def _stored(x: Array) -> Array:
    """``x``, written to memory once.

    XLA repeats an elementwise operation of one large operand for each reader, one of two only if
    every reader can take it up, which a convolution cannot. ``lax.optimization_barrier`` is gone
    before that is decided.
    """
    return jnp.where(x != x, x + x, x)


def plain_convolution(x: Array, kernel: Array, stride: Pair, padding: Padding) -> Array:
    """XLA's 2-D convolution, ``[N, H, W, C]`` and ``[kh, kw, C, F]`` to ``[N, H', W', F]``.

    Stride and padding (zeros before and after) are of rows and columns.
    """
    return lax.conv_general_dilated(
        x, kernel, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def cpu_convolution(x: Array, kernel: Array, stride: Pair, padding: Padding) -> Array:
    """``plain_convolution`` with the backward pass for CPUs."""
    return plain_convolution(x, kernel, stride, padding)


def _forward(x: Array, kernel: Array, stride: Pair, padding: Padding) -> Any:
    x = _stored(x)
    return plain_convolution(x, kernel, stride, padding), (x, kernel)


def _backward(stride: Pair, padding: Padding, residuals: Any, dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    dy = _stored(dy)
    _, pullback = jax.vjp(lambda a, b: plain_convolution(a, b, stride, padding), x, kernel)
    dx, dkernel = pullback(dy)
    if kernel.shape[1] == 1 and stride == (1, 1) and padding[1] == (0, 0):
        dkernel = _kernel_gradient_of_rows(x, dy, kernel.shape[0], padding[0][0])
    return dx, dkernel


def _kernel_gradient_of_rows(x: Array, dy: Array, size: int, padding: int) -> Array:
    """``[size, 1, C, F]`` as one product a tap; ``dy``, the smaller, is shifted and not ``x``."""
    zero = jnp.zeros((), dy.dtype)
    taps = []
    for shift in range(-padding, size - padding):
        beyond = x.shape[1] - dy.shape[1] - shift
        rows = lax.pad(dy, zero, ((0, 0, 0), (shift, beyond, 0), (0, 0, 0), (0, 0, 0)))
        taps.append(x.reshape(-1, x.shape[-1]).T @ rows.reshape(-1, rows.shape[-1]))
    return jnp.stack(taps)[:, None]


cpu_convolution.defvjp(_forward, _backward)
