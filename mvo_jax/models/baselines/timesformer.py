"""TimeSformer: divided space-time attention, first over time, then over the frame.

Bertasius et al., ICML 2021 (arXiv 2102.05095), section 3, 'divided space-time attention'. Two named
forms:

* ``gated``: a CLS token that sees all tokens in both attentions and is seen by all, equation (5) to
  (11) of the paper; a gated MLP; a position for every (frame, patch); no bias in the fused
  query-key-value maps. It follows the public PyTorch implementation lucidrains/TimeSformer-pytorch
  with its LayerNorm and learned positions, which start as N(0, 1), because at dim 512, depth 12, 12
  heads of 64 and patch 16 (76,243,969 parameters) that comes nearest to the MICCAI paper's 76.54 M;
  which configuration the paper ran is not known.
* ``released``: the authors' code, facebookresearch/TimeSformer. The CLS token takes no part in the
  attention over time; every frame has a copy of it in the attention over space, and their outputs
  are averaged; one more linear map after the attention over time; plain MLP; one set of positions
  for patches and one for frames, starting as N(0, 0.02); LayerNorm epsilon 1e-6. Weights of that
  code fit this form.

512 is no multiple of 12 heads, so the width of a head is a choice of its own (``head_dim``), as in
the first implementation; the second has hidden size / heads.

Differences: linear maps start as torch.nn.Linear's in both forms; no stochastic depth (the authors'
code drops branches at rates up to 0.1).
"""

from typing import ClassVar

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

FORMS = ("gated", "released")
EPSILON = {"gated": 1e-5, "released": 1e-6}
TOKEN_DEVIATION = {"gated": 1.0, "released": 0.02}  # of CLS token and positions at the start


class Block(nn.Module):
    """Attention over time, attention over space and MLP, each pre-norm and residual.

    Args:
        num_heads: attention heads.
        head_dim: width of a head.
        mlp_dim: width of the MLP.
        dropout_rate: after the attentions' output maps and in the MLP.
        form: key of ``FORMS``.
        first: whether this is the first block; later ones of the released form start without
            attention over time.
        numerics: see ``Numerics``.
    """

    num_heads: int
    head_dim: int
    mlp_dim: int
    dropout_rate: float = 0.0
    form: str = "gated"
    first: bool = True
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, cls: Array, x: Array, *, train: bool) -> tuple[Array, Array]:
        """CLS token ``[B, 1, hidden]`` and patches ``[B, T, N, hidden]`` to the same shapes."""
        batch, steps, number, hidden = x.shape
        gated = self.form == "gated"
        if gated:
            cls, x = self._attend_jointly("time", cls, x, train=train)
            cls, x = self._attend_jointly("space", cls, x, train=train)
        else:
            y = self._norm("time_norm", x).transpose(0, 2, 1, 3)  # [B, N, T, hidden]
            y = self._attention("time", y, train=train).transpose(0, 2, 1, 3)
            x = x + nn.Dense(
                hidden,
                kernel_init=nn.initializers.normal(0.02) if self.first else nn.initializers.zeros,
                name="time_map",
                **self.numerics.dtypes,
            )(y)
            copies = jnp.broadcast_to(cls[:, None], (batch, steps, 1, hidden))
            y = self._norm("space_norm", jnp.concatenate([copies, x], axis=2))
            y = self._attention("space", y, train=train)
            cls, x = cls + y[:, :, 0].mean(axis=1, keepdims=True), x + y[:, :, 1:]

        tokens = jnp.concatenate([cls, x.reshape(batch, steps * number, hidden)], axis=1)
        tokens = tokens + FeedForward(
            self.mlp_dim,
            gated=gated,
            dropout_rate=self.dropout_rate,
            output_dropout=not gated,
            numerics=self.numerics,
            name="mlp",
        )(self._norm("mlp_norm", tokens), train=train)
        return tokens[:, :1], tokens[:, 1:].reshape(x.shape)

    def _norm(self, name: str, x: Array) -> Array:
        return LayerNorm("standard", self.numerics, EPSILON[self.form], name=name)(x)

    def _qkv(self, axis: str, x: Array) -> tuple[Array, Array, Array]:
        qkv = Linear(
            3 * self.num_heads * self.head_dim,
            self.numerics,
            use_bias=self.form == "released",
            name=f"{axis}_qkv",
        )(x)
        return split_heads(qkv, self.num_heads)

    def _out(self, axis: str, x: Array, hidden: int, *, train: bool) -> Array:
        x = Linear(hidden, self.numerics, name=f"{axis}_out")(x)
        return Dropout(self.dropout_rate, self.numerics, name=f"{axis}_dropout")(x, train=train)

    def _attention(self, axis: str, x: Array, *, train: bool) -> Array:
        """Plain self-attention over axis 2 of ``[B, ..., S, hidden]``."""
        return self._out(axis, attend(*self._qkv(axis, x)), x.shape[-1], train=train)

    def _attend_jointly(
        self, axis: str, cls: Array, x: Array, *, train: bool
    ) -> tuple[Array, Array]:
        """The residual attention of the gated form over 'time' or 'space'."""
        batch, steps, number, hidden = x.shape
        tokens = jnp.concatenate([cls, x.reshape(batch, steps * number, hidden)], axis=1)
        query, key, value = self._qkv(axis, self._norm(f"{axis}_norm", tokens))
        cls_out = attend(query[:, :1], key, value)

        def grouped(z: Array) -> Array:
            z = z[:, 1:].reshape(batch, steps, number, self.num_heads, self.head_dim)
            return z.swapaxes(1, 2) if axis == "time" else z  # the sequence is axis 2

        def with_cls(z: Array) -> Array:
            patches = grouped(z)
            shape = (batch, patches.shape[1], 1, self.num_heads, self.head_dim)
            return jnp.concatenate([jnp.broadcast_to(z[:, None, :1], shape), patches], axis=2)

        out = attend(grouped(query), with_cls(key), with_cls(value))
        out = out.swapaxes(1, 2) if axis == "time" else out
        out = jnp.concatenate([cls_out, out.reshape(batch, steps * number, -1)], axis=1)
        tokens = tokens + self._out(axis, out, hidden, train=train)
        return tokens[:, :1], tokens[:, 1:].reshape(x.shape)


class TimeSformer(nn.Module):
    """Classifies a cine clip.

    Args:
        form: 'gated' or 'released', see above.
        num_outputs: 1 (sigmoid) or 2 (softmax).
        in_channels: channels of the embedding; a grey clip is copied to 3.
        hidden_size: width of a token.
        num_layers: blocks.
        num_heads: attention heads.
        head_dim: width of a head.
        mlp_dim: width of the MLPs.
        patch_size: pixels along each side of a patch.
        dropout_rate: after the embedding (released form), the attentions and in the MLPs.
        numerics: see ``Numerics``.
    """

    CHOICES: ClassVar = {"form": FORMS}

    form: str = "gated"
    num_outputs: int = 1
    in_channels: int = 3
    hidden_size: int = 512
    num_layers: int = 12
    num_heads: int = 12
    head_dim: int = 64
    mlp_dim: int = 2048
    patch_size: int = 16
    dropout_rate: float = 0.0
    numerics: Numerics = Numerics(lowering=None)

    @nn.compact
    def __call__(self, video: Array, *, train: bool, with_mask: bool = False) -> ModelOutput:
        """Classify clips.

        Args:
            video: ``[B, T, H, W, C]`` normalised, T >= 2, H and W multiples of ``patch_size``, C 1
                or ``in_channels``.
            train: apply dropout (rng collection 'dropout').
            with_mask: ignored, there is no mask branch.

        Returns:
            Logits and no mask. Sows 'embedded' and 'encoded' ``[B, 1 + T * N, hidden]``, CLS token
            first, then frame by frame.

        Raises:
            ValueError: an unknown form, or a clip that cannot be cut into patches.
        """
        del with_mask
        if self.form not in FORMS:
            raise ValueError(f"TimeSformer form {self.form!r} is unknown; choose from {FORMS}")
        numerics = self.numerics
        video = match_channels(video, self.in_channels)
        batch, frames = video.shape[:2]
        if frames < 2:
            raise ValueError(f"clips of {frames} frames are too short: attention over time needs 2")
        patches = tubelets(video, 1, self.patch_size)
        x = Linear(self.hidden_size, numerics, name="patch_embedding")(patches)
        number = x.shape[2]

        def learned(name: str, *shape: int) -> Array:
            normal = nn.initializers.normal(TOKEN_DEVIATION[self.form])
            shape = (1, *shape, self.hidden_size)
            return self.param(name, normal, shape, numerics.param_dtype).astype(numerics.dtype)

        def dropout(name: str, value: Array) -> Array:
            return Dropout(self.dropout_rate, numerics, name=name)(value, train=train)

        cls = jnp.broadcast_to(learned("cls", 1), (batch, 1, self.hidden_size))
        if self.form == "gated":
            position = learned("position", frames * number + 1)
            cls = cls + position[:, :1]
            x = x + position[:, 1:].reshape(1, frames, number, self.hidden_size)
        else:
            position = learned("position", number + 1)
            cls, x = cls + position[:, :1], x + position[:, None, 1:]
            # The authors' code drops entries of the frames' CLS copies too and keeps the first.
            cls, x = dropout("cls_dropout", cls), dropout("position_dropout", x)
            x = dropout("time_dropout", x + learned("time_position", frames)[:, :, None])
        sow(self, "embedded", self._sequence(cls, x))
        for block in range(self.num_layers):
            cls, x = Block(
                self.num_heads,
                self.head_dim,
                self.mlp_dim,
                self.dropout_rate,
                self.form,
                block == 0,
                numerics,
                name=f"block{block + 1}",
            )(cls, x, train=train)
        sow(self, "encoded", self._sequence(cls, x))
        y = LayerNorm("standard", numerics.exact, EPSILON[self.form], name="head_norm")(cls[:, 0])
        return ModelOutput(classify(y, self.num_outputs, numerics, train=train), None)

    def _sequence(self, cls: Array, x: Array) -> Array:
        """``[B, 1 + T * N, hidden]``."""
        return jnp.concatenate([cls, x.reshape(x.shape[0], -1, x.shape[-1])], axis=1)
