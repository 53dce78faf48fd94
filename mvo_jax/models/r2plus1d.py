"""R(2+1)D-18 trunk: a (2+1)D stem and four stages of residual (2+1)D blocks.

Paper section 2.1; Tran et al., CVPR 2018. The layout follows torchvision's ``r2plus1d_18`` without
pooling and head, including its habit of computing the mid-plane count of *both* convolutions of a
block from the block's own input and output width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mvo_jax.models.ops.folded import unfold_columns
from mvo_jax.models.ops.layers import BatchNorm, FactorisedConv, sow

Array = jax.Array


def mid_planes(channels_in: int, channels_out: int) -> int:
    """Planes between the spatial and temporal part that match a 3x3x3 kernel's parameter count."""
    return (channels_in * channels_out * 27) // (channels_in * 9 + 3 * channels_out)


class Conv2Plus1D(nn.Module):
    """Spatial (1, 3, 3) convolution, BatchNorm, ReLU, temporal (3, 1, 1) convolution.

    Args:
        features: output channels.
        mid_features: channels between the two convolutions.
        stride: stride in space and in time.
        fold_in: columns in the channels of the input (``folded.fold_columns``).
        fold: columns in the channels of what follows.
        lowering: key of ``lowerings.LOWERINGS``.
        axis_name: device axis for BatchNorm.
        dtype: compute dtype.
        param_dtype: dtype of the parameters.
    """

    features: int
    mid_features: int
    stride: int = 1
    fold_in: int = 1
    fold: int = 1
    lowering: str = "conv2d"
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[B, T, H, W, C]`` to ``[B, T', H', W', features]``."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        stride, fold = self.stride, self.fold
        x = FactorisedConv(
            self.mid_features,
            (1, 3, 3),
            (1, stride, stride),
            padding=1,
            lowering=self.lowering,
            fold_in=self.fold_in,
            fold_out=fold,
            name="spatial",
            **dtypes,
        )(x)
        x = nn.relu(BatchNorm(self.axis_name, fold=fold, name="norm", **dtypes)(x, train=train))
        return FactorisedConv(
            self.features,
            (3, 1, 1),
            (stride, 1, 1),
            padding=1,
            lowering=self.lowering,
            fold_in=fold,
            fold_out=fold,
            name="temporal",
            **dtypes,
        )(x)


class BasicBlock(nn.Module):
    """Two (2+1)D convolutions with a residual connection.

    Args:
        features: output channels.
        stride: stride in space and time of the first convolution and of the shortcut.
        fold_in: columns in the channels of the input (``folded.fold_columns``).
        fold: columns in the channels of what follows.
        lowering: key of ``lowerings.LOWERINGS``.
        axis_name: device axis for BatchNorm.
        dtype: compute dtype.
        param_dtype: dtype of the parameters.
    """

    features: int
    stride: int = 1
    fold_in: int = 1
    fold: int = 1
    lowering: str = "conv2d"
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[B, T, H, W, C]`` to ``[B, T', H', W', features]``."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        stride, fold_in, fold = self.stride, self.fold_in, self.fold
        common: dict[str, Any] = {"lowering": self.lowering, "axis_name": self.axis_name, **dtypes}
        channels = x.shape[-1] // fold_in
        mid = mid_planes(channels, self.features)

        def norm(name: str, value: Array) -> Array:
            return BatchNorm(self.axis_name, fold=fold, name=name, **dtypes)(value, train=train)

        y = Conv2Plus1D(self.features, mid, stride, fold_in, fold, name="conv1", **common)(
            x, train=train
        )
        y = nn.relu(norm("norm1", y))
        y = Conv2Plus1D(self.features, mid, 1, fold, fold, name="conv2", **common)(y, train=train)
        y = norm("norm2", y)
        if stride != 1 or channels != self.features:
            x = FactorisedConv(
                self.features,
                (1, 1, 1),
                (stride, stride, stride),
                lowering=self.lowering,
                fold_in=fold_in,
                fold_out=fold,
                name="downsample",
                **dtypes,
            )(x)
            x = norm("downsample_norm", x)
        return nn.relu(x + y)


class R2Plus1D(nn.Module):
    """The trunk. ``R2Plus1D()`` is R(2+1)D-18; smaller ``width`` and ``stage_sizes`` reduce it.

    Args:
        width: channels of the first stage (64 in R(2+1)D-18); stages have 1, 2, 4, 8 times that.
        stage_sizes: residual blocks in each stage.
        lowering: key of ``lowerings.LOWERINGS``.
        axis_name: device axis for BatchNorm.
        dtype: compute dtype.
        param_dtype: dtype of the parameters.
    """

    width: int = 64
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    lowering: str = "conv2d"
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

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
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv: dict[str, Any] = {"lowering": self.lowering, **dtypes}
        # Pairs of columns until the first block with stride 2, which takes its input apart.
        fold = 2 if self.lowering == "conv3d_pairs" and video.shape[3] % 4 == 0 else 1

        def norm(name: str, value: Array) -> Array:
            return BatchNorm(self.axis_name, fold=fold, name=name, **dtypes)(value, train=train)

        # torchvision's 45 mid-planes of the stem, scaled with the width.
        x = FactorisedConv(
            max(1, 45 * self.width // 64),
            (1, 7, 7),
            (1, 2, 2),
            padding=3,
            fold_out=fold,
            name="stem_spatial",
            **conv,
        )(video)
        x = nn.relu(norm("stem_spatial_norm", x))
        x = FactorisedConv(
            self.width,
            (3, 1, 1),
            padding=1,
            fold_in=fold,
            fold_out=fold,
            name="stem_temporal",
            **conv,
        )(x)
        x = nn.relu(norm("stem_temporal_norm", x))
        sow(self, "stem", unfold_columns(x, fold))
        for stage, blocks in enumerate(self.stage_sizes):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                fold_in, fold = fold, 1 if stride == 2 else fold
                x = BasicBlock(
                    self.width * 2**stage,
                    stride,
                    fold_in,
                    fold,
                    axis_name=self.axis_name,
                    name=f"layer{stage + 1}_block{block + 1}",
                    **conv,
                )(x, train=train)
            sow(self, f"layer{stage + 1}", unfold_columns(x, fold))
        return unfold_columns(x, fold)
