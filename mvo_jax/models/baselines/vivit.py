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

import flax.linen as nn
import jax.numpy as jnp

from mvo_jax.models.ops.attention import FeedForward, attend, split_heads, tubelets
from mvo_jax.models.ops.layers import (
    Dropout,
    LayerNorm,
    Linear,
    ModelOutput,
    classify,
    match_channels,
    sow,
)
from mvo_jax.models.ops.numerics import Array, Numerics


class Block(nn.Module):
    """Pre-norm self-attention and MLP.

    Args:
        num_heads: attention heads.
        head_dim: width of a head.
        mlp_dim: width of the MLP.
        dropout_rate: after the attention's output map and in the MLP.
        numerics: see ``Numerics``.
    """

    num_heads: int
    head_dim: int
    mlp_dim: int
    dropout_rate: float = 0.0
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[B, S, hidden]`` to the same shape."""
        numerics, width = self.numerics, self.num_heads * self.head_dim
        y = LayerNorm("standard", numerics, name="attention_norm")(x)
        qkv = Linear(3 * width, numerics, use_bias=False, name="qkv")(y)
        y = Linear(x.shape[-1], numerics, name="out")(attend(*split_heads(qkv, self.num_heads)))
        x = x + Dropout(self.dropout_rate, numerics, name="attention_dropout")(y, train=train)
        y = LayerNorm("standard", numerics, name="mlp_norm")(x)
        mlp = FeedForward(
            self.mlp_dim, dropout_rate=self.dropout_rate, numerics=numerics, name="mlp"
        )
        return x + mlp(y, train=train)


class ViViT(nn.Module):
    """Classifies a cine clip.

    Args:
        num_outputs: 1 (sigmoid) or 2 (softmax).
        in_channels: channels of the embedding; a grey clip is copied to 3.
        hidden_size: width of a token.
        num_layers: blocks of each of the two encoders.
        num_heads: attention heads.
        head_dim: width of a head.
        mlp_dim: width of the MLPs.
        patch_size: pixels along each side of a patch.
        tubelet_size: frames of a patch; 1 embeds single frames, the authors' models have 2.
        token_deviation: standard deviation of CLS tokens and positions at the start; 0.02 in the
            authors' code. Large ones hide the images from the first blocks.
        dropout_rate: after the embedding, the attention and in the MLPs.
        numerics: see ``Numerics``.
    """

    num_outputs: int = 1
    in_channels: int = 3
    hidden_size: int = 512
    num_layers: int = 6
    num_heads: int = 8
    head_dim: int = 64
    mlp_dim: int = 2048
    patch_size: int = 4
    tubelet_size: int = 1
    token_deviation: float = 1.0
    dropout_rate: float = 0.0
    numerics: Numerics = Numerics(lowering=None)

    @nn.compact
    def __call__(self, video: Array, *, train: bool, with_mask: bool = False) -> ModelOutput:
        """Classify clips.

        Args:
            video: ``[B, T, H, W, C]`` normalised, T a multiple of ``tubelet_size`` with two steps
                at least, H and W multiples of ``patch_size``, C 1 or ``in_channels``.
            train: apply dropout (rng collection 'dropout').
            with_mask: ignored, there is no mask branch.

        Returns:
            Logits and no mask. Sows 'embedded' ``[B * T', 1 + N, hidden]``, 'steps' ``[B, T',
            hidden]`` (CLS token of every step) and 'pooled' ``[B, hidden]``.

        Raises:
            ValueError: a clip that cannot be cut into tubelets.
        """
        del with_mask
        numerics = self.numerics
        video = match_channels(video, self.in_channels)
        batch, frames = video.shape[:2]
        if frames < 2 * self.tubelet_size:
            raise ValueError(
                f"clips of {frames} frames are too short: attention over time needs two steps of "
                f"{self.tubelet_size} frames"
            )
        patches = tubelets(video, self.tubelet_size, self.patch_size)
        x = Linear(self.hidden_size, numerics, name="patch_embedding")(patches)
        steps, number = x.shape[1:3]

        def learned(name: str, *shape: int) -> Array:
            normal = nn.initializers.normal(self.token_deviation)
            shape = (1, *shape, self.hidden_size)
            return self.param(name, normal, shape, numerics.param_dtype).astype(numerics.dtype)

        token = jnp.broadcast_to(learned("space_token", 1), (batch, steps, 1, self.hidden_size))
        x = jnp.concatenate([token, x], axis=2) + learned("position", steps, number + 1)
        x = x.reshape(batch * steps, number + 1, self.hidden_size)
        x = Dropout(self.dropout_rate, numerics, name="embedding_dropout")(x, train=train)
        sow(self, "embedded", x)

        x = self._encode("space", x, train=train)[:, 0].reshape(batch, steps, self.hidden_size)
        sow(self, "steps", x)
        token = jnp.broadcast_to(learned("time_token", 1), (batch, 1, self.hidden_size))
        x = self._encode("time", jnp.concatenate([token, x], axis=1), train=train)[:, 0]
        sow(self, "pooled", x)
        x = LayerNorm("standard", numerics.exact, name="head_norm")(x)
        return ModelOutput(classify(x, self.num_outputs, numerics, train=train), None)

    def _encode(self, name: str, x: Array, *, train: bool) -> Array:
        """One of the two encoders, ``[B, S, hidden]`` to the same shape."""
        for block in range(self.num_layers):
            x = Block(
                self.num_heads,
                self.head_dim,
                self.mlp_dim,
                self.dropout_rate,
                self.numerics,
                name=f"{name}_block{block + 1}",
            )(x, train=train)
        return LayerNorm("standard", self.numerics, name=f"{name}_norm")(x)
