"""Parts of the two video transformers: tubelets, self-attention with fused projections, MLP."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mvo_jax.models.layers import Array, Dropout, Linear


def tubelets(video: Array, tubelet_size: int, patch_size: int) -> Array:
    """Cut clips into blocks that do not overlap, each flattened (ViViT, section 3.2).

    Args:
        video: ``[B, T, H, W, C]``.
        tubelet_size: frames of a block.
        patch_size: pixels along each side of a block.

    Returns:
        ``[B, T / tubelet_size, patches, tubelet_size * patch_size^2 * C]``; patches go row by row,
        the values of a block by frame, row, column, channel.

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


def attend(query: Array, key: Array, value: Array) -> Array:
    """Scaled dot-product attention within the last sequence axis.

    Args:
        query: ``[..., Q, heads, D]``.
        key: ``[..., K, heads, D]``.
        value: as ``key``.

    Returns:
        ``[..., Q, heads * D]``.
    """
    scores = jnp.einsum("...qhd,...khd->...hqk", query * query.shape[-1] ** -0.5, key)
    weights = nn.softmax(scores.astype(jnp.promote_types(jnp.float32, scores.dtype)))
    mixed = jnp.einsum("...hqk,...khd->...qhd", weights.astype(value.dtype), value)
    return mixed.reshape(*mixed.shape[:-2], -1)


class FeedForward(nn.Module):
    """Two linear maps with a GELU between, dropout after it and, if asked for, after the second.

    Args:
        mlp_dim: width between the maps.
        gated: the first map has a second half whose GELU multiplies the first (GEGLU, Shazeer
            2020, arXiv 2002.05202).
        dropout_rate: rate of both dropouts.
        output_dropout: whether there is a second one.
        axis_name: device axis of the batch.
        dtype: compute dtype.
        param_dtype: dtype of the parameters.
    """

    mlp_dim: int
    gated: bool = False
    dropout_rate: float = 0.0
    output_dropout: bool = True
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[..., hidden]`` to the same shape."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        hidden = x.shape[-1]
        if self.gated:
            values, gates = jnp.split(Linear(2 * self.mlp_dim, name="in", **dtypes)(x), 2, axis=-1)
            x = values * nn.gelu(gates, approximate=False)
        else:
            x = nn.gelu(Linear(self.mlp_dim, name="in", **dtypes)(x), approximate=False)
        x = Dropout(self.dropout_rate, self.axis_name, name="dropout")(x, train=train)
        x = Linear(hidden, name="out", **dtypes)(x)
        if not self.output_dropout:
            return x
        return Dropout(self.dropout_rate, self.axis_name, name="out_dropout")(x, train=train)
