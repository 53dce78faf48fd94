"""I3D: Inception-v1 with every filter inflated to three dimensions.

Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017, section 2.4 and Fig. 3; the
layers, their TensorFlow padding (zeros, also before a max pooling, the odd one behind) and
BatchNorm's constants follow piergiaj/pytorch-i3d. Differences: the last pooling averages everything
it is given, where the original averages 2x7x7 windows and then the logits over time (64x64 pixels
leave a 2x2 grid); a hidden layer of 256 units before the output, which the parameter count of the
paper's comparison implies (``head_size=0`` leaves it out).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mvo_jax.models.baselines.baseline import Baseline
from mvo_jax.models.ops.conv3d import ConvNorm, kaiming_normal_fan_in
from mvo_jax.models.ops.layers import Linear, check_clip, sow
from mvo_jax.models.ops.lowerings import Triple
from mvo_jax.models.ops.numerics import Array
from mvo_jax.models.ops.pooling import max_pool

# Of each stage: window and stride of the pooling before it, and its inception modules with their
# channels of (1x1; reduce, 3x3x3; reduce, 3x3x3; pooled 1x1).
STAGES: tuple[tuple[Triple, Triple, dict[str, tuple[int, ...]]], ...] = (
    ((1, 3, 3), (1, 2, 2), {"3b": (64, 96, 128, 16, 32, 32), "3c": (128, 128, 192, 32, 96, 64)}),
    (
        (3, 3, 3),
        (2, 2, 2),
        {
            "4b": (192, 96, 208, 16, 48, 64),
            "4c": (160, 112, 224, 24, 64, 64),
            "4d": (128, 128, 256, 24, 64, 64),
            "4e": (112, 144, 288, 32, 64, 64),
            "4f": (256, 160, 320, 32, 128, 128),
        },
    ),
    (
        (2, 2, 2),
        (2, 2, 2),
        {"5b": (256, 160, 320, 32, 128, 128), "5c": (384, 192, 384, 48, 128, 128)},
    ),
)


def _pad_same(x: Array, window: Triple, stride: Triple) -> Array:
    """Zeros around ``[B, T, H, W, C]`` such that windows give ceil(n / stride) elements."""
    widths = [(0, 0)]
    for length, size, step in zip(x.shape[1:4], window, stride, strict=True):
        total = max(size - (length % step or step), 0)
        widths.append((total // 2, total - total // 2))
    return jnp.pad(x, [*widths, (0, 0)])


def _same_max_pool(x: Array, window: Triple, stride: Triple) -> Array:
    return max_pool(_pad_same(x, window, stride), window, stride)


class Trunk(nn.Module):
    """Inception-v1 I3D up to its last module."""

    @nn.compact
    def __call__(self, of: "I3D", video: Array, *, train: bool) -> Array:
        """``[B, T, H, W, C]`` to ``[B, ceil(T/8), ceil(H/32), ceil(W/32), 16 * width]``.

        Sows 'conv1', 'conv2' and the modules' outputs, 'out3b' ... 'out5c'.
        """

        def unit(
            name: str, x: Array, features: int, side: int = 1, stride: int = 1, **options: Any
        ) -> Array:
            window: Triple = (side, side, side)
            strides: Triple = (stride, stride, stride)
            if stride > 1:  # one-sided at even sizes, so it cannot be the convolution's
                x, options["padding"] = _pad_same(x, window, strides), (0, 0, 0)
            layer = ConvNorm(
                max(1, features * of.width // 64),
                window,
                of.numerics,
                strides,
                kernel_init=kaiming_normal_fan_in,
                momentum=0.99,
                epsilon=1e-3,
                name=name,
                **options,
            )
            return layer(x, train=train)

        x = unit("conv1a", video, 64, 7, 2, in_channels=of.in_channels)
        x = _same_max_pool(sow(self, "conv1", x), (1, 3, 3), (1, 2, 2))
        x = sow(self, "conv2", unit("conv2c", unit("conv2b", x, 64), 192, 3))
        for (window, stride, modules), depth in zip(STAGES, of.stage_sizes, strict=True):
            x = _same_max_pool(x, window, stride)
            for name, sizes in [*modules.items()][:depth]:
                start = f"mixed{name}_branch"
                reduced1 = unit(f"{start}1_reduce", x, sizes[1])
                reduced2 = unit(f"{start}2_reduce", x, sizes[3])
                pooled = _same_max_pool(x, (3, 3, 3), (1, 1, 1))
                branches = [
                    unit(f"{start}0", x, sizes[0]),
                    unit(f"{start}1", reduced1, sizes[2], 3),
                    unit(f"{start}2", reduced2, sizes[4], 3),
                    unit(f"{start}3", pooled, sizes[5]),
                ]
                x = sow(self, f"out{name}", jnp.concatenate(branches, axis=-1))
        return x


class I3D(Baseline):
    """Inception-v1 I3D. Sows 'pooled' beside what the trunk sows."""

    width: int = 64  # channels of the first convolution; all others follow
    stage_sizes: tuple[int, int, int] = (2, 5, 2)  # modules after pooling 2, 3, 4; at most
    head_size: int = 256  # of a hidden layer before the output; 0 for none, as in the paper of I3D
    head_dropout: float = 0.5  # of the pooled features

    def features(self, video: Array, *, train: bool) -> Array:
        """The hidden layer, ``[B, head_size]``, or the pooled features without one."""
        # Smaller clips leave windows with nothing but padding in the last stage.
        check_clip(video, in_channels=self.in_channels, frames=8, size=32)
        most = tuple(len(modules) for *_, modules in STAGES)
        if len(self.stage_sizes) != len(most) or any(
            n > m for n, m in zip(self.stage_sizes, most, strict=True)
        ):
            raise ValueError(f"stage_sizes {self.stage_sizes} do not fit in I3D's {most}")
        x = Trunk(name="trunk")(self, video, train=train)
        x = sow(self, "pooled", x.mean(axis=(1, 2, 3)))
        x = self.dropout("head_dropout", x, self.head_dropout, train=train)
        if self.head_size:
            x = nn.relu(Linear(self.head_size, self.numerics, name="hidden")(x))
        return x
