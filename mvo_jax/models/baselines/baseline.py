"""What the systems of Table 1 share: pooled features, a linear map to logits, no mask branch."""

import flax.linen as nn

from mvo_jax.models.ops.attention import tubelets
from mvo_jax.models.ops.layers import Dropout, Linear, ModelOutput, match_channels
from mvo_jax.models.ops.numerics import Array, Numerics


class Baseline(nn.Module):
    """Classifies a cine clip; a system is its ``features``, made in the scope of the call.

    Parts of a system take the system itself for their sizes: ``Trunk(name="trunk")(self, video)``.
    """

    num_outputs: int = 1  # 1 (sigmoid) or 2 (softmax)
    in_channels: int = 3  # of the first layer; a grey clip counts as so many copies
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, video: Array, *, train: bool, with_mask: bool = False) -> ModelOutput:
        """Classify clips.

        Args:
            video: ``[B, T, H, W, C]`` normalised, C 1 or ``in_channels``.
            train: batch statistics and dropout (rng collection 'dropout').
            with_mask: ignored, there is no mask branch.

        Raises:
            ValueError: a clip or sizes that the network cannot take.
        """
        del with_mask
        x = self.features(video, train=train)
        return ModelOutput(Linear(self.num_outputs, self.numerics.exact, name="classifier")(x))

    def features(self, video: Array, *, train: bool) -> Array:
        """What is classified, ``[B, C]``; arguments as of the call."""
        raise NotImplementedError

    def dropout(self, name: str, x: Array, rate: float, *, train: bool) -> Array:
        """A layer of that name, applied to ``x``."""
        return Dropout(rate, self.numerics, name=name)(x, train=train)


class Transformer(Baseline):
    """A system of tokens; a grey clip is copied to three channels."""

    hidden_size: int = 512  # width of a token
    num_layers: int = 12  # blocks
    num_heads: int = 12  # of attention
    head_dim: int = 64  # width of a head
    mlp_dim: int = 2048  # width of the MLPs
    patch_size: int = 16  # pixels along each side of a patch
    dropout_rate: float = 0.0  # after embedding and attention, and in the MLPs
    numerics: Numerics = Numerics(lowering=None)

    def embed(self, video: Array, tubelet_size: int) -> Array:
        """Patches of ``tubelet_size`` frames as tokens, ``[B, T / tubelet_size, N, hidden]``.

        Raises:
            ValueError: clips of fewer than two steps, or that cannot be cut into such patches.
        """
        if video.shape[1] < 2 * tubelet_size:
            raise ValueError(
                f"clips of {video.shape[1]} frames are too short: attention over time needs two "
                f"steps of {tubelet_size} frames"
            )
        patches = tubelets(match_channels(video, self.in_channels), tubelet_size, self.patch_size)
        return Linear(self.hidden_size, self.numerics, name="patch_embedding")(patches)

    def learned(self, name: str, *shape: int, deviation: float) -> Array:
        """Learned tokens or positions, ``[1, *shape, hidden]``, N(0, deviation^2) at the start."""
        full = (1, *shape, self.hidden_size)
        value = self.param(name, nn.initializers.normal(deviation), full, self.numerics.param_dtype)
        return value.astype(self.numerics.dtype)
