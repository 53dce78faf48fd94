"""ViViT, factorised encoder: one transformer over the patches of a time step, one over time.

Arnab et al., ICCV 2021 (arXiv 2103.15691), section 3.3, Model 2, with the tubelet embedding of
section 3.2. Layout and details follow the public PyTorch implementation rishikksh20/ViViT-pytorch,
because at dim 512, 6 + 6 layers, 8 heads and patch 4 (41,787,393 parameters) it comes nearest to
the paper's 41.98 M; which configuration the paper ran is not known.

As there: a learned position for every (time step, patch) and for the spatial CLS token of every
step; a LayerNorm after each encoder and one more before the classifier; no bias in the fused
query-key-value map; the temporal encoder has a CLS token and no positions of its own; CLS tokens
and positions start as N(0, 1). The authors' code (scenic) learns one set of positions for patches
and one for time steps, starts them as N(0, 0.02), and has biases.

Differences: tubelets of several frames (``tubelet_size``) and tokens that start smaller
(``token_deviation``) can be asked for; the PyTorch code has neither.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from mvo_jax.models.baselines.baseline import Transformer
from mvo_jax.models.ops.attention import FeedForward, attend, split_heads
from mvo_jax.models.ops.layers import Dropout, LayerNorm, Linear, sow
from mvo_jax.models.ops.numerics import Array


class Block(nn.Module):
    """Pre-norm self-attention and MLP."""

    @nn.compact
    def __call__(self, of: "ViViT", x: Array, *, train: bool) -> Array:
        """``[B, S, hidden]`` to the same shape."""
        numerics, rate = of.numerics, of.dropout_rate
        y = LayerNorm("standard", numerics, name="attention_norm")(x)
        qkv = Linear(3 * of.num_heads * of.head_dim, numerics, use_bias=False, name="qkv")(y)
        y = Linear(x.shape[-1], numerics, name="out")(attend(*split_heads(qkv, of.num_heads)))
        x = x + Dropout(rate, numerics, name="attention_dropout")(y, train=train)
        y = LayerNorm("standard", numerics, name="mlp_norm")(x)
        mlp = FeedForward(of.mlp_dim, dropout_rate=rate, numerics=numerics, name="mlp")
        return x + mlp(y, train=train)


class ViViT(Transformer):
    """ViViT. Clips have two steps of ``tubelet_size`` frames or more."""

    num_layers: int = 6  # blocks of each of the two encoders
    num_heads: int = 8
    patch_size: int = 4
    tubelet_size: int = 1  # frames of a patch; the authors' models have 2
    # Of CLS tokens and positions at the start; 0.02 in the authors' code. Large ones hide the
    # images from the first blocks.
    token_deviation: float = 1.0

    def features(self, video: Array, *, train: bool) -> Array:
        """The CLS token of the encoder over time, ``[B, hidden]``.

        Sows 'embedded' ``[B * T', 1 + N, hidden]``, 'steps' ``[B, T', hidden]`` (CLS token of every
        step) and 'pooled' ``[B, hidden]``.
        """
        x = self.embed(video, self.tubelet_size)
        batch, steps, number, hidden = x.shape
        learned = functools.partial(self.learned, deviation=self.token_deviation)

        token = jnp.broadcast_to(learned("space_token", 1), (batch, steps, 1, hidden))
        x = jnp.concatenate([token, x], axis=2) + learned("position", steps, number + 1)
        x = x.reshape(batch * steps, number + 1, hidden)
        x = self.dropout("embedding_dropout", x, self.dropout_rate, train=train)
        sow(self, "embedded", x)

        x = self._encode("space", x, train=train)[:, 0].reshape(batch, steps, hidden)
        sow(self, "steps", x)
        token = jnp.broadcast_to(learned("time_token", 1), (batch, 1, hidden))
        x = self._encode("time", jnp.concatenate([token, x], axis=1), train=train)[:, 0]
        sow(self, "pooled", x)
        return LayerNorm("standard", self.numerics.exact, name="head_norm")(x)

    def _encode(self, name: str, x: Array, *, train: bool) -> Array:
        """One of the two encoders, ``[B, S, hidden]`` to the same shape."""
        for block in range(self.num_layers):
            x = Block(name=f"{name}_block{block + 1}")(self, x, train=train)
        return LayerNorm("standard", self.numerics, name=f"{name}_norm")(x)
