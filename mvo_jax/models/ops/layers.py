"""Building blocks shared by the video models: factorised convolutions, BatchNorm, dropout."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mvo_jax.models.ops.folded import folded_convolution
from mvo_jax.models.ops.lowerings import LOWERINGS, spatial_convolution, temporal_convolution

Array = jax.Array


class ModelOutput(NamedTuple):
    """What a model returns.

    Attributes:
        logits: ``[B, num_outputs]``, float32 at least.
        coarse_mask: ``[B, m, m]``, or None without mask branch.
    """

    logits: Array
    coarse_mask: Array | None


def match_channels(video: Array, channels: int) -> Array:
    """``[B, T, H, W, C]`` with the channels a model was built for; grey is copied to 3.

    Raises:
        ValueError: C is neither ``channels`` nor 1 where 3 are needed.
    """
    if video.shape[-1] == 1 and channels == 3:
        return jnp.repeat(video, 3, axis=-1)
    if video.shape[-1] != channels:
        raise ValueError(f"clips have {video.shape[-1]} channels, the stem {channels}")
    return video


# He et al. 2015 with fan-out, as torchvision initialises its video ResNets.
kaiming_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def torch_linear_kernel_init(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the default of torch.nn.Linear."""
    bound = 1 / math.sqrt(shape[0])
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nn.Module):
    """Affine map with torch.nn.Linear's default initialisation.

    Args:
        features: size of the last axis of the output.
        use_bias: False for a linear map.
        dtype: compute dtype.
        param_dtype: dtype of the parameters.
    """

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[..., C]`` to ``[..., features]``."""
        fan_in = x.shape[-1]
        kernel = self.param(
            "kernel", torch_linear_kernel_init, (fan_in, self.features), self.param_dtype
        )
        # As one matrix: the derivative of a product over several leading axes copies an operand.
        rows = x.astype(self.dtype).reshape(-1, fan_in)
        out = (rows @ kernel.astype(self.dtype)).reshape(*x.shape[:-1], self.features)
        if not self.use_bias:
            return out

        def bias_init(key, shape, dtype):
            bound = 1 / math.sqrt(fan_in)
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        bias = self.param("bias", bias_init, (self.features,), self.param_dtype)
        return out + bias.astype(self.dtype)


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


class FactorisedConv(nn.Module):
    """A (1, k, k) or (k, 1, 1) convolution without bias; kernel stored as ``[kt, kh, kw, C, F]``.

    Args:
        features: output channels.
        kernel_size: (kt, kh, kw) with kt == 1 or kh == kw == 1.
        stride: (st, sh, sw) with sh == sw.
        padding: zeros on each side of the axes the kernel covers.
        lowering: key of ``LOWERINGS``.
        fold_in: columns in the channels of the input (``folded.fold_columns``); 1 for none.
        fold_out: columns in the channels of the output.
        dtype: compute dtype.
        param_dtype: dtype of the kernel.
    """

    features: int
    kernel_size: tuple[int, int, int]
    stride: tuple[int, int, int] = (1, 1, 1)
    padding: int = 0
    lowering: str = "conv2d"
    fold_in: int = 1
    fold_out: int = 1
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, T, H, W, C]`` to ``[B, T', H', W', features]``, either of them folded."""
        kernel = self.param(
            "kernel",
            kaiming_normal_fan_out,
            (*self.kernel_size, x.shape[-1] // self.fold_in, self.features),
            self.param_dtype,
        )
        x = x.astype(self.dtype)
        if max(self.fold_in, self.fold_out) > 1:
            in_time, in_plane = (self.padding, 0) if self.kernel_size[0] > 1 else (0, self.padding)
            return folded_convolution(
                x,
                kernel,
                strides=self.stride,
                padding=(in_time, in_plane, in_plane),
                fold_in=self.fold_in,
                fold_out=self.fold_out,
            )
        kernel = kernel.astype(self.dtype)
        spatial_form, temporal_form = LOWERINGS[self.lowering]
        time_stride, stride = self.stride[0], self.stride[1]
        if self.kernel_size[0] > 1:
            return temporal_convolution(
                x, kernel, stride=time_stride, padding=self.padding, form=temporal_form
            )
        return spatial_convolution(
            x[:, ::time_stride], kernel, stride=stride, padding=self.padding, form=spatial_form
        )


def _batch_statistics(
    x: Array, axis_name: str | None, fold: int, dtype: jnp.dtype
) -> tuple[Array, Array]:
    """Mean and biased variance of ``x [..., C]`` for each channel, over all devices and columns."""
    axes = tuple(range(x.ndim - 1))
    if jnp.finfo(x.dtype).bits < 32:
        # One pass, which XLA makes part of the convolution that writes x. What E[x^2] - E[x]^2
        # loses in float32 is less than what the rounding of x to 8 bits has changed.
        x = x.astype(dtype)
        mean, square = _joined((x.mean(axes), jnp.square(x).mean(axes)), axis_name, fold)
        return mean, jnp.maximum(square - jnp.square(mean), 0)
    x = x.astype(dtype)
    local_mean = x.mean(axes)
    # A second pass about the mean: the one-pass E[x^2] - E[x]^2 loses digits in float32.
    var = jnp.square(x - local_mean).mean(axes)
    # Equal shards: the joint variance is the mean variance plus that of the means.
    mean = _joined(local_mean, axis_name, fold)
    if mean is not local_mean:
        var = _joined(var + jnp.square(local_mean - mean), axis_name, fold)
    return mean, var


def _joined(values: Any, axis_name: str | None, fold: int) -> Any:
    """Means of values ``[fold * C]`` over what shares a channel: folded columns and devices."""
    if fold > 1:
        values = jax.tree.map(lambda v: jnp.tile(v.reshape(fold, -1).mean(0), fold), values)
    return values if axis_name is None else lax.pmean(values, axis_name)


def _normalise_batch(
    x: Array, scale: Array, bias: Array, axis_name: str | None, epsilon: float, fold: int = 1
) -> tuple[Array, Array, Array]:
    """Batch normalisation in training, with its derivative in closed form.

    The derivative that JAX would build keeps and reads more arrays of the size of ``x``. Here the
    output and the input's gradient are written as ``a * x + b`` and ``a * dy + b * x + c`` with
    one number a channel: an expression ``x - mean`` that several of them shared would be stored.
    Together that halves the time of the layer on a CPU.

    Args:
        x: ``[..., C]``.
        scale: ``[C]``.
        bias: ``[C]``.
        axis_name: device axis over which statistics are joined; None on one device.
        epsilon: added to the variance.
        fold: neighbouring columns in the channels; they share statistics, scale and bias, so the
            ``[C]`` given and returned here repeat themselves ``fold`` times.

    Returns:
        The normalised ``x`` (float32 at least), the mean and the biased variance, ``[C]``. No
        gradient flows through the last two: they are for the running statistics.
    """
    return _normalise_batch_forward(x, scale, bias, axis_name, epsilon, fold)[0]


def _normalise_batch_forward(
    x: Array, scale: Array, bias: Array, axis_name: str | None, epsilon: float, fold: int
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    dtype = jnp.promote_types(jnp.float32, x.dtype)
    mean, var = _batch_statistics(x, axis_name, fold, dtype)
    inverse = lax.rsqrt(var + epsilon)
    factor = scale * inverse
    out = x.astype(dtype) * factor + (bias - mean * factor)
    return (out, mean, var), (x, scale, bias, mean, inverse)


def _normalise_batch_backward(
    axis_name: str | None,
    epsilon: float,
    fold: int,
    residuals: tuple[Array, ...],
    cotangents: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    del epsilon
    x, scale, bias, mean, inverse = residuals
    dy = cotangents[0]
    axes = tuple(range(x.ndim - 1))
    values = x.astype(dy.dtype)
    dbias = dy.sum(axes)
    # Centred, so that a constant channel gives exactly 0. The barrier keeps XLA from noticing that
    # the forward pass has the same difference, and from storing it between the two.
    dscale = ((values - lax.optimization_barrier(mean)) * dy).sum(axes) * inverse
    # What the shared mean and variance pass on to every element, over all devices and columns.
    through_mean, through_var = _joined((dbias, dscale), axis_name, fold)
    count = x.size // x.shape[-1]
    factor = scale * inverse
    slope = -factor * inverse * through_var / count
    dx = factor * dy + slope * values - (factor * through_mean / count + slope * mean)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


normalise_batch = jax.custom_vjp(_normalise_batch, nondiff_argnums=(3, 4, 5))
normalise_batch.defvjp(_normalise_batch_forward, _normalise_batch_backward)


class BatchNorm(nn.Module):
    """Batch normalisation over all devices, with torch's running variance.

    Differs from ``flax.linen.BatchNorm`` in four points that matter here: the running variance is
    the unbiased one, as in torch; the batch variance is computed about the mean in a second pass
    (of bfloat16 in the first); statistics are kept in float32 at least; the derivative is written
    out (``normalise_batch``).

    Args:
        axis_name: name of the device axis over which statistics are joined; None on one device.
        momentum: share of the old running value that is kept (torch's 0.1 is 0.9 here).
        epsilon: added to the variance.
        fold: neighbouring columns in the channels of the input, which share their statistics.
        dtype: dtype of the output.
        param_dtype: dtype of scale and bias.
    """

    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    fold: int = 1
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalise ``[..., C]`` over all axes but the last."""
        channels = x.shape[-1] // self.fold
        stat_dtype = jnp.promote_types(jnp.float32, x.dtype)
        running_mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(channels, stat_dtype))
        running_var = self.variable("batch_stats", "var", lambda: jnp.ones(channels, stat_dtype))
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)

        def folded(value: Array) -> Array:
            return jnp.tile(value, self.fold) if self.fold > 1 else value

        scale, bias = folded(scale), folded(bias)
        if not train:
            factor = scale * lax.rsqrt(folded(running_var.value) + self.epsilon)
            return ((x - folded(running_mean.value)) * factor + bias).astype(self.dtype)
        axis_name = None if self.is_initializing() else self.axis_name
        out, mean, var = normalise_batch(x, scale, bias, axis_name, self.epsilon, self.fold)
        mean, var = mean[:channels], var[:channels]
        if not self.is_initializing():
            devices = 1 if axis_name is None else lax.axis_size(axis_name)
            count = x.size // channels * devices
            keep, unbiased = self.momentum, count / max(count - 1, 1)
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * unbiased * var
        return out.astype(self.dtype)


class Dropout(nn.Module):
    """Dropout whose mask for an example does not depend on how the batch is spread over devices.

    Every example draws from the key folded with its position in the global batch, so 1, 2 or 8
    devices see the same masks. The mask is sown as ``mask`` for parity tests.

    Args:
        rate: probability of dropping.
        axis_name: device axis of the batch; None on one device.
        shared_axes: axes of one example (without batch) that share a mask entry, e.g. (0, 1) drops
            whole channels of an ``[H, W, C]`` map.
    """

    rate: float
    axis_name: str | None = None
    shared_axes: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[B, ...]``, unchanged unless ``train``; needs the rng collection 'dropout'."""
        if not train or self.rate == 0.0:
            return x
        batch = x.shape[0]
        first = 0
        if self.axis_name is not None and not self.is_initializing():
            first = lax.axis_index(self.axis_name) * batch
        key = self.make_rng("dropout")
        shape = [1 if i in self.shared_axes else n for i, n in enumerate(x.shape[1:])]
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(batch))
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.rate, shape))(keys)
        self.sow("intermediates", "mask", keep, reduce_fn=_last, init_fn=_nothing)
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros((), x.dtype))


def _last(_: object, value: Array) -> Array:
    return value


def _nothing() -> None:
    return None


def sow(module: nn.Module, name: str, value: Array) -> Array:
    """Record a named intermediate, kept only when 'intermediates' is mutable; returns ``value``."""
    module.sow("intermediates", name, value, reduce_fn=_last, init_fn=_nothing)
    return value
