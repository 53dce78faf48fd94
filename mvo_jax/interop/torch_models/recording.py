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


class Recorder:
    """Keeps tensors by name while ``active``; one for all parts of a model.

    Attributes:
        active: whether to keep.
        values: what was kept, channels-last.
    """

    def __init__(self) -> None:
        self.active = False
        self.values: dict[str, Tensor] = {}

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """Return ``x``, ``[B, C, ...]`` or ``[B, S, C]``."""
        if self.active:
            self.values[name] = x.movedim(1, -1) if x.dim() > 3 else x
        return x


class Dropout(nn.Module):
    """Dropout whose mask can be given.

    Args:
        name: path of the same dropout in the Flax model, e.g. 'encoder/block1/mlp_dropout'.
        rate: probability of dropping.
        channels: drop whole channels of a ``[B, C, H, W]`` map.
    """

    def __init__(self, name: str, rate: float, *, channels: bool = False):
        super().__init__()
        self.name, self.rate, self.channels = name, rate, channels
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of ``x`` when training; True in the mask keeps."""
        if not self.training or self.rate == 0.0:
            return x
        if self.mask is not None:
            return torch.where(self.mask, x / (1 - self.rate), 0.0)
        drop = F.dropout2d if self.channels else F.dropout
        return drop(x, self.rate, training=True)


class RecordedModel(nn.Module):
    """A model whose intermediates can be read and whose dropout masks can be set."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.in_channels = in_channels
        self.keep = Recorder()

    def forward(self, video: Tensor, *, with_mask: bool = True) -> Output:
        """Classify clips ``[B, T, H, W, C]``; most models have no mask branch."""
        del with_mask
        return Output(self.classify(self.match(video)), None)

    def classify(self, video: Tensor) -> Tensor:
        """Logits ``[B, num_outputs]`` of clips ``[B, T, H, W, in_channels]``."""
        raise NotImplementedError

    def match(self, video: Tensor) -> Tensor:
        """Clips with the channels the model was built for; nothing is copied in memory."""
        grey = video.shape[-1] == 1
        return video.expand(*video.shape[:-1], self.in_channels) if grey else video

    def record(self, active: bool = True) -> None:
        """Keep (or stop keeping) the named intermediates of later forward passes."""
        self.keep.active, self.keep.values = active, {}

    def intermediates(self) -> dict[str, Tensor]:
        """What the last forward pass recorded, by the Flax model's names, channels-last."""
        return dict(self.keep.values)

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
