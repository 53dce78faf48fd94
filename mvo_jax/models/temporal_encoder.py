"""Temporal refinement classifier: a transformer encoder over time steps with a CLS token.

Paper section 2.2 ("BERT"); Kalfaoglu et al., ECCV workshops 2020 (late temporal modelling). Two
named forms: ``released`` repeats the authors' code, ``standard`` is the textbook transformer.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from mvo_jax.models.ops.layers import Array, Dropout, Linear, sow

FORMS = ("released", "standard")


class LayerNorm(nn.Module):
    """Layer normalisation in one of two forms.

    Args:
        form: 'released' divides by (unbiased standard deviation + 1e-6); 'standard' divides by
            sqrt(biased variance + epsilon).
        epsilon: of the standard form; torch's default.
        dtype: dtype of the output; statistics are float32 at least.
        param_dtype: dtype of scale and bias.
    """

    form: str = "released"
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalise ``[..., C]`` over the last axis."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
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
        return (scale * normal + bias).astype(self.dtype)


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and feed-forward block, dropout on both branches and the output.

    Args:
        num_heads: attention heads.
        mlp_dim: width of the feed-forward part.
        dropout_rate: for attention weights, feed-forward, both branches and the block's output.
        form: 'released' (own LayerNorm, tanh GELU) or 'standard' (textbook LayerNorm, exact GELU).
        axis_name: device axis of the batch.
        dtype: compute dtype.
        param_dtype: dtype of the parameters.
    """

    num_heads: int
    mlp_dim: int
    dropout_rate: float = 0.1
    form: str = "released"
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[B, S, hidden]`` to the same shape."""
        batch, tokens, hidden = x.shape
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def dropout(name: str, value: Array) -> Array:
            return Dropout(self.dropout_rate, self.axis_name, name=name)(value, train=train)

        y = LayerNorm(self.form, name="attention_norm", **dtypes)(x)
        query, key, value = (
            Linear(hidden, name=name, **dtypes)(y).reshape(batch, tokens, self.num_heads, -1)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(query.shape[-1])
        weights = nn.softmax(scores.astype(jnp.promote_types(jnp.float32, scores.dtype)))
        weights = dropout("attention_dropout", weights.astype(self.dtype))
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, tokens, hidden)
        x = x + dropout("attention_branch_dropout", Linear(hidden, name="out", **dtypes)(y))

        y = LayerNorm(self.form, name="mlp_norm", **dtypes)(x)
        y = nn.gelu(
            Linear(self.mlp_dim, name="mlp_in", **dtypes)(y), approximate=self.form == "released"
        )
        y = Linear(hidden, name="mlp_out", **dtypes)(dropout("mlp_dropout", y))
        x = x + dropout("mlp_branch_dropout", y)
        return dropout("output_dropout", x)


class TemporalEncoder(nn.Module):
    """CLS token, learned positions and encoder blocks; no final norm, as in the released code.

    Args:
        num_layers: encoder blocks.
        num_heads: attention heads; must divide the hidden size.
        mlp_dim: width of the feed-forward part; None for four times the hidden size.
        dropout_rate: dropout after the embedding and in the blocks.
        form: 'released' or 'standard', see ``EncoderBlock``.
        axis_name: device axis of the batch.
        dtype: compute dtype.
        param_dtype: dtype of the parameters.
    """

    num_layers: int = 1
    num_heads: int = 8
    mlp_dim: int | None = None
    dropout_rate: float = 0.1
    form: str = "released"
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, *, train: bool) -> Array:
        """Encode a sequence of time steps.

        Args:
            tokens: ``[B, S, hidden]``, spatially pooled features.
            train: apply dropout.

        Returns:
            ``[B, 1 + S, hidden]``; row 0 belongs to the CLS token. Sows 'embedded' and 'encoded'.

        Raises:
            ValueError: unknown ``form``, or ``num_heads`` does not divide the hidden size.
        """
        batch, steps, hidden = tokens.shape
        if self.form not in FORMS:
            raise ValueError(f"encoder form {self.form!r} is unknown; choose from {FORMS}")
        if hidden % self.num_heads:
            raise ValueError(f"hidden size {hidden} is not divisible by {self.num_heads} heads")
        normal = nn.initializers.normal(0.02)
        cls = self.param("cls", normal, (1, 1, hidden), self.param_dtype)
        position = self.param("position", normal, (1, steps + 1, hidden), self.param_dtype)

        cls = jnp.broadcast_to(cls, (batch, 1, hidden)).astype(self.dtype)
        x = jnp.concatenate([cls, tokens.astype(self.dtype)], axis=1) + position.astype(self.dtype)
        x = Dropout(self.dropout_rate, self.axis_name, name="embedding_dropout")(x, train=train)
        sow(self, "embedded", x)
        for block in range(self.num_layers):
            x = EncoderBlock(
                self.num_heads,
                self.mlp_dim or 4 * hidden,
                self.dropout_rate,
                self.form,
                self.axis_name,
                self.dtype,
                self.param_dtype,
                name=f"block{block + 1}",
            )(x, train=train)
        return sow(self, "encoded", x)
