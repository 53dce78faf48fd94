"""Temporal refinement classifier: a transformer encoder over time steps with a CLS token.

Paper section 2.2 ("BERT"); Kalfaoglu et al., ECCV workshops 2020 (late temporal modelling). Two
named forms: ``released`` repeats the authors' code, ``standard`` is the textbook transformer.
"""

import flax.linen as nn
import jax.numpy as jnp

from mvo_jax.models.ops.layers import Dropout, LayerNorm, Linear, sow
from mvo_jax.models.ops.numerics import Array, Numerics

FORMS = ("released", "standard")


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and feed-forward block, dropout on both branches and the output.

    Args:
        num_heads: attention heads.
        mlp_dim: width of the feed-forward part.
        dropout_rate: for attention weights, feed-forward, both branches and the block's output.
        form: 'released' (own LayerNorm, tanh GELU) or 'standard' (textbook LayerNorm, exact GELU).
        numerics: see ``Numerics``.
    """

    num_heads: int
    mlp_dim: int
    dropout_rate: float = 0.1
    form: str = "released"
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[B, S, hidden]`` to the same shape."""
        batch, tokens, hidden = x.shape
        numerics = self.numerics

        def dropout(name: str, value: Array) -> Array:
            return Dropout(self.dropout_rate, numerics, name=name)(value, train=train)

        y = LayerNorm(self.form, numerics, name="attention_norm")(x)
        query, key, value = (
            Linear(hidden, numerics, name=name)(y).reshape(batch, tokens, self.num_heads, -1)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(query.shape[-1])
        weights = nn.softmax(scores.astype(jnp.promote_types(jnp.float32, scores.dtype)))
        weights = dropout("attention_dropout", weights.astype(numerics.dtype))
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, tokens, hidden)
        x = x + dropout("attention_branch_dropout", Linear(hidden, numerics, name="out")(y))

        y = LayerNorm(self.form, numerics, name="mlp_norm")(x)
        y = Linear(self.mlp_dim, numerics, name="mlp_in")(y)
        y = nn.gelu(y, approximate=self.form == "released")
        y = Linear(hidden, numerics, name="mlp_out")(dropout("mlp_dropout", y))
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
        numerics: see ``Numerics``.
    """

    num_layers: int = 1
    num_heads: int = 8
    mlp_dim: int | None = None
    dropout_rate: float = 0.1
    form: str = "released"
    numerics: Numerics = Numerics()

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
        numerics, normal = self.numerics, nn.initializers.normal(0.02)
        cls = self.param("cls", normal, (1, 1, hidden), numerics.param_dtype)
        position = self.param("position", normal, (1, steps + 1, hidden), numerics.param_dtype)

        # Copied in the dtype of the parameters, so that its gradient is summed in it.
        cls = jnp.broadcast_to(cls, (batch, 1, hidden)).astype(numerics.dtype)
        x = jnp.concatenate([cls, tokens.astype(numerics.dtype)], axis=1)
        x = x + position.astype(numerics.dtype)
        x = Dropout(self.dropout_rate, numerics, name="embedding_dropout")(x, train=train)
        sow(self, "embedded", x)
        for block in range(self.num_layers):
            x = EncoderBlock(
                self.num_heads,
                self.mlp_dim or 4 * hidden,
                self.dropout_rate,
                self.form,
                numerics,
                name=f"block{block + 1}",
            )(x, train=train)
        return sow(self, "encoded", x)
