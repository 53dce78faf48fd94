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
the first implementation; the second has hidden size / heads. Differences: linear maps start as
torch.nn.Linear's in both forms; no stochastic depth (the authors' code drops branches at rates up
to 0.1).
"""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mvo_jax.models.baselines.baseline import Transformer
from mvo_jax.models.ops.attention import FeedForward, attend, split_heads
from mvo_jax.models.ops.layers import Dropout, LayerNorm, Linear, sow
from mvo_jax.models.ops.numerics import Array

FORMS = ("gated", "released")
EPSILON = {"gated": 1e-5, "released": 1e-6}
TOKEN_DEVIATION = {"gated": 1.0, "released": 0.02}  # of CLS token and positions at the start


def joined(cls: Array, x: Array) -> Array:
    """A CLS token ``[B, 1, hidden]`` and patches ``[B, T, N, hidden]`` as one sequence."""
    return jnp.concatenate([cls, x.reshape(x.shape[0], -1, x.shape[-1])], axis=1)


def parted(tokens: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The inverse of ``joined``; ``shape`` is that of the patches."""
    return tokens[:, :1], tokens[:, 1:].reshape(shape)


def attend_jointly(query: Array, key: Array, value: Array, *, steps: int, axis: str) -> Array:
    """Attention over 'time' or 'space' in which a CLS token sees all and is seen by all.

    ``[B, 1 + steps * N, heads, D]`` each to ``[B, 1 + steps * N, heads * D]``.
    """
    cls = attend(query[:, :1], key, value)

    def grouped(z: Array) -> Array:
        z = z[:, 1:].reshape(z.shape[0], steps, -1, *z.shape[2:])
        return z.swapaxes(1, 2) if axis == "time" else z  # the sequence is axis 2

    def with_cls(z: Array) -> Array:
        patches = grouped(z)
        own = jnp.broadcast_to(z[:, None, :1], (*patches.shape[:2], 1, *z.shape[2:]))
        return jnp.concatenate([own, patches], axis=2)

    out = attend(grouped(query), with_cls(key), with_cls(value))
    return joined(cls, out.swapaxes(1, 2) if axis == "time" else out)


class Block(nn.Module):
    """Attention over time, attention over space and MLP, each pre-norm and residual."""

    @nn.compact
    def __call__(
        self, of: "TimeSformer", cls: Array, x: Array, *, first: bool, train: bool
    ) -> tuple[Array, Array]:
        """CLS token ``[B, 1, hidden]`` and patches ``[B, T, N, hidden]`` to the same shapes.

        All blocks but the ``first`` of the released form start without attention over time.
        """
        numerics, gated = of.numerics, of.form == "gated"
        batch, steps, _, hidden = x.shape

        def norm(name: str, x: Array) -> Array:
            return LayerNorm("standard", numerics, EPSILON[of.form], name=f"{name}_norm")(x)

        def attention(axis: str, x: Array, mix: Any = attend) -> Array:
            fused = 3 * of.num_heads * of.head_dim
            qkv = Linear(fused, numerics, use_bias=not gated, name=f"{axis}_qkv")(x)
            y = Linear(hidden, numerics, name=f"{axis}_out")(mix(*split_heads(qkv, of.num_heads)))
            return Dropout(of.dropout_rate, numerics, name=f"{axis}_dropout")(y, train=train)

        if gated:
            for axis in ("time", "space"):
                tokens = joined(cls, x)
                mix = functools.partial(attend_jointly, steps=steps, axis=axis)
                tokens = tokens + attention(axis, norm(axis, tokens), mix)
                cls, x = parted(tokens, x.shape)
        else:
            y = norm("time", x).transpose(0, 2, 1, 3)  # [B, N, T, hidden]
            y = attention("time", y).transpose(0, 2, 1, 3)
            start = nn.initializers.normal(0.02) if first else nn.initializers.zeros
            x = x + nn.Dense(hidden, kernel_init=start, name="time_map", **numerics.dtypes)(y)
            copies = jnp.broadcast_to(cls[:, None], (batch, steps, 1, hidden))
            y = attention("space", norm("space", jnp.concatenate([copies, x], axis=2)))
            cls, x = cls + y[:, :, 0].mean(axis=1, keepdims=True), x + y[:, :, 1:]

        tokens = joined(cls, x)
        mlp = FeedForward(of.mlp_dim, gated, of.dropout_rate, numerics, name="mlp")
        return parted(tokens + mlp(norm("mlp", tokens), train=train), x.shape)


class TimeSformer(Transformer):
    """TimeSformer. Clips have two frames or more."""

    CHOICES: ClassVar = {"form": FORMS}

    form: str = "gated"  # or 'released', see above

    def features(self, video: Array, *, train: bool) -> Array:
        """The CLS token, ``[B, hidden]``.

        Sows 'embedded' and 'encoded' ``[B, 1 + T * N, hidden]``, CLS token first, then frame by
        frame.
        """
        x = self.embed(video, 1)
        batch, frames, number, hidden = x.shape
        learned = functools.partial(self.learned, deviation=TOKEN_DEVIATION[self.form])
        dropout = functools.partial(self.dropout, rate=self.dropout_rate, train=train)

        cls = jnp.broadcast_to(learned("cls", 1), (batch, 1, hidden))
        if self.form == "gated":
            position = learned("position", frames * number + 1)
            cls = cls + position[:, :1]
            x = x + position[:, 1:].reshape(1, frames, number, hidden)
        else:
            position = learned("position", number + 1)
            cls, x = cls + position[:, :1], x + position[:, None, 1:]
            # The authors' code drops entries of the frames' CLS copies too and keeps the first.
            cls, x = dropout("cls_dropout", cls), dropout("position_dropout", x)
            x = dropout("time_dropout", x + learned("time_position", frames)[:, :, None])
        sow(self, "embedded", joined(cls, x))
        for block in range(self.num_layers):
            layer = Block(name=f"block{block + 1}")
            cls, x = layer(self, cls, x, first=block == 0, train=train)
        sow(self, "encoded", joined(cls, x))
        head_norm = LayerNorm("standard", self.numerics.exact, EPSILON[self.form], name="head_norm")
        return head_norm(cls[:, 0])
