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

from mvo_jax.models.ops.conv3d import Conv3d
from mvo_jax.models.ops.layers import (
    BatchNorm,
    Dropout,
    Linear,
    ModelOutput,
    check_clip,
    classify,
    sow,
)
from mvo_jax.models.ops.lowerings import Triple
from mvo_jax.models.ops.numerics import Array, Numerics
from mvo_jax.models.ops.pooling import max_pool

MIN_FRAMES = 8  # smaller clips leave windows with nothing but padding in the last stage
MIN_SIZE = 32

# Inception modules of each stage: channels of (1x1; reduce, 3x3x3; reduce, 3x3x3; pooled 1x1)
MIXED: tuple[tuple[tuple[str, tuple[int, ...]], ...], ...] = (
    (
        ("3b", (64, 96, 128, 16, 32, 32)),
        ("3c", (128, 128, 192, 32, 96, 64)),
    ),
    (
        ("4b", (192, 96, 208, 16, 48, 64)),
        ("4c", (160, 112, 224, 24, 64, 64)),
        ("4d", (128, 128, 256, 24, 64, 64)),
        ("4e", (112, 144, 288, 32, 64, 64)),
        ("4f", (256, 160, 320, 32, 128, 128)),
    ),
    (
        ("5b", (256, 160, 320, 32, 128, 128)),
        ("5c", (384, 192, 384, 48, 128, 128)),
    ),
)
# Window and stride of the pooling before each of these stages.
POOLINGS: tuple[tuple[Triple, Triple], ...] = (
    ((1, 3, 3), (1, 2, 2)),
    ((3, 3, 3), (2, 2, 2)),
    ((2, 2, 2), (2, 2, 2)),
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


class Unit3d(nn.Module):
    """Convolution with TensorFlow's padding, BatchNorm, ReLU.

    Args:
        features: output channels.
        kernel_size: side of the cubic kernel.
        stride: in time and space.
        in_channels: see ``Conv3d``.
        numerics: see ``Numerics``.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    in_channels: int | None = None
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[B, T, H, W, C]`` to ``[B, T', H', W', features]``."""
        window: Triple = (self.kernel_size, self.kernel_size, self.kernel_size)
        stride: Triple = (self.stride, self.stride, self.stride)
        # With a stride the padding is one-sided at even sizes, so it cannot be the convolution's.
        margin = self.kernel_size // 2 if self.stride == 1 else 0
        if self.stride > 1:
            x = _pad_same(x, window, stride)
        x = Conv3d(
            self.features,
            window,
            stride,
            (margin, margin, margin),
            self.numerics,
            in_channels=self.in_channels,
            name="conv",
        )(x)
        norm = BatchNorm(self.numerics, momentum=0.99, epsilon=1e-3, name="norm")
        return nn.relu(norm(x, train=train))


class I3DTrunk(nn.Module):
    """Inception-v1 I3D up to its last module; fields as in ``I3D``."""

    in_channels: int = 3
    width: int = 64
    stage_sizes: tuple[int, int, int] = (2, 5, 2)
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, video: Array, *, train: bool) -> Array:
        """``[B, T, H, W, C]`` to ``[B, ceil(T/8), ceil(H/32), ceil(W/32), 16 * width]``.

        Sows 'conv1', 'conv2' and the modules' outputs, 'out3b' ... 'out5c'.
        """

        def unit(name: str, features: int, kernel: int = 1, **options: Any) -> Any:
            features = max(1, features * self.width // 64)
            return Unit3d(features, kernel, numerics=self.numerics, name=name, **options)

        stem = unit("conv1a", 64, 7, stride=2, in_channels=self.in_channels)
        x = sow(self, "conv1", stem(video, train=train))
        x = _same_max_pool(x, (1, 3, 3), (1, 2, 2))
        x = unit("conv2b", 64)(x, train=train)
        x = sow(self, "conv2", unit("conv2c", 192, 3)(x, train=train))
        for (window, stride), modules, depth in zip(POOLINGS, MIXED, self.stage_sizes, strict=True):
            x = _same_max_pool(x, window, stride)
            for name, sizes in modules[:depth]:
                start = f"mixed{name}_branch"
                reduced1 = unit(f"{start}1_reduce", sizes[1])(x, train=train)
                reduced2 = unit(f"{start}2_reduce", sizes[3])(x, train=train)
                pooled = _same_max_pool(x, (3, 3, 3), (1, 1, 1))
                branches = [
                    unit(f"{start}0", sizes[0])(x, train=train),
                    unit(f"{start}1", sizes[2], 3)(reduced1, train=train),
                    unit(f"{start}2", sizes[4], 3)(reduced2, train=train),
                    unit(f"{start}3", sizes[5])(pooled, train=train),
                ]
                x = sow(self, f"out{name}", jnp.concatenate(branches, axis=-1))
        return x


class I3D(nn.Module):
    """Classifies a clip with Inception-v1 I3D.

    Args:
        num_outputs: 1 (sigmoid) or 2 (softmax).
        in_channels: channels of the first convolution; a grey clip counts as so many copies.
        width: channels of the first convolution, 64 in the paper; all others follow.
        stage_sizes: Inception modules after the second, third and fourth pooling, at most the
            paper's (2, 5, 2).
        head_size: units of a hidden layer before the output; 0 for none, as in the paper of I3D.
        head_dropout: dropout rate of the pooled features, 0.5 in the public implementation.
        numerics: see ``Numerics``.
    """

    num_outputs: int = 1
    in_channels: int = 3
    width: int = 64
    stage_sizes: tuple[int, int, int] = (2, 5, 2)
    head_size: int = 256
    head_dropout: float = 0.5
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, video: Array, *, train: bool, with_mask: bool = False) -> ModelOutput:
        """Classify clips.

        Args:
            video: ``[B, T, H, W, C]`` normalised, T >= 8, H and W >= 32, C 1 or ``in_channels``.
            train: batch statistics and dropout (rng collection 'dropout').
            with_mask: ignored, there is no mask branch.

        Returns:
            ``ModelOutput`` without mask. Sows 'pooled' beside what the trunk sows.

        Raises:
            ValueError: a clip the network cannot take, or more modules than there are.
        """
        del with_mask
        check_clip(video, in_channels=self.in_channels, frames=MIN_FRAMES, size=MIN_SIZE)
        most = tuple(len(modules) for modules in MIXED)
        if len(self.stage_sizes) != len(most) or any(
            n > m for n, m in zip(self.stage_sizes, most, strict=True)
        ):
            raise ValueError(f"stage_sizes {self.stage_sizes} do not fit in I3D's {most}")
        numerics = self.numerics
        trunk = I3DTrunk(self.in_channels, self.width, self.stage_sizes, numerics, name="trunk")
        x = sow(self, "pooled", trunk(video, train=train).mean(axis=(1, 2, 3)))
        x = Dropout(self.head_dropout, numerics, name="head_dropout")(x, train=train)
        if self.head_size:
            x = nn.relu(Linear(self.head_size, numerics, name="hidden")(x))
        return ModelOutput(classify(x, self.num_outputs, numerics, train=train), None)
