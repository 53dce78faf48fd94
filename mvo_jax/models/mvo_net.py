"""MVONet: R(2+1)D trunk, temporal encoder and coarse-mask decoder joined (paper Fig. 2)."""

from typing import ClassVar

import flax.linen as nn

from mvo_jax.models.mask_decoder import LAYOUTS, MaskDecoder
from mvo_jax.models.ops.layers import Dropout, Linear, ModelOutput, check_clip, match_channels, sow
from mvo_jax.models.ops.numerics import Array, Numerics
from mvo_jax.models.r2plus1d import R2Plus1D
from mvo_jax.models.temporal_encoder import FORMS, TemporalEncoder

# Rows of the paper's Table 2: (temporal encoder, mask branch)
VARIANTS: dict[str, tuple[bool, bool]] = {
    "backbone": (False, False),
    "bert": (True, False),
    "cgmr": (False, True),
    "full": (True, True),
}


class MVONet(nn.Module):
    """Classifies a cine clip and, on request, predicts the coarse-grained MVO mask."""

    CHOICES: ClassVar = {
        "variant": tuple(VARIANTS),
        "encoder_form": FORMS,
        "decoder_layout": LAYOUTS,
    }

    variant: str = "full"  # key of VARIANTS; without encoder a global average pool is classified
    num_outputs: int = 1  # 1 (sigmoid, the released code) or 2 (softmax)
    in_channels: int = 3  # of the stem; a grey clip is copied to 3, as the released code does
    width: int = 64  # channels of the trunk's first stage
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)  # residual blocks of each
    num_layers: int = 1  # encoder blocks
    num_heads: int = 8  # of attention
    encoder_form: str = "released"  # or 'standard', see temporal_encoder.py
    encoder_dropout: float = 0.1
    head_dropout: float = 0.8  # before the classifier
    mask_size: int = 16  # m of the coarse mask
    decoder_layout: str = "paper"  # or 'released', see mask_decoder.py
    decoder_dropout: float = 0.1  # of whole channels
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
            ValueError: a clip the network cannot take.
        """
        # The trunk's last stage needs one time step and a 2x2 grid.
        check_clip(video, in_channels=self.in_channels, frames=8, size=32)
        has_encoder, has_mask = VARIANTS[self.variant]
        numerics = self.numerics

        # Section 2.1: features of space and time.
        trunk = R2Plus1D(self.width, self.stage_sizes, numerics, name="trunk")
        features = trunk(match_channels(video, self.in_channels), train=train)
        # Section 2.2: one token a time step, refined by the encoder, whose CLS token is classified.
        tokens = sow(self, "tokens", features.mean(axis=(2, 3)))
        if has_encoder:
            encoder = TemporalEncoder(
                self.num_layers,
                self.num_heads,
                self.encoder_dropout,
                self.encoder_form,
                numerics,
                name="encoder",
            )
            pooled = encoder(tokens, train=train)[:, 0]
        else:
            pooled = tokens.mean(axis=1)
        sow(self, "pooled", pooled)
        pooled = Dropout(self.head_dropout, numerics, name="head_dropout")(pooled, train=train)
        logits = Linear(self.num_outputs, numerics.exact, name="classifier")(pooled)
        # Section 2.3: the coarse-grained mask, which regularises the features in training.
        coarse_mask = None
        if has_mask and (with_mask or self.is_initializing()):
            decoder = MaskDecoder(
                self.mask_size, self.decoder_layout, self.decoder_dropout, numerics, name="decoder"
            )
            coarse_mask = decoder(features, train=train).astype(logits.dtype)
        return ModelOutput(logits, coarse_mask)
