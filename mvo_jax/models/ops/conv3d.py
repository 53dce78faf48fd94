"""Convolutions of any kernel over [B, T, H, W, C], and the check of a clip before the first one.

As in ``lowerings``, one kernel can be applied in several ways. A kernel of one frame or one pixel
goes to ``spatial_convolution`` or ``temporal_convolution`` there; this module adds those that cover
both.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mvo_jax.models.ops.lowerings import LOWERINGS, spatial_convolution, temporal_convolution

Array = jax.Array
Triple = tuple[int, int, int]

SMALL_GRID = 16  # pixels; see ``_spatial_form``
WIDE = 128  # channels; measured on a CPU: 3 to 96 are faster joined, 160 to 512 summed

# He et al. 2015 with fan-in, as the public implementations initialise networks without residuals.
kaiming_normal_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def check_clip(video: Array, *, in_channels: int, frames: int, size: int) -> None:
    """Raise ValueError for clips that a network cannot take.

    Args:
        video: ``[B, T, H, W, C]``.
        in_channels: channels of the network's first convolution.
        frames: least T.
        size: least H and W.
    """
    _, steps, height, width, channels = video.shape
    if steps < frames or min(height, width) < size:
        raise ValueError(
            f"clips of {steps} frames of {height}x{width} are too small: the network takes "
            f"{frames} or more frames of {size}x{size} or more pixels"
        )
    if channels not in (1, in_channels):
        raise ValueError(f"clips have {channels} channels, the stem {in_channels}")


def _taps(x: Array, kernel: int, stride: int, padding: int) -> list[Array]:
    """The frames of ``x [B, T, ...]`` that each tap of a kernel in time meets."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (0, 0), (0, 0), (0, 0)))
    steps = (x.shape[1] - kernel) // stride + 1
    return [x[:, i : i + stride * (steps - 1) + 1 : stride] for i in range(kernel)]


def _spatial_form(form: str, height: int, width: int) -> str:
    """On a small grid a matrix product is faster than a 2-D convolution, on a CPU up to 30 times.

    XLA:CPU divides a convolution's rows among threads and packs the kernel for each: 512 to 512
    channels on 2x2 pixels take 421 ms, as im2col 15 ms. From 8x8 on the convolution is ahead.
    """
    return "im2col" if form in ("conv2d", "conv2d_cpu") and height * width <= SMALL_GRID else form


def volume_convolution(
    x: Array, kernel: Array, *, stride: Triple, padding: Triple, form: str
) -> Array:
    """Convolution with a kernel that covers time and space.

    XLA:CPU has no fast 3-D convolution, but a fast 2-D one. So frames are folded into the batch,
    and the taps in time are summed by the convolution itself (the frames under the kernel joined
    to one frame of ``kt * C`` channels) or, where that would be wide, after it.

    Args:
        x: ``[B, T, H, W, C]``.
        kernel: ``[kt, k, k, C, F]``.
        stride: (time, height, width), the last two equal.
        padding: zeros on each side of time, height and width, the last two equal.
        form: of the spatial part, see ``lowerings.spatial_convolution``; 'conv3d' leaves it whole.

    Returns:
        ``[B, T', H', W', F]``.
    """
    if form == "conv3d":
        return lax.conv_general_dilated(
            x,
            kernel,
            stride,
            [(p, p) for p in padding],
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
    taps = _taps(x, kernel.shape[0], stride[0], padding[0])
    spatial = functools.partial(
        spatial_convolution, stride=stride[1], padding=padding[1], form=form
    )
    if form == "im2col" or x.shape[-1] < WIDE:
        flat = kernel.transpose(1, 2, 0, 3, 4).reshape(1, *kernel.shape[1:3], -1, kernel.shape[-1])
        return spatial(jnp.concatenate(taps, axis=-1), flat)
    parts = [spatial(tap, kernel[i : i + 1]) for i, tap in enumerate(taps)]
    return sum(parts[1:], start=parts[0])


class Conv3d(nn.Module):
    """A convolution with square kernel; stored as ``[kt, k, k, C, F]``.

    Args:
        features: output channels.
        kernel_size: (kt, k, k).
        stride: (time, height, width), the last two equal.
        padding: zeros on each side of time, height and width, the last two equal.
        use_bias: add a bias, zero at first.
        in_channels: channels of the kernel where that is not the input's number: a one-channel
            input stands for as many equal channels. The kernel is summed over them, which is the
            same as copying the input and less work.
        lowering: key of ``lowerings.LOWERINGS``.
        kernel_init: initialiser of the kernel.
        dtype: compute dtype.
        param_dtype: dtype of the parameters.
    """

    features: int
    kernel_size: Triple
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    use_bias: bool = False
    in_channels: int | None = None
    lowering: str = "conv2d"
    kernel_init: nn.initializers.Initializer = kaiming_normal_fan_in
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, T, H, W, C]`` to ``[B, T', H', W', features]``."""
        channels = self.in_channels or x.shape[-1]
        kernel = self.param(
            "kernel",
            self.kernel_init,
            (*self.kernel_size, channels, self.features),
            self.param_dtype,
        )
        if x.shape[-1] != channels:
            kernel = kernel.sum(axis=3, keepdims=True)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        spatial_form, temporal_form = LOWERINGS[self.lowering]
        spatial_form = _spatial_form(spatial_form, *x.shape[2:4])
        stride, padding = self.stride, self.padding
        if self.kernel_size[0] == 1:
            x = spatial_convolution(
                x[:, :: stride[0]], kernel, stride=stride[1], padding=padding[1], form=spatial_form
            )
        elif self.kernel_size[1] == 1:
            x = temporal_convolution(
                x[:, :, :: stride[1], :: stride[2]],
                kernel,
                stride=stride[0],
                padding=padding[0],
                form=temporal_form,
            )
        else:
            x = volume_convolution(x, kernel, stride=stride, padding=padding, form=spatial_form)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
            x = x + bias.astype(self.dtype)
        return x


class Conv2d(nn.Module):
    """The same 2-D convolution for every frame, without bias; stored as ``[k, k, C, F]``.

    Args:
        features: output channels.
        kernel_size: k.
        stride: in-plane.
        padding: zeros on each side of height and width.
        lowering: key of ``lowerings.LOWERINGS``.
        kernel_init: initialiser of the kernel.
        dtype: compute dtype.
        param_dtype: dtype of the kernel.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    lowering: str = "conv2d"
    kernel_init: nn.initializers.Initializer = kaiming_normal_fan_in
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, T, H, W, C]`` to ``[B, T, H', W', features]``."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        return spatial_convolution(
            x.astype(self.dtype),
            kernel[None].astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
            form=_spatial_form(LOWERINGS[self.lowering][0], *x.shape[2:4]),
        )
