"""MVONet: R(2+1)D trunk, temporal encoder and coarse-mask decoder joined (paper Fig. 2)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mvo_jax.models.mask_decoder import MaskDecoder
from mvo_jax.models.ops.layers import Array, Dropout, Linear, ModelOutput, match_channels, sow
from mvo_jax.models.r2plus1d import R2Plus1D
from mvo_jax.models.temporal_encoder import TemporalEncoder

MIN_FRAMES = 8  # layer4 needs one time step
MIN_SIZE = 32  # layer4 needs a 2x2 grid

# Rows of the paper's Table 2: (temporal encoder, mask branch)
VARIANTS: dict[str, tuple[bool, bool]] = {
    "backbone": (False, False),
    "bert": (True, False),
    "cgmr": (False, True),
    "full": (True, True),
}


class MVONet(nn.Module):
    """Classifies a cine clip and, on request, predicts the coarse-grained MVO mask.

    Args:
        variant: key of ``VARIANTS``; without encoder a global average pool feeds the classifier.
        num_outputs: 1 (sigmoid, the released code) or 2 (softmax).
        in_channels: channels of the stem; a grey clip is copied to 3, as the released code does.
        width: channels of the trunk's first stage, 64 in the paper.
        stage_sizes: residual blocks of each trunk stage.
        num_layers: encoder blocks.
        num_heads: attention heads.
        encoder_form: 'released' or 'standard', see ``temporal_encoder``.
        encoder_dropout: dropout rate inside the encoder.
        head_dropout: dropout rate before the classifier.
        mask_size: m of the coarse mask.
        decoder_layout: 'paper' or 'released', see ``mask_decoder``.
        decoder_dropout: channel dropout rate in the decoder.
        lowering: key of ``lowerings.LOWERINGS``.
        axis_name: device axis of the batch; None on one device.
        dtype: compute dtype; parameters and statistics stay in ``param_dtype``.
        param_dtype: dtype of the parameters.
    """

    variant: str = "full"
    num_outputs: int = 1
    in_channels: int = 3
    width: int = 64
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    num_layers: int = 1
    num_heads: int = 8
    encoder_form: str = "released"
    encoder_dropout: float = 0.1
    head_dropout: float = 0.8
    mask_size: int = 16
    decoder_layout: str = "paper"
    decoder_dropout: float = 0.1
    lowering: str = "conv2d"
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, video: Array, *, train: bool, with_mask: bool = False) -> ModelOutput:
        """Classify clips.

        Args:
            video: ``[B, T, H, W, C]`` normalised, T >= 8, H and W >= 32, C 1 or ``in_channels``.
            train: batch statistics and dropout (rng collection 'dropout').
            with_mask: run the mask branch; ignored by variants that have none.

        Returns:
            ``ModelOutput``. Sows 'tokens' and 'pooled' beside what the parts sow.

        Raises:
            ValueError: a clip the network cannot take, or an unknown variant.
        """
        _, frames, height, width, _ = video.shape
        if frames < MIN_FRAMES or min(height, width) < MIN_SIZE:
            raise ValueError(
                f"clips of {frames} frames of {height}x{width} are too small: the network takes "
                f"{MIN_FRAMES} or more frames of {MIN_SIZE}x{MIN_SIZE} or more pixels"
            )
        if self.variant not in VARIANTS:
            raise ValueError(f"variant {self.variant!r} is unknown; choose from {list(VARIANTS)}")
        video = match_channels(video, self.in_channels)
        has_encoder, has_mask = VARIANTS[self.variant]
        common: dict[str, Any] = {
            "axis_name": self.axis_name,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }

        features = R2Plus1D(
            self.width, self.stage_sizes, lowering=self.lowering, name="trunk", **common
        )(video, train=train)
        tokens = sow(self, "tokens", features.mean(axis=(2, 3)))
        if has_encoder:
            encoded = TemporalEncoder(
                self.num_layers,
                self.num_heads,
                dropout_rate=self.encoder_dropout,
                form=self.encoder_form,
                name="encoder",
                **common,
            )(tokens, train=train)
            pooled = encoded[:, 0]
        else:
            pooled = tokens.mean(axis=1)
        sow(self, "pooled", pooled)
        pooled = Dropout(self.head_dropout, self.axis_name, name="head_dropout")(
            pooled, train=train
        )
        # The logits leave in float32 at least: a bfloat16 sigmoid has steps of 0.4 %.
        logits = Linear(
            self.num_outputs,
            dtype=jnp.promote_types(jnp.float32, self.dtype),
            param_dtype=self.param_dtype,
            name="classifier",
        )(pooled)

        coarse_mask = None
        if has_mask and (with_mask or self.is_initializing()):
            coarse_mask = MaskDecoder(
                self.mask_size,
                self.decoder_layout,
                self.decoder_dropout,
                name="decoder",
                **common,
            )(features, train=train)
            coarse_mask = coarse_mask.astype(logits.dtype)
        return ModelOutput(logits, coarse_mask)
