"""P3D-199: a ResNet-152 whose 3x3 convolutions are split into space and time.

Qiu, Yao and Mei, "Learning Spatio-Temporal Representation with Pseudo-3D Residual Networks", ICCV
2017, section 3 and Fig. 3; layers as in qijiezhao/pseudo-3d-pytorch, with its last stage of plain
2-D blocks. The blocks take turns: A has the temporal convolution behind the spatial one, B beside
it, C behind it with a shortcut around. Differences: the last pooling averages whatever grid there
is (2x2 of 64x64 pixels, 5x5 of the published 160x160) and the steps that are left of more than 31
frames, which the public implementation cannot take; He initialisation with the fan-out of the
whole kernel.
"""

import flax.linen as nn

from mvo_jax.models.baselines.baseline import Baseline
from mvo_jax.models.ops.conv3d import Conv3d
from mvo_jax.models.ops.layers import BatchNorm, check_clip, kaiming_normal_fan_out, sow
from mvo_jax.models.ops.lowerings import Triple
from mvo_jax.models.ops.numerics import Array, Numerics
from mvo_jax.models.ops.pooling import max_pool

STAGES_3D = 3  # the stages behind them are 2-D
KINDS = "ABC"


class Block(nn.Module):
    """Bottleneck block of one of the three kinds, or a plain 2-D one."""

    features: int  # channels inside; four times as many leave
    kind: str  # 'A', 'B', 'C', or '2D'
    stride: int = 1  # in-plane, of the first convolution and of the shortcut
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[B, T, H, W, C]`` to ``[B, T, H', W', 4 * features]``."""

        def layer(
            name: str, x: Array, features: int, kernel: Triple = (1, 1, 1), stride: int = 1
        ) -> Array:
            x = Conv3d(
                features,
                kernel,
                (1, stride, stride),
                numerics=self.numerics,
                flat=self.kind == "2D",
                kernel_init=kaiming_normal_fan_out,
                name=name,
            )(x)
            return BatchNorm(self.numerics, name=f"{name}_norm")(x, train=train)

        reduced = nn.relu(layer("reduce", x, self.features, stride=self.stride))
        y = spatial = nn.relu(layer("spatial", reduced, self.features, (1, 3, 3)))
        if self.kind != "2D":
            seen = reduced if self.kind == "B" else spatial
            y = nn.relu(layer("temporal", seen, self.features, (3, 1, 1)))
            y = y if self.kind == "A" else y + spatial
        y = layer("expand", y, 4 * self.features)
        if self.stride != 1 or x.shape[-1] != 4 * self.features:
            x = layer("shortcut", x, 4 * self.features, stride=self.stride)
        return nn.relu(x + y)


class Trunk(nn.Module):
    """Stem and stages."""

    @nn.compact
    def __call__(self, of: "P3D", video: Array, *, train: bool) -> Array:
        """``[B, T, H, W, C]`` to ``[B, floor(T/16), ceil(H/32), ceil(W/32), 32 * width]``.

        With four stages. Sows 'stem' and 'layer1' ... 'layer4', each behind its pooling.
        """
        x = Conv3d(
            of.width,
            (1, 7, 7),
            (1, 2, 2),
            numerics=of.numerics,
            in_channels=of.in_channels,
            kernel_init=kaiming_normal_fan_out,
            name="stem_conv",
        )(video)
        x = nn.relu(BatchNorm(of.numerics, name="stem_norm")(x, train=train))
        x = sow(self, "stem", max_pool(x, (2, 3, 3), (2, 2, 2), (0, 1, 1)))
        count = 0
        for stage, blocks in enumerate(of.stage_sizes):
            for block in range(blocks):
                kind = KINDS[count % len(KINDS)] if stage < STAGES_3D else "2D"
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"layer{stage + 1}_block{block + 1}"
                x = Block(of.width * 2**stage, kind, stride, of.numerics, name=name)(x, train=train)
                count += 1
            if stage < STAGES_3D:
                x = max_pool(x, (2, 1, 1), (2, 1, 1))
            sow(self, f"layer{stage + 1}", x)
        return x


class P3D(Baseline):
    """P3D. Sows 'pooled' beside what the trunk sows."""

    width: int = 64  # channels of the stem
    stage_sizes: tuple[int, ...] = (3, 8, 36, 3)  # residual blocks of each; at most four stages
    head_dropout: float = 0.5  # of the pooled features

    def features(self, video: Array, *, train: bool) -> Array:
        """The pooled features, ``[B, 32 * width]`` with four stages."""
        # Four poolings halve the frames, and the last stage needs one pixel.
        check_clip(video, in_channels=self.in_channels, frames=16, size=32)
        if not 1 <= len(self.stage_sizes) <= STAGES_3D + 1:
            raise ValueError(f"stage_sizes {self.stage_sizes}: P3D has one to four stages")
        x = Trunk(name="trunk")(self, video, train=train)
        x = sow(self, "pooled", x.mean(axis=(1, 2, 3)))
        return self.dropout("head_dropout", x, self.head_dropout, train=train)
