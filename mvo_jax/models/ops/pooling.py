"""Max pooling over [B, T, H, W, C] whose gradient is the same in every program.

JAX's own derivative of a windowed maximum compares the input with the maximum again (slowly, on a
CPU). Here the forward pass keeps which element won: the first of equal ones, as in torch.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from mvo_jax.models.ops.lowerings import Array, Triple


def _windows(x: Array, axis: int, size: int, stride: int) -> list[Array]:
    """The first, second, ... element of every window along one axis."""
    last = (x.shape[axis] - size) // stride * stride + 1
    return [lax.slice_in_dim(x, i, i + last, stride, axis) for i in range(size)]


def _pool(x: Array, axis: int, size: int, stride: int) -> tuple[Array, Array]:
    """Maximum of every window along one axis, and the position in the window that has it."""
    value, *others = _windows(x, axis, size, stride)
    index = jnp.zeros(value.shape, jnp.uint8)
    for position, other in enumerate(others, start=1):
        wins = (other > value) | jnp.isnan(other)  # a NaN goes through, as in torch
        value = jnp.where(wins, other, value)
        index = jnp.where(wins, jnp.uint8(position), index)
    return value, index


def _unpool(dy: Array, index: Array, axis: int, size: int, stride: int, length: int) -> Array:
    """Gradient of ``_pool``: ``dy`` at the winners along one axis of ``length``."""
    windows, cells = dy.shape[axis], -(-length // stride)
    # Element c * stride + p is element p + q * stride of window c - q.
    phases = []
    for phase in range(stride):
        parts = []
        for shift, position in enumerate(range(phase, size, stride)):
            part = jnp.where(index == position, dy, jnp.zeros((), dy.dtype))
            pads = [(0, 0, 0)] * dy.ndim
            pads[axis] = (shift, cells - windows - shift, 0)
            parts.append(lax.pad(part, jnp.zeros((), dy.dtype), pads))
        # A stride above the size leaves phases that no window sees; the first is in every one.
        phases.append(sum(parts[1:], start=parts[0]) if parts else jnp.zeros_like(phases[0]))
    stacked = jnp.stack(phases, axis + 1)
    shape = (*dy.shape[:axis], cells * stride, *dy.shape[axis + 1 :])
    return lax.slice_in_dim(stacked.reshape(shape), 0, length, axis=axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_along(x: Array, axis: int, size: int, stride: int) -> Array:
    return _pool(x, axis, size, stride)[0]


def _max_along_forward(x: Array, axis: int, size: int, stride: int):
    value, index = _pool(x, axis, size, stride)
    return value, (index, x.shape[axis])


def _max_along_backward(axis: int, size: int, stride: int, residuals, dy: Array):
    index, length = residuals
    return (_unpool(dy, index, axis, size, stride, length),)


_max_along.defvjp(_max_along_forward, _max_along_backward)


def max_pool(x: Array, window: Triple, stride: Triple, padding: Triple = (0, 0, 0)) -> Array:
    """Maximum over windows of time, height and width, as ``torch.nn.MaxPool3d``.

    One axis after the other, the last first: the first of equal elements in row-major order gets
    the gradient, and a 3x3x3 window costs 9 comparisons instead of 27. ``[B, T, H, W, C]``,
    floating, to ``[B, T', H', W', C]``; minus infinity goes around it.

    Raises:
        ValueError: a window larger than the padded input.
    """
    for axis in (3, 2, 1):
        size, step, pad = window[axis - 1], stride[axis - 1], padding[axis - 1]
        if x.shape[axis] + 2 * pad < size:
            raise ValueError(f"a window of {size} does not fit {x.shape[axis]} elements")
        if pad:
            widths = [(0, 0)] * x.ndim
            widths[axis] = (pad, pad)
            x = jnp.pad(x, widths, constant_values=-jnp.inf)
        if size > 1 or step > 1:
            x = _max_along(x, axis, size, step)
    return x
