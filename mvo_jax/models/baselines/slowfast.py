"""SlowFast 4x16, R50: a slow pathway for appearance, a thin fast one for motion.

Feichtenhofer et al., "SlowFast Networks for Video Recognition", ICCV 2019, section 3 and Table 1;
layers as in facebookresearch/pytorchvideo, with the 4x16 model's alpha 8, beta 1/8 and lateral
convolutions of 5 frames. The slow pathway sees T / 8 frames, equally spaced from the first to the
last and rounded down, as the public models sample them. Differences: the lateral convolutions yield
ceil(T / 8) steps, so that is the number of slow frames where 8 does not divide T (4 of 30, as of
the published 32); the head averages whatever grid there is (2x2 of 64x64); the last BatchNorm of a
block starts at one, not at zero.
"""

import flax.linen as nn
import jax.numpy as jnp

from mvo_jax.models.baselines.baseline import Baseline
from mvo_jax.models.ops.conv3d import ConvNorm
from mvo_jax.models.ops.layers import check_clip, sow
from mvo_jax.models.ops.numerics import Array, Numerics
from mvo_jax.models.ops.pooling import max_pool

# Frames under the stem and under the first convolution of a block of each stage.
KERNELS = {"slow": (1, 1, 1, 3, 3), "fast": (5, 3, 3, 3, 3)}


def slow_frames(frames: int, ratio: int) -> list[int]:
    """Indices of the frames that the slow pathway sees: ceil(frames / ratio) of them."""
    count = -(-frames // ratio)
    return [i * (frames - 1) // max(count - 1, 1) for i in range(count)]


class Bottleneck(nn.Module):
    """Residual block: (k, 1, 1), (1, 3, 3) and (1, 1, 1) convolutions."""

    features: int  # channels of the first two convolutions; four times as many leave
    time_kernel: int  # frames under the first one
    stride: int = 1  # in-plane, of the second one and of the shortcut
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[B, T, H, W, C]`` to ``[B, T, H', W', 4 * features]``."""
        numerics, features, stride = self.numerics, self.features, (1, self.stride, self.stride)
        y = ConvNorm(features, (self.time_kernel, 1, 1), numerics, name="a")(x, train=train)
        y = ConvNorm(features, (1, 3, 3), numerics, stride, name="b")(y, train=train)
        y = ConvNorm(4 * features, (1, 1, 1), numerics, relu=False, name="c")(y, train=train)
        if self.stride != 1 or x.shape[-1] != 4 * features:
            shortcut = ConvNorm(4 * features, (1, 1, 1), numerics, stride, False, name="shortcut")
            x = shortcut(x, train=train)
        return nn.relu(x + y)


class Trunk(nn.Module):
    """Both pathways."""

    @nn.compact
    def __call__(self, of: "SlowFast", video: Array, *, train: bool) -> tuple[Array, Array]:
        """Features of ``[B, T, H, W, C]``, slow and fast, with four stages.

        ``[B, ceil(T/8), ceil(H/32), ceil(W/32), 32 * width]`` and ``[B, T, ..., 4 * width]``. Sows
        'slow0', 'fast0' (stems with the lateral connection) to 'slow4', 'fast4'.
        """
        pathways = {"slow": of.width, "fast": of.width // of.channel_ratio}
        seen = jnp.array(slow_frames(video.shape[1], of.frame_ratio))
        features = {"slow": video[:, seen], "fast": video}
        for name, width in pathways.items():
            x = ConvNorm(
                width,
                (KERNELS[name][0], 7, 7),
                of.numerics,
                (1, 2, 2),
                in_channels=of.in_channels,
                name=f"{name}_stem",
            )(features[name], train=train)
            features[name] = max_pool(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))

        for stage, blocks in enumerate((0, *of.stage_sizes)):  # stage 0 is the stems
            for name, width in pathways.items():
                for block in range(blocks):
                    features[name] = Bottleneck(
                        width * 2 ** (stage - 1),
                        KERNELS[name][stage],
                        2 if stage > 1 and block == 0 else 1,
                        of.numerics,
                        name=f"{name}_stage{stage}_block{block + 1}",
                    )(features[name], train=train)
            if stage < len(of.stage_sizes):
                lateral = ConvNorm(
                    2 * features["fast"].shape[-1],
                    (of.fusion_kernel, 1, 1),
                    of.numerics,
                    (of.frame_ratio, 1, 1),
                    name=f"lateral{stage + 1}",
                )(features["fast"], train=train)
                features["slow"] = jnp.concatenate([features["slow"], lateral], axis=-1)
            for name in pathways:
                sow(self, f"{name}{stage}", features[name])
        return features["slow"], features["fast"]


class SlowFast(Baseline):
    """SlowFast. Sows 'pooled' beside what the trunk sows."""

    width: int = 64  # channels of the slow stem
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)  # residual blocks of each; at most four stages
    frame_ratio: int = 8  # alpha, frames of the fast pathway for one of the slow
    channel_ratio: int = 8  # 1 / beta, channels of the slow pathway for one of the fast
    fusion_kernel: int = 5  # frames under a lateral convolution, odd
    head_dropout: float = 0.5  # of the pooled features

    def features(self, video: Array, *, train: bool) -> Array:
        """The pooled features of both pathways, ``[B, 36 * width]`` with four stages."""
        # The last stage needs one pixel.
        check_clip(video, in_channels=self.in_channels, frames=self.frame_ratio, size=32)
        if not 1 <= len(self.stage_sizes) < len(KERNELS["slow"]):
            raise ValueError(f"stage_sizes {self.stage_sizes}: SlowFast has one to four stages")
        if self.width % self.channel_ratio or self.fusion_kernel % 2 == 0:
            raise ValueError(
                f"width {self.width} must be a multiple of channel_ratio {self.channel_ratio}, "
                f"and fusion_kernel {self.fusion_kernel} odd"
            )
        pathways = Trunk(name="trunk")(self, video, train=train)
        x = jnp.concatenate([part.mean(axis=(1, 2, 3)) for part in pathways], axis=-1)
        sow(self, "pooled", x)
        return self.dropout("head_dropout", x, self.head_dropout, train=train)
