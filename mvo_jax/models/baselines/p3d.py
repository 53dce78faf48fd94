"""P3D-199: a ResNet-152 whose 3x3 convolutions are split into space and time.

Qiu, Yao and Mei, "Learning Spatio-Temporal Representation with Pseudo-3D Residual Networks", ICCV
2017, section 3 and Fig. 3; layers as in qijiezhao/pseudo-3d-pytorch, with its last stage of plain
2-D blocks. The blocks take turns: A has the temporal convolution behind the spatial one, B beside
it, C behind it with a shortcut around. Differences: the last pooling averages whatever grid there
is (2x2 of 64x64 pixels, 5x5 of the published 160x160) and the steps that are left of more than 31
frames, which the public implementation cannot take; He initialisation with the fan-out of the
whole kernel.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mvo_jax.models.ops.conv3d import Conv2d, Conv3d, Triple, check_clip
from mvo_jax.models.ops.layers import (
    Array,
    BatchNorm,
    Dropout,
    Linear,
    ModelOutput,
    kaiming_normal_fan_out,
    sow,
)
from mvo_jax.models.ops.pooling import max_pool

MIN_FRAMES = 16  # four poolings halve the frames
MIN_SIZE = 32  # the last stage needs one pixel
STAGES_3D = 3  # the stages behind them are 2-D
KINDS = "ABC"


class P3DBlock(nn.Module):
    """Bottleneck block of one of the three kinds, or a plain 2-D one.

    Args:
        features: channels inside; four times as many leave.
        kind: 'A', 'B', 'C', or '2D'.
        stride: in-plane, of the first convolution and of the shortcut.
        lowering: key of ``lowerings.LOWERINGS``.
        axis_name: device axis for BatchNorm.
        dtype: compute dtype.
        param_dtype: dtype of the parameters.
    """

    features: int
    kind: str
    stride: int = 1
    lowering: str = "conv2d"
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[B, T, H, W, C]`` to ``[B, T, H', W', 4 * features]``."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv: dict[str, Any] = {
            "lowering": self.lowering,
            "kernel_init": kaiming_normal_fan_out,
            **dtypes,
        }

        def layer(
            name: str, x: Array, features: int, kernel: Triple = (1, 1, 1), stride: int = 1
        ) -> Array:
            margin: Triple = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
            if self.kind == "2D":
                x = Conv2d(features, kernel[1], stride, margin[1], name=name, **conv)(x)
            else:
                strides = (1, stride, stride)
                x = Conv3d(features, kernel, strides, margin, name=name, **conv)(x)
            norm = BatchNorm(self.axis_name, name=f"{name}_norm", **dtypes)
            return norm(x, train=train)

        y = nn.relu(layer("reduce", x, self.features, stride=self.stride))
        spatial = nn.relu(layer("spatial", y, self.features, (1, 3, 3)))
        if self.kind == "2D":
            y = spatial
        elif self.kind == "B":
            y = nn.relu(layer("temporal", y, self.features, (3, 1, 1))) + spatial
        else:
            y = nn.relu(layer("temporal", spatial, self.features, (3, 1, 1)))
            y = y + spatial if self.kind == "C" else y
        y = layer("expand", y, 4 * self.features)
        if self.stride != 1 or x.shape[-1] != 4 * self.features:
            x = layer("shortcut", x, 4 * self.features, stride=self.stride)
        return nn.relu(x + y)


class P3DTrunk(nn.Module):
    """Stem and stages; fields as in ``P3D``."""

    in_channels: int = 3
    width: int = 64
    stage_sizes: tuple[int, ...] = (3, 8, 36, 3)
    lowering: str = "conv2d"
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, video: Array, *, train: bool) -> Array:
        """Features of a clip.

        Args:
            video: ``[B, T, H, W, C]``, C 1 or ``in_channels``.
            train: use and update batch statistics.

        Returns:
            ``[B, floor(T/16), ceil(H/32), ceil(W/32), 32 * width]`` with four stages. Sows 'stem'
            and 'layer1' ... 'layer4', each behind its pooling.
        """
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Conv3d(
            self.width,
            (1, 7, 7),
            (1, 2, 2),
            (0, 3, 3),
            in_channels=self.in_channels,
            lowering=self.lowering,
            kernel_init=kaiming_normal_fan_out,
            name="stem_conv",
            **dtypes,
        )(video)
        x = nn.relu(BatchNorm(self.axis_name, name="stem_norm", **dtypes)(x, train=train))
        x = sow(self, "stem", max_pool(x, (2, 3, 3), (2, 2, 2), (0, 1, 1)))
        count = 0
        for stage, blocks in enumerate(self.stage_sizes):
            for block in range(blocks):
                x = P3DBlock(
                    self.width * 2**stage,
                    KINDS[count % len(KINDS)] if stage < STAGES_3D else "2D",
                    stride=2 if stage > 0 and block == 0 else 1,
                    lowering=self.lowering,
                    axis_name=self.axis_name,
                    name=f"layer{stage + 1}_block{block + 1}",
                    **dtypes,
                )(x, train=train)
                count += 1
            if stage < STAGES_3D:
                x = max_pool(x, (2, 1, 1), (2, 1, 1))
            sow(self, f"layer{stage + 1}", x)
        return x


class P3D(nn.Module):
    """Classifies a clip with P3D.

    Args:
        num_outputs: 1 (sigmoid) or 2 (softmax).
        in_channels: channels of the stem; a grey clip counts as so many copies.
        width: channels of the stem, 64 in the paper.
        stage_sizes: residual blocks of each stage, (3, 8, 36, 3) in P3D-199; at most four stages.
        head_dropout: dropout rate of the pooled features.
        lowering: key of ``lowerings.LOWERINGS``.
        axis_name: device axis of the batch; None on one device.
        dtype: compute dtype; parameters and statistics stay in ``param_dtype``.
        param_dtype: dtype of the parameters.
    """

    num_outputs: int = 1
    in_channels: int = 3
    width: int = 64
    stage_sizes: tuple[int, ...] = (3, 8, 36, 3)
    head_dropout: float = 0.5
    lowering: str = "conv2d"
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, video: Array, *, train: bool, with_mask: bool = False) -> ModelOutput:
        """Classify clips.

        Args:
            video: ``[B, T, H, W, C]`` normalised, T >= 16, H and W >= 32, C 1 or ``in_channels``.
            train: batch statistics and dropout (rng collection 'dropout').
            with_mask: ignored, there is no mask branch.

        Returns:
            ``ModelOutput`` without mask. Sows 'pooled' beside what the trunk sows.

        Raises:
            ValueError: a clip the network cannot take, or stages it does not have.
        """
        del with_mask
        check_clip(video, in_channels=self.in_channels, frames=MIN_FRAMES, size=MIN_SIZE)
        if not 1 <= len(self.stage_sizes) <= STAGES_3D + 1:
            raise ValueError(f"stage_sizes {self.stage_sizes}: P3D has one to four stages")
        features = P3DTrunk(
            self.in_channels,
            self.width,
            self.stage_sizes,
            self.lowering,
            self.axis_name,
            self.dtype,
            self.param_dtype,
            name="trunk",
        )(video, train=train)
        x = sow(self, "pooled", features.mean(axis=(1, 2, 3)))
        x = Dropout(self.head_dropout, self.axis_name, name="head_dropout")(x, train=train)
        logits = Linear(
            self.num_outputs,
            dtype=jnp.promote_types(jnp.float32, self.dtype),
            param_dtype=self.param_dtype,
            name="classifier",
        )(x)
        return ModelOutput(logits, None)
