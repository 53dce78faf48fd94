"""Coarse-grained mask decoder: temporal pooling and transposed convolutions, training only.

Paper section 2.3. Two named block layouts: ``paper`` (1x1 convolution, BatchNorm, max pooling, 3x3
transposed convolution) and ``released`` (the authors' code: 1x1, 3x3 transposed, 1x1, each with
BatchNorm and ReLU). Both double the grid.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from mvo_jax.models.ops.cpu_convolution import plain_convolution
from mvo_jax.models.ops.layers import BatchNorm, Dropout, kaiming_normal_fan_out, sow
from mvo_jax.models.ops.numerics import Array, Numerics

LAYOUTS = ("paper", "released")


class TransposedConv(nn.Module):
    """3x3 transposed convolution with stride 2 that doubles height and width, with bias.

    The function of torch's ConvTranspose2d(3, stride=2, padding=1, output_padding=1), written as
    interior padding followed by a plain convolution: ``nn.ConvTranspose`` computes the same but its
    weight gradient is 7 to 32 times slower on a CPU. The kernel is stored as that plain convolution
    sees it, ``[3, 3, C, F]``: torch's, flipped in both directions.
    """

    features: int
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, H, W, C]`` to ``[B, 2H, 2W, features]``."""
        dtype, param_dtype = self.numerics.dtype, self.numerics.param_dtype
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", kaiming_normal_fan_out, shape, param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), param_dtype)
        between = ((0, 0, 0), (1, 2, 1), (1, 2, 1), (0, 0, 0))
        x = lax.pad(x.astype(dtype), jnp.zeros((), dtype), between)
        x = plain_convolution(x, kernel.astype(dtype), (1, 1), ((0, 0), (0, 0)))
        return x + bias.astype(dtype)


class DecoderBlock(nn.Module):
    """Bottleneck block that doubles the grid, in one of the two layouts.

    The paper gives no pooling size: 3x3 with stride 1 keeps the grid, so that two blocks lead from
    4x4 to 16x16 as the paper's figure shows.
    """

    features: int
    layout: str = "paper"
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[B, H, W, C]`` to ``[B, 2H, 2W, features]``."""
        numerics = self.numerics

        def dense(features: int, name: str, value: Array) -> Array:
            layer = nn.Dense(
                features, kernel_init=kaiming_normal_fan_out, name=name, **numerics.dtypes
            )
            return BatchNorm(numerics, name=f"{name}_norm")(layer(value), train=train)

        bottleneck = max(1, x.shape[-1] // 4)  # channels
        x = dense(bottleneck, "reduce", x)
        if self.layout == "paper":
            x = nn.max_pool(x, (3, 3), padding="SAME")
            return TransposedConv(self.features, numerics, name="upsample")(x)
        x = TransposedConv(bottleneck, numerics, name="upsample")(nn.relu(x))
        x = nn.relu(BatchNorm(numerics, name="upsample_norm")(x, train=train))
        return nn.relu(dense(self.features, "expand", x))


def adaptive_average_pool(x: Array, size: int) -> Array:
    """Average ``[B, H, W, C]`` to ``[B, size, size, C]``, as two small matrix products.

    Cell i covers rows floor(i H / size) to ceil((i + 1) H / size): torch's adaptive_avg_pool2d.
    """

    def windows(length: int) -> Array:
        cell = jnp.arange(size)[:, None]
        start, stop = cell * length // size, -(-(cell + 1) * length // size)
        inside = (jnp.arange(length) >= start) & (jnp.arange(length) < stop)
        return (inside / (stop - start)).astype(x.dtype)

    return jnp.einsum("ph,bhwc,qw->bpqc", windows(x.shape[1]), x, windows(x.shape[2]))


def max_over_time(features: Array) -> Array:
    """Maximum over axis 1 of ``[B, T, ...]``; the gradient goes to the first step that attains it.

    ``features.max(axis=1)`` gives wrong gradients under jit. Its derivative goes to the entries
    that *equal* the maximum, and XLA may compute ``features`` a second time for that comparison, in
    another fusion with other rounding: then nothing is equal and the gradient is lost. An index
    does not depend on the last bit.
    """
    first = features.argmax(axis=1, keepdims=True)
    steps = jnp.arange(features.shape[1]).reshape(-1, *(1,) * (features.ndim - 2))
    return jnp.where(steps == first, features, jnp.zeros((), features.dtype)).sum(axis=1)


def _pointwise_convolution(x: Array, kernel: Array, *args: Any, **options: Any) -> Array:
    """``[B, H, W, C]`` times ``[C, F]`` as a 1x1 convolution; the place of a ``dot_general``.

    With one feature the kernel's gradient is a product with a vector, which XLA:CPU sums in one
    chain over all pixels; a convolution is summed in blocks. At 16x16x16 pixels that is 0.14
    instead of 1.2 millionths of relative error in float32.
    """
    del args, options  # contract the last axis, in the arrays' own precision
    return plain_convolution(x, kernel[None, None], (1, 1), ((0, 0), (0, 0)))


class MaskDecoder(nn.Module):
    """Predicts the coarse-grained mask from the trunk's features.

    It has as many doubling blocks as reach the mask from the feature grid: 0 for 4x4, 2 for 16x16,
    4 for the raw 64x64 mask on 64-pixel input. A grid that does not meet m exactly is averaged down
    to it.
    """

    mask_size: int = 16  # m, side of the predicted mask
    layout: str = "paper"
    dropout_rate: float = 0.1  # of whole channels, before the last 1x1 convolution
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, features: Array, *, train: bool) -> Array:
        """The share of MVO pixels in each block of the image.

        ``[B, T, h, w, C]`` from the trunk to ``[B, m, m]``, linear (no sigmoid, as in the released
        code). Sows 'pooled', 'upsampled1' and so on.

        Raises:
            ValueError: ``mask_size`` below 1.
        """
        if self.mask_size < 1:
            raise ValueError(f"mask_size must be at least 1, not {self.mask_size}")
        x, number = sow(self, "pooled", max_over_time(features)), 0
        while min(x.shape[1:3]) < self.mask_size:
            number += 1
            half = max(8, x.shape[-1] // 2)
            block = DecoderBlock(half, self.layout, self.numerics, name=f"block{number}")
            x = sow(self, f"upsampled{number}", block(x, train=train))
        x = Dropout(self.dropout_rate, self.numerics, (0, 1), name="dropout")(x, train=train)
        x = nn.Dense(
            1,
            # mmsegmentation's start for a final 1x1 convolution: nearly zero, like the target.
            kernel_init=nn.initializers.normal(0.01),
            dot_general=_pointwise_convolution,
            name="predict",
            **self.numerics.dtypes,
        )(x)
        if x.shape[1:3] != (self.mask_size, self.mask_size):
            x = adaptive_average_pool(x, self.mask_size)
        return x[..., 0]
