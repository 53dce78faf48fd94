"""What the torch models share: named intermediates, dropout with given masks, the output.

Intermediates go out channels-last, so that both frameworks compare without transposing.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Output(NamedTuple):
    """Logits ``[B, num_outputs]`` and the coarse mask ``[B, m, m]`` (None without mask branch)."""

    logits: Tensor
    coarse_mask: Tensor | None


class Recorder:
    """Keeps tensors by name, channels-last, while ``active``; one for all parts of a model."""

    def __init__(self) -> None:
        self.active = False
        self.values: dict[str, Tensor] = {}

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """Return ``x``, ``[B, C, ...]`` or ``[B, S, C]``."""
        if self.active:
            self.values[name] = x.movedim(1, -1) if x.dim() > 3 else x
        return x


class Dropout(nn.Module):
    """Dropout, of whole channels or not, whose mask can be given.

    Its name is the path of the same one in the Flax model, e.g. 'encoder/block1/mlp_dropout'.
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

    @contextlib.contextmanager
    def recorded(self) -> Iterator[dict[str, Tensor]]:
        """What forward passes within compute, by the Flax model's names, channels-last."""
        self.keep.active, self.keep.values = True, {}
        yield self.keep.values
        self.keep.active, self.keep.values = False, {}

    def inject_dropout(self, masks: Mapping[str, Tensor]) -> None:
        """Use these masks, by the Flax path of a dropout and shaped as there, in training passes.

        Raises:
            KeyError: a mask without its dropout, or a dropout of non-zero rate without its mask.
        """
        layers = {m.name: m for m in self.modules() if isinstance(m, Dropout) and m.rate > 0}
        if different := layers.keys() ^ masks.keys():
            raise KeyError(f"dropout masks do not fit the model: {sorted(different)}")
        for name, mask in masks.items():
            layers[name].mask = mask.movedim(-1, 1) if layers[name].channels else mask
