"""The convolution of the systems that are not factorised throughout, by itself and with a norm."""

import flax.linen as nn

from mvo_jax.models.ops.layers import BatchNorm, kaiming_normal_fan_out
from mvo_jax.models.ops.lowerings import Triple, convolution, half
from mvo_jax.models.ops.numerics import Array, Numerics

SMALL_GRID = 16  # pixels; see ``Conv3d``

# He et al. 2015 with fan-in, as the public implementations initialise networks without residuals.
kaiming_normal_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Conv3d(nn.Module):
    """A convolution with square kernel; stored as ``[kt, k, k, C, F]``.

    On a small grid it is a matrix product where the lowering has a 2-D convolution. XLA:CPU divides
    that one's rows among threads and packs the kernel for each: 512 to 512 channels on 2x2 pixels
    take 421 ms, as im2col 15 ms. From 8x8 on the convolution is ahead.
    """

    features: int
    kernel_size: Triple  # (kt, k, k)
    stride: Triple = (1, 1, 1)  # of time, height and width, the last two equal
    padding: Triple | None = None  # zeros on each side of the same; None for half of the kernel
    numerics: Numerics = Numerics()
    use_bias: bool = False  # zero at first
    # Channels of the kernel where a one-channel input stands for as many equal ones. The kernel is
    # summed over them, which is the same as copying the input and less work.
    in_channels: int | None = None
    flat: bool = False  # store the kernel of a 2-D convolution, kt 1, as [k, k, C, F]
    kernel_init: nn.initializers.Initializer = kaiming_normal_fan_in

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, T, H, W, C]`` to ``[B, T', H', W', features]``."""
        numerics = self.numerics
        channels = self.in_channels or x.shape[-1]
        taps = self.kernel_size[1:] if self.flat else self.kernel_size
        shape = (*taps, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, numerics.param_dtype)
        kernel = kernel[None] if self.flat else kernel
        if x.shape[-1] != channels:
            kernel = kernel.sum(axis=3, keepdims=True)
        lowering = numerics.lowering or "conv2d"
        small = x.shape[2] * x.shape[3] <= SMALL_GRID and self.kernel_size[1] > 1
        x = convolution(
            x.astype(numerics.dtype),
            kernel.astype(numerics.dtype),
            stride=self.stride,
            padding=self.padding or half(self.kernel_size),
            lowering="im2col_conv1d" if small and lowering.startswith("conv2d") else lowering,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), numerics.param_dtype)
            x = x + bias.astype(numerics.dtype)
        return x


class ConvNorm(nn.Module):
    """Convolution and BatchNorm, then ReLU unless ``relu`` is False; other fields as of the two."""

    features: int
    kernel_size: Triple
    numerics: Numerics = Numerics()
    stride: Triple = (1, 1, 1)
    relu: bool = True
    in_channels: int | None = None
    padding: Triple | None = None
    kernel_init: nn.initializers.Initializer = kaiming_normal_fan_out
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[B, T, H, W, C]`` to ``[B, T', H', W', features]``."""
        x = Conv3d(
            self.features,
            self.kernel_size,
            self.stride,
            self.padding,
            self.numerics,
            in_channels=self.in_channels,
            kernel_init=self.kernel_init,
            name="conv",
        )(x)
        x = BatchNorm(self.numerics, self.momentum, self.epsilon, name="norm")(x, train=train)
        return nn.relu(x) if self.relu else x
