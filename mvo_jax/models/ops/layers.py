"""What every video model needs: its output, linear maps, normalisation, dropout."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mvo_jax.models.ops.numerics import Array, Numerics


class ModelOutput(NamedTuple):
    """What a model returns."""

    logits: Array  # [B, num_outputs], float32 at least
    coarse_mask: Array | None = None  # [B, m, m]; None without mask branch


def match_channels(video: Array, channels: int) -> Array:
    """``[B, T, H, W, C]`` with a model's ``channels``, grey copied to 3; ValueError for others."""
    if video.shape[-1] == 1 and channels == 3:
        return jnp.repeat(video, 3, axis=-1)
    if video.shape[-1] != channels:
        raise ValueError(f"clips have {video.shape[-1]} channels, the stem {channels}")
    return video


def check_clip(video: Array, *, in_channels: int, frames: int, size: int) -> None:
    """Raise ValueError for clips below ``frames`` or ``size``, or of other channels but grey."""
    _, steps, height, width, channels = video.shape
    if steps < frames or min(height, width) < size:
        raise ValueError(
            f"clips of {steps} frames of {height}x{width} are too small: the network takes "
            f"{frames} or more frames of {size}x{size} or more pixels"
        )
    if channels not in (1, in_channels):
        raise ValueError(f"clips have {channels} channels, the stem {in_channels}")


# He et al. 2015 with fan-out, as torchvision initialises its video ResNets.
kaiming_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Linear(nn.Module):
    """Affine map that starts as torch.nn.Linear: U(-1/sqrt(C), 1/sqrt(C)), kernel and bias."""

    features: int
    numerics: Numerics = Numerics()
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[..., C]`` to ``[..., features]``."""
        fan_in, dtype, param_dtype = x.shape[-1], self.numerics.dtype, self.numerics.param_dtype

        def start(key: Array, shape: Sequence[int], dtype: Any) -> Array:
            bound = 1 / math.sqrt(fan_in)
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        kernel = self.param("kernel", start, (fan_in, self.features), param_dtype)
        # As one matrix: the derivative of a product over several leading axes copies an operand.
        rows = x.astype(dtype).reshape(-1, fan_in)
        out = (rows @ kernel.astype(dtype)).reshape(*x.shape[:-1], self.features)
        if not self.use_bias:
            return out
        return out + self.param("bias", start, (self.features,), param_dtype).astype(dtype)


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """``x`` times the normal distribution function of ``x`` (Hendrycks and Gimpel 2016), exactly.

    Keeps ``x`` alone for the backward pass; the derivative that JAX would build keeps three more
    arrays of its size. Written with erf as torch is: with erfc, which ``flax.linen.gelu`` uses, XLA
    evaluates two approximations for every element.
    """
    return x * _normal_cdf(x)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    return gelu(x), x


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    # Without the barrier XLA keeps erf(x) of the forward pass after all.
    x, dy = lax.optimization_barrier((x, dy))
    density = jnp.exp(-0.5 * jnp.square(x)) * (1 / math.sqrt(2 * math.pi))
    return (dy * (_normal_cdf(x) + x * density),)


gelu.defvjp(_gelu_forward, _gelu_backward)


# Positions of a decoder's maps, where a second look at the mean, and sums by frames, cost nothing.
FEW = 2**13


def _batch_statistics(
    x: Array, axis_name: str | None, columns: int, dtype: jnp.dtype
) -> tuple[Array, Array]:
    """Mean and biased variance of ``x [..., C]`` for each channel, over all devices and columns."""
    axes = tuple(range(x.ndim - 1))
    if jnp.finfo(x.dtype).bits < 32:
        # One pass, which XLA makes part of the convolution that writes x. What E[x^2] - E[x]^2
        # loses in float32 is less than what the rounding of x to 8 bits has changed.
        x = x.astype(dtype)
        mean, square = _joined((x.mean(axes), jnp.square(x).mean(axes)), axis_name, columns)
        return mean, jnp.maximum(square - jnp.square(mean), 0)
    x = x.astype(dtype)
    # Where there are frames, of each frame first. One chain of float32 additions over all positions
    # leaves an error in the mean that every element of the layer then shares: gradients of the
    # decoder were 2.6 times as far from the truth as PyTorch's, which sums in float64. (XLA joins a
    # sum of sums into one chain again; means it leaves.)
    local_mean = x.mean((-3, -2)).mean(axes[:-2]) if x.ndim > 3 else x.mean(axes)
    if x.size // x.shape[-1] <= FEW:
        local_mean = local_mean + (x - local_mean).mean(axes)
    # A second pass about the mean: the one-pass E[x^2] - E[x]^2 loses digits in float32.
    var = jnp.square(x - local_mean).mean(axes)
    # Equal shards: the joint variance is the mean variance plus that of the means.
    mean = _joined(local_mean, axis_name, columns)
    if mean is not local_mean:
        var = _joined(var + jnp.square(local_mean - mean), axis_name, columns)
    return mean, var


def _joined(values: Any, axis_name: str | None, columns: int) -> Any:
    """Means of values ``[columns * C]`` over what shares a channel: joined columns and devices."""
    if columns > 1:
        values = jax.tree.map(lambda v: jnp.tile(v.reshape(columns, -1).mean(0), columns), values)
    return values if axis_name is None else lax.pmean(values, axis_name)


def _total(x: Array) -> Array:
    """Sum of ``x [..., C]`` for each channel.

    Of few positions by the means of frames, as in ``_batch_statistics``: the gradient of a bias is
    a sum that may cancel, and one chain of additions had twice PyTorch's error in I3D.
    """
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    if x.ndim > 3 and count <= FEW:
        return x.mean((-3, -2)).mean(axes[:-2]) * count
    return x.sum(axes)


def _normalise_batch(
    x: Array, scale: Array, bias: Array, axis_name: str | None, epsilon: float, columns: int = 1
) -> tuple[Array, Array, Array]:
    """Batch normalisation in training, with its derivative in closed form.

    The derivative that JAX would build keeps and reads more arrays of the size of ``x``. Here the
    output and the input's gradient are written as ``a * x + b`` and ``a * dy + b * x + c`` with
    one number a channel: an expression ``x - mean`` that several of them shared would be stored.
    Together that halves the time of the layer on a CPU.

    Args:
        columns: neighbouring columns in the channels; they share statistics, scale and bias, so
            the ``[C]`` given and returned here repeat themselves as many times.

    Returns:
        The normalised ``x`` (float32 at least), the mean and the biased variance, ``[C]``. No
        gradient flows through the last two: they are for the running statistics.
    """
    return _normalise_batch_forward(x, scale, bias, axis_name, epsilon, columns)[0]


def _normalise_batch_forward(
    x: Array, scale: Array, bias: Array, axis_name: str | None, epsilon: float, columns: int
) -> Any:
    dtype = jnp.promote_types(jnp.float32, x.dtype)
    mean, var = _batch_statistics(x, axis_name, columns, dtype)
    inverse = lax.rsqrt(var + epsilon)
    factor = scale * inverse
    out = x.astype(dtype) * factor + (bias - mean * factor)
    return (out, mean, var), (x, scale, bias, mean, inverse)


def _normalise_batch_backward(
    axis_name: str | None, epsilon: float, columns: int, residuals: Any, cotangents: Any
) -> tuple[Array, Array, Array]:
    del epsilon
    x, scale, bias, mean, inverse = residuals
    dy = cotangents[0]
    values = x.astype(dy.dtype)
    dbias = _total(dy)
    # Centred, so that a constant channel gives exactly 0. The barrier keeps XLA from noticing that
    # the forward pass has the same difference, and from storing it between the two.
    dscale = _total((values - lax.optimization_barrier(mean)) * dy) * inverse
    # What the shared mean and variance pass on to every element, over all devices and columns.
    through_mean, through_var = _joined((dbias, dscale), axis_name, columns)
    count = x.size // x.shape[-1]
    factor = scale * inverse
    slope = -factor * inverse * through_var / count
    dx = factor * dy + slope * values - (factor * through_mean / count + slope * mean)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


normalise_batch = jax.custom_vjp(_normalise_batch, nondiff_argnums=(3, 4, 5))
normalise_batch.defvjp(_normalise_batch_forward, _normalise_batch_backward)


class BatchNorm(nn.Module):
    """Batch normalisation over all devices.

    Unlike ``flax.linen.BatchNorm``: the running variance is the unbiased one, as in torch; the
    batch variance is computed about the mean in a second pass (of bfloat16 in the first);
    statistics are kept in float32 at least; the derivative is written out (``normalise_batch``).
    """

    numerics: Numerics = Numerics()
    momentum: float = 0.9  # share of the old running value that is kept; torch's 0.1 is 0.9 here
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, *, train: bool, columns: int = 1) -> Array:
        """Normalise ``[..., columns * C]`` over all axes but the last.

        ``columns`` neighbouring columns in the channels share their statistics.
        """
        numerics, channels = self.numerics, x.shape[-1] // columns
        stat_dtype = jnp.promote_types(jnp.float32, x.dtype)
        running_mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(channels, stat_dtype))
        running_var = self.variable("batch_stats", "var", lambda: jnp.ones(channels, stat_dtype))
        scale = self.param("scale", nn.initializers.ones, (channels,), numerics.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), numerics.param_dtype)

        def repeated(value: Array) -> Array:
            return jnp.tile(value, columns) if columns > 1 else value

        scale, bias = repeated(scale), repeated(bias)
        if not train:
            factor = scale * lax.rsqrt(repeated(running_var.value) + self.epsilon)
            return ((x - repeated(running_mean.value)) * factor + bias).astype(numerics.dtype)
        axis_name = None if self.is_initializing() else numerics.axis_name
        out, mean, var = normalise_batch(x, scale, bias, axis_name, self.epsilon, columns)
        mean, var = mean[:channels], var[:channels]
        if not self.is_initializing():
            devices = 1 if axis_name is None else lax.axis_size(axis_name)
            count = x.size // channels * devices
            keep, unbiased = self.momentum, count / max(count - 1, 1)
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * unbiased * var
        return out.astype(numerics.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation in one of two forms.

    'released' (the authors' encoder) divides by (unbiased standard deviation + 1e-6); 'standard'
    divides by sqrt(biased variance + epsilon), by default torch's.
    """

    form: str = "standard"
    numerics: Numerics = Numerics()
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalise ``[..., C]`` over the last axis."""
        channels, param_dtype = x.shape[-1], self.numerics.param_dtype
        scale = self.param("scale", nn.initializers.ones, (channels,), param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), param_dtype)
        x = x.astype(jnp.promote_types(jnp.float32, x.dtype))
        centred = x - x.mean(-1, keepdims=True)
        square = jnp.square(centred).sum(-1, keepdims=True)
        if self.form == "released":
            # A constant row has deviation 0, where sqrt has no finite slope; torch's gradient is
            # nan there too. The tiny floor leaves every other value as it is.
            deviation = jnp.sqrt(jnp.maximum(square / (channels - 1), jnp.finfo(x.dtype).tiny))
            normal = centred / (deviation + 1e-6)
        else:
            normal = centred * lax.rsqrt(square / channels + self.epsilon)
        return (scale * normal + bias).astype(self.numerics.dtype)


class Dropout(nn.Module):
    """Dropout whose masks are the same on 1, 2 or 8 devices; they are sown as ``mask``.

    Every example draws from the key joined with its position in the global batch.
    """

    rate: float  # probability of dropping
    numerics: Numerics = Numerics()
    # Axes of one example that share a mask entry: (0, 1) drops whole channels of [H, W, C].
    shared_axes: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[B, ...]``, unchanged unless ``train``; needs the rng collection 'dropout'."""
        if not train or self.rate == 0.0:
            return x
        batch, axis_name = x.shape[0], self.numerics.axis_name
        first = 0
        if axis_name is not None and not self.is_initializing():
            first = lax.axis_index(axis_name) * batch
        key = self.make_rng("dropout")
        shape = [1 if i in self.shared_axes else n for i, n in enumerate(x.shape[1:])]
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(batch))
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.rate, shape))(keys)
        sow(self, "mask", keep)
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros((), x.dtype))


def sow(module: nn.Module, name: str, value: Array) -> Array:
    """Record a named intermediate, kept only when 'intermediates' is mutable; returns ``value``."""
    module.sow("intermediates", name, value, lambda _, new: new, lambda: value)
    return value
