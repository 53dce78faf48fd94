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
    """Pre-norm self-attention and feed-forward block, dropout on both branches and the output."""

    num_heads: int
    dropout_rate: float = 0.1  # also of attention weights and within the feed-forward part
    form: str = "released"  # own LayerNorm, tanh GELU; 'standard': the textbook's, exact GELU
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
        y = Linear(4 * hidden, numerics, name="mlp_in")(y)
        y = nn.gelu(y, approximate=self.form == "released")
        y = Linear(hidden, numerics, name="mlp_out")(dropout("mlp_dropout", y))
        x = x + dropout("mlp_branch_dropout", y)
        return dropout("output_dropout", x)


class TemporalEncoder(nn.Module):
    """CLS token, learned positions and encoder blocks; no final norm, as in the released code."""

    num_layers: int = 1
    num_heads: int = 8  # must divide the hidden size
    dropout_rate: float = 0.1  # after the embedding and in the blocks
    form: str = "released"  # or 'standard', see EncoderBlock
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, tokens: Array, *, train: bool) -> Array:
        """Tokens of time steps, ``[B, S, hidden]``, to ``[B, 1 + S, hidden]``, the CLS token first.

        Sows 'embedded' and 'encoded'.

        Raises:
            ValueError: ``num_heads`` does not divide the hidden size.
        """
        batch, steps, hidden = tokens.shape
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
                self.num_heads, self.dropout_rate, self.form, numerics, name=f"block{block + 1}"
            )(x, train=train)
        return sow(self, "encoded", x)
