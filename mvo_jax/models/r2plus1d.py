"""R(2+1)D-18 trunk: a (2+1)D stem and four stages of residual (2+1)D blocks.

Paper section 2.1; Tran et al., CVPR 2018. The layout follows torchvision's ``r2plus1d_18`` without
pooling and head, including its habit of computing the mid-plane count of *both* convolutions of a
block from the block's own input and output width.
"""

import flax.linen as nn

from mvo_jax.models.ops.factorised import FactorisedConv, FactorisedNorm
from mvo_jax.models.ops.layers import sow
from mvo_jax.models.ops.numerics import Array, Numerics


def mid_planes(channels_in: int, channels_out: int) -> int:
    """Planes between the spatial and temporal part that match a 3x3x3 kernel's parameter count."""
    return (channels_in * channels_out * 27) // (channels_in * 9 + 3 * channels_out)


class Conv2Plus1D(nn.Module):
    """Spatial (1, 3, 3) convolution, BatchNorm, ReLU, temporal (3, 1, 1) convolution."""

    features: int
    mid_features: int  # channels between the two convolutions
    stride: int = 1  # in space and in time
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[B, T, H, W, C]`` to ``[B, T', H', W', features]``."""
        numerics, s = self.numerics, self.stride
        spatial = FactorisedConv(self.mid_features, (1, 3, 3), numerics, (1, s, s), name="spatial")
        norm = FactorisedNorm(numerics, name="norm")
        temporal = FactorisedConv(self.features, (3, 1, 1), numerics, (s, 1, 1), name="temporal")
        return temporal(nn.relu(norm(spatial(x), train=train)))


class BasicBlock(nn.Module):
    """Two (2+1)D convolutions with a residual connection."""

    features: int
    stride: int = 1  # of the first convolution and of the shortcut, in space and in time
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[B, T, H, W, C]`` to ``[B, T', H', W', features]``."""
        numerics, features, stride = self.numerics, self.features, self.stride
        mid = mid_planes(x.shape[-1], features)
        y = Conv2Plus1D(features, mid, stride, numerics, name="conv1")(x, train=train)
        y = nn.relu(FactorisedNorm(numerics, name="norm1")(y, train=train))
        y = Conv2Plus1D(features, mid, 1, numerics, name="conv2")(y, train=train)
        y = FactorisedNorm(numerics, name="norm2")(y, train=train)
        if stride != 1 or x.shape[-1] != features:
            strides = (stride, stride, stride)
            x = FactorisedConv(features, (1, 1, 1), numerics, strides, name="downsample")(x)
            x = FactorisedNorm(numerics, name="downsample_norm")(x, train=train)
        return nn.relu(x + y)


class R2Plus1D(nn.Module):
    """The trunk. ``R2Plus1D()`` is R(2+1)D-18; smaller ``width`` and ``stage_sizes`` reduce it."""

    width: int = 64  # channels of the first stage; the others have 2, 4 and 8 times as many
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)  # residual blocks of each
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, video: Array, *, train: bool) -> Array:
        """``[B, T, H, W, C]`` to ``[B, ceil(T/8), ceil(H/16), ceil(W/16), 8 * width]``.

        With four stages. Sows 'stem' and 'layer1' ... 'layer4'.
        """
        numerics = self.numerics
        mid = max(1, 45 * self.width // 64)  # torchvision's 45 mid-planes, scaled with the width
        x = FactorisedConv(mid, (1, 7, 7), numerics, (1, 2, 2), name="stem_spatial")(video)
        x = nn.relu(FactorisedNorm(numerics, name="stem_spatial_norm")(x, train=train))
        x = FactorisedConv(self.width, (3, 1, 1), numerics, name="stem_temporal")(x)
        x = nn.relu(FactorisedNorm(numerics, name="stem_temporal_norm")(x, train=train))
        sow(self, "stem", x)
        for stage, blocks in enumerate(self.stage_sizes):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"layer{stage + 1}_block{block + 1}"
                x = BasicBlock(self.width * 2**stage, stride, numerics, name=name)(x, train=train)
            sow(self, f"layer{stage + 1}", x)
        return x
