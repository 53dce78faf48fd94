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
    """Spatial (1, 3, 3) convolution, BatchNorm, ReLU, temporal (3, 1, 1) convolution.

    Args:
        features: output channels.
        mid_features: channels between the two convolutions.
        stride: stride in space and in time.
        numerics: see ``Numerics``.
    """

    features: int
    mid_features: int
    stride: int = 1
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[B, T, H, W, C]`` to ``[B, T', H', W', features]``."""
        numerics, stride = self.numerics, self.stride
        x = FactorisedConv(
            self.mid_features, (1, 3, 3), numerics, (1, stride, stride), name="spatial"
        )(x)
        x = nn.relu(FactorisedNorm(numerics, name="norm")(x, train=train))
        return FactorisedConv(self.features, (3, 1, 1), numerics, (stride, 1, 1), name="temporal")(
            x
        )


class BasicBlock(nn.Module):
    """Two (2+1)D convolutions with a residual connection.

    Args:
        features: output channels.
        stride: stride in space and time of the first convolution and of the shortcut.
        numerics: see ``Numerics``.
    """

    features: int
    stride: int = 1
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
    """The trunk. ``R2Plus1D()`` is R(2+1)D-18; smaller ``width`` and ``stage_sizes`` reduce it.

    Args:
        width: channels of the first stage (64 in R(2+1)D-18); stages have 1, 2, 4, 8 times that.
        stage_sizes: residual blocks in each stage.
        numerics: see ``Numerics``.
    """

    width: int = 64
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, video: Array, *, train: bool) -> Array:
        """Features of a clip.

        Args:
            video: ``[B, T, H, W, C]``, T >= 8, H and W >= 32.
            train: use and update batch statistics.

        Returns:
            ``[B, ceil(T/8), ceil(H/16), ceil(W/16), 8 * width]`` with four stages. Sows 'stem' and
            'layer1' ... 'layer4'.
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
