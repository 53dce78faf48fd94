"""What the torch models share: named intermediates, dropout with given masks, the output.

Intermediates go out channels-last, so that both frameworks compare without transposing.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Output(NamedTuple):
    """Logits ``[B, num_outputs]`` and the coarse mask ``[B, m, m]`` (None without mask branch)."""

    logits: Tensor
    coarse_mask: Tensor | None


def channels_first(video: Tensor, in_channels: int) -> Tensor:
    """Clips ``[B, T, H, W, C]`` as ``[B, in_channels, T, H, W]``; a grey clip is copied.

    The view has the strides of channels_last_3d already: nothing is moved.
    """
    x = video.permute(0, 4, 1, 2, 3)
    return x.expand(-1, in_channels, -1, -1, -1) if x.shape[1] == 1 else x


class Recorder(nn.Module):
    """Hands a tensor through and keeps it, channels-last, under ``name`` while ``active``."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.active = False
        self.value: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, ``[B, C, ...]`` or ``[B, S, C]``."""
        if self.active:
            self.value = x.movedim(1, -1) if x.dim() > 3 else x
        return x


class Dropout(nn.Module):
    """Dropout that can be told its mask.

    Args:
        name: path of the same dropout in the Flax model, e.g. 'encoder/block1/mlp_dropout'.
        rate: probability of dropping.
        channels: drop whole channels of a ``[B, C, H, W]`` map.
    """

    def __init__(self, name: str, rate: float, *, channels: bool = False):
        super().__init__()
        self.name = name
        self.rate = rate
        self.channels = channels
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of ``x`` when training; True in the mask keeps."""
        if not self.training or self.rate == 0.0:
            return x
        if self.mask is not None:
            return torch.where(self.mask, x / (1 - self.rate), 0.0)
        if self.channels:
            return F.dropout2d(x, self.rate, training=True)
        return F.dropout(x, self.rate, training=True)


class RecordedModel(nn.Module):
    """A model whose intermediates can be read and whose dropout masks can be set."""

    def record(self, active: bool = True) -> None:
        """Keep (or stop keeping) the named intermediates of later forward passes."""
        for module in self.modules():
            if isinstance(module, Recorder):
                module.active, module.value = active, None

    def intermediates(self) -> dict[str, Tensor]:
        """What the last forward pass recorded, by the Flax model's names, channels-last."""
        recorders = (module for module in self.modules() if isinstance(module, Recorder))
        return {r.name: r.value for r in recorders if r.value is not None}

    def inject_dropout(self, masks: Mapping[str, Tensor]) -> None:
        """Use these dropout masks in later training passes.

        Args:
            masks: by the Flax path of each dropout, True keeps; shaped as in Flax (channels-last).

        Raises:
            KeyError: a mask without its dropout, or a dropout of non-zero rate without its mask.
        """
        layers = {m.name: m for m in self.modules() if isinstance(m, Dropout) and m.rate > 0}
        if different := layers.keys() ^ masks.keys():
            raise KeyError(f"dropout masks do not fit the model: {sorted(different)}")
        for name, mask in masks.items():
            layers[name].mask = mask.movedim(-1, 1) if layers[name].channels else mask
