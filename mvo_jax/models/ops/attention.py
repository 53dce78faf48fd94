"""Parts of the two video transformers: tubelets, self-attention with fused projections, MLP."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mvo_jax.models.ops.layers import Dropout, Linear, gelu
from mvo_jax.models.ops.numerics import Array, Numerics


def tubelets(video: Array, tubelet_size: int, patch_size: int) -> Array:
    """Cut clips into blocks that do not overlap, each flattened (ViViT, section 3.2).

    ``[B, T, H, W, C]`` to ``[B, T / tubelet_size, patches, tubelet_size * patch_size^2 * C]``;
    patches go row by row, the values of a block by frame, row, column, channel.

    Raises:
        ValueError: the blocks do not fill the clip.
    """
    batch, frames, height, width, channels = video.shape
    if frames % tubelet_size or height % patch_size or width % patch_size:
        raise ValueError(
            f"clips of {frames} frames of {height}x{width} cannot be cut into blocks of "
            f"{tubelet_size} frames of {patch_size}x{patch_size} pixels"
        )
    steps, rows, columns = frames // tubelet_size, height // patch_size, width // patch_size
    x = video.reshape(
        batch, steps, tubelet_size, rows, patch_size, columns, patch_size, channels
    ).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(batch, steps, rows * columns, -1)


def split_heads(qkv: Array, num_heads: int) -> tuple[Array, Array, Array]:
    """Queries, keys and values ``[..., S, heads, D]`` of a fused ``[..., S, 3 * heads * D]``."""
    query, key, value = jnp.split(qkv.reshape(*qkv.shape[:-1], 3 * num_heads, -1), 3, axis=-2)
    return query, key, value


# Weights of one sequence (heads * Q * K) above which those of a batch are not kept for the
# backward pass. ViViT's 8 heads over 257 tokens are 0.5 million, TimeSformer's at most 0.03.
MANY_WEIGHTS = 2**17


def attend(query: Array, key: Array, value: Array) -> Array:
    """Attention of ``[..., Q, heads, D]``, ``[..., K, heads, D]`` twice to ``[..., Q, heads * D]``.

    The weights of long sequences are computed again in the backward pass instead of kept, and on a
    CPU one sequence after the other, while they are in the cache (docs/decisions.md).
    """
    weights = query.shape[-2] * query.shape[-3] * key.shape[-3]
    return (_attend_long if weights > MANY_WEIGHTS else _attend)(query, key, value)


def _attend(query: Array, key: Array, value: Array) -> Array:
    scores = jnp.einsum("...qhd,...khd->...hqk", query * query.shape[-1] ** -0.5, key)
    weights = nn.softmax(scores.astype(jnp.promote_types(jnp.float32, scores.dtype)))
    mixed = jnp.einsum("...hqk,...khd->...qhd", weights.astype(value.dtype), value)
    return mixed.reshape(*mixed.shape[:-2], -1)


def _on_platform(function: Any, *arrays: Array) -> Any:
    """``function`` of all sequences, on a CPU of one after the other."""

    def one_by_one(*arrays: Array) -> Any:
        ranks = (3, 3, 3, 2)  # of query, key, value and cotangent of one sequence
        leading = arrays[0].shape[:-3]
        flat = [a.reshape(-1, *a.shape[a.ndim - n :]) for a, n in zip(arrays, ranks, strict=False)]
        out = lax.map(lambda sequence: function(*sequence), tuple(flat))
        return jax.tree.map(lambda a: a.reshape(*leading, *a.shape[1:]), out)

    return lax.platform_dependent(*arrays, cpu=one_by_one, default=function)


@jax.custom_vjp
def _attend_long(query: Array, key: Array, value: Array) -> Array:
    return _on_platform(_attend, query, key, value)


def _attend_long_forward(query: Array, key: Array, value: Array) -> Any:
    return _attend_long(query, key, value), (query, key, value)


def _attend_long_backward(residuals: tuple[Array, ...], cotangent: Array) -> Any:
    def backward(*arrays: Array) -> Any:
        return jax.vjp(_attend, *arrays[:3])[1](arrays[3])

    return _on_platform(backward, *residuals, cotangent)


_attend_long.defvjp(_attend_long_forward, _attend_long_backward)


class FeedForward(nn.Module):
    """Two linear maps with a GELU between and dropout after it; gated, or with a second dropout.

    Of the gated form the first map has a second half whose GELU multiplies the first (GEGLU,
    Shazeer 2020, arXiv 2002.05202).
    """

    mlp_dim: int  # width between the maps
    gated: bool = False
    dropout_rate: float = 0.0
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[..., hidden]`` to the same shape."""
        hidden, numerics = x.shape[-1], self.numerics
        if self.gated:
            values, gates = jnp.split(Linear(2 * self.mlp_dim, numerics, name="in")(x), 2, axis=-1)
            x = values * gelu(gates)
        else:
            x = gelu(Linear(self.mlp_dim, numerics, name="in")(x))
        x = Dropout(self.dropout_rate, numerics, name="dropout")(x, train=train)
        x = Linear(hidden, numerics, name="out")(x)
        if self.gated:
            return x
        return Dropout(self.dropout_rate, numerics, name="out_dropout")(x, train=train)
