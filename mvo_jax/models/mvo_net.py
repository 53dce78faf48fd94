"""MVONet: R(2+1)D trunk, temporal encoder and coarse-mask decoder joined (paper Fig. 2)."""

from typing import ClassVar

import flax.linen as nn

from mvo_jax.models.mask_decoder import LAYOUTS, MaskDecoder
from mvo_jax.models.ops.layers import ModelOutput, check_clip, classify, match_channels, sow
from mvo_jax.models.ops.numerics import Array, Numerics
from mvo_jax.models.r2plus1d import R2Plus1D
from mvo_jax.models.temporal_encoder import FORMS, TemporalEncoder

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
        numerics: see ``Numerics``.
    """

    CHOICES: ClassVar = {
        "variant": tuple(VARIANTS),
        "encoder_form": FORMS,
        "decoder_layout": LAYOUTS,
    }

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
    numerics: Numerics = Numerics()

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
        check_clip(video, in_channels=self.in_channels, frames=MIN_FRAMES, size=MIN_SIZE)
        if self.variant not in VARIANTS:
            raise ValueError(f"variant {self.variant!r} is unknown; choose from {list(VARIANTS)}")
        video = match_channels(video, self.in_channels)
        has_encoder, has_mask = VARIANTS[self.variant]

        # Section 2.1: features of space and time.
        trunk = R2Plus1D(self.width, self.stage_sizes, self.numerics, name="trunk")
        features = trunk(video, train=train)
        # Section 2.2: one token a time step, refined by the encoder, whose CLS token is classified.
        tokens = sow(self, "tokens", features.mean(axis=(2, 3)))
        if has_encoder:
            encoder = TemporalEncoder(
                self.num_layers,
                self.num_heads,
                dropout_rate=self.encoder_dropout,
                form=self.encoder_form,
                numerics=self.numerics,
                name="encoder",
            )
            pooled = encoder(tokens, train=train)[:, 0]
        else:
            pooled = tokens.mean(axis=1)
        sow(self, "pooled", pooled)
        logits = classify(
            pooled, self.num_outputs, self.numerics, dropout_rate=self.head_dropout, train=train
        )
        # Section 2.3: the coarse-grained mask, which regularises the features in training.
        coarse_mask = None
        if has_mask and (with_mask or self.is_initializing()):
            decoder = MaskDecoder(
                self.mask_size,
                self.decoder_layout,
                self.decoder_dropout,
                self.numerics,
                name="decoder",
            )
            coarse_mask = decoder(features, train=train).astype(logits.dtype)
        return ModelOutput(logits, coarse_mask)
