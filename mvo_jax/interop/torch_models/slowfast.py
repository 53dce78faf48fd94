"""SlowFast in PyTorch, written from the paper; state-dict keys are those of pytorchvideo."""

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

_SLOW_KERNELS = (1, 1, 3, 3)
_FAST_KERNELS = (3, 3, 3, 3)
_HEAD = "6"  # the published network: stem, four stages, pooling, head


def _conv(
    planes_in: int,
    planes_out: int,
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int] = (1, 1, 1),
) -> nn.Conv3d:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    conv = nn.Conv3d(planes_in, planes_out, kernel, stride, padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class Stem(nn.Module):
    """Convolution, BatchNorm, ReLU, max pooling in-plane."""

    def __init__(self, planes_in: int, planes_out: int, time_kernel: int):
        super().__init__()
        self.conv = _conv(planes_in, planes_out, (time_kernel, 7, 7), (1, 2, 2))
        self.norm = nn.BatchNorm3d(planes_out)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to ``[B, C', T, H / 4, W / 4]``."""
        return F.max_pool3d(
            F.relu(self.norm(self.conv(x)), inplace=True), (1, 3, 3), (1, 2, 2), (0, 1, 1)
        )


class Branch(nn.Module):
    """The three convolutions of a bottleneck block."""

    def __init__(self, planes_in: int, planes: int, time_kernel: int, stride: int):
        super().__init__()
        self.conv_a = _conv(planes_in, planes, (time_kernel, 1, 1))
        self.norm_a = nn.BatchNorm3d(planes)
        self.conv_b = _conv(planes, planes, (1, 3, 3), (1, stride, stride))
        self.norm_b = nn.BatchNorm3d(planes)
        self.conv_c = _conv(planes, 4 * planes, (1, 1, 1))
        self.norm_c = nn.BatchNorm3d(4 * planes)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to ``[B, C', T, H', W']``."""
        x = F.relu(self.norm_a(self.conv_a(x)), inplace=True)
        x = F.relu(self.norm_b(self.conv_b(x)), inplace=True)
        return self.norm_c(self.conv_c(x))


class Block(nn.Module):
    """Bottleneck block with its shortcut."""

    def __init__(self, planes_in: int, planes: int, time_kernel: int, stride: int):
        super().__init__()
        self.branch1_conv = self.branch1_norm = None
        if stride != 1 or planes_in != 4 * planes:
            self.branch1_conv = _conv(planes_in, 4 * planes, (1, 1, 1), (1, stride, stride))
            self.branch1_norm = nn.BatchNorm3d(4 * planes)
        self.branch2 = Branch(planes_in, planes, time_kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to ``[B, C', T, H', W']``."""
        shortcut = x
        if self.branch1_conv is not None and self.branch1_norm is not None:
            shortcut = self.branch1_norm(self.branch1_conv(x))
        return F.relu(shortcut + self.branch2(x), inplace=True)


class Stage(nn.Module):
    """The blocks of one stage of one pathway."""

    def __init__(self, planes_in: int, planes: int, blocks: int, time_kernel: int, stride: int):
        super().__init__()
        self.res_blocks = nn.Sequential()
        for block in range(blocks):
            self.res_blocks.append(
                Block(planes_in, planes, time_kernel, stride if block == 0 else 1)
            )
            planes_in = 4 * planes

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to ``[B, C', T, H', W']``."""
        return self.res_blocks(x)


class Fusion(nn.Module):
    """Lateral connection from the fast to the slow pathway."""

    def __init__(self, planes: int, kernel: int, stride: int):
        super().__init__()
        self.conv_fast_to_slow = _conv(planes, 2 * planes, (kernel, 1, 1), (stride, 1, 1))
        self.norm = nn.BatchNorm3d(2 * planes)

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        """The slow features with the fast ones' joined to their channels."""
        lateral = F.relu(self.norm(self.conv_fast_to_slow(fast)), inplace=True)
        return torch.cat([slow, lateral], dim=1)


class Pathways(nn.Module):
    """One part of both pathways and the connection behind it."""

    def __init__(self, index: int, slow: nn.Module, fast: nn.Module, fusion: Fusion | None):
        super().__init__()
        self.multipathway_blocks = nn.ModuleList([slow, fast])
        self.multipathway_fusion = fusion
        self.record_slow = Recorder(f"trunk/slow{index}")
        self.record_fast = Recorder(f"trunk/fast{index}")

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        """Slow and fast features to the next."""
        slow, fast = self.multipathway_blocks[0](slow), self.multipathway_blocks[1](fast)
        if self.multipathway_fusion is not None:
            slow = self.multipathway_fusion(slow, fast)
        return self.record_slow(slow), self.record_fast(fast)


class TorchSlowFast(RecordedModel):
    """The network of ``mvo_jax.models.baselines.slowfast.SlowFast``, argument for argument.

    Args:
        frames: of the clips; any number fits.
        image_size: of the clips; any size fits.
        num_outputs: 1 (sigmoid) or 2 (softmax).
        in_channels: channels of the stems; a grey clip is copied.
        width: channels of the slow stem.
        stage_sizes: residual blocks of each stage.
        frame_ratio: frames of the fast pathway for one of the slow.
        channel_ratio: channels of the slow pathway for one of the fast.
        fusion_kernel: frames under a lateral convolution.
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
        stage_sizes: tuple[int, ...] = (3, 4, 6, 3),
        frame_ratio: int = 8,
        channel_ratio: int = 8,
        fusion_kernel: int = 5,
        head_dropout: float = 0.5,
    ):
        super().__init__()
        del frames, image_size
        self.in_channels, self.frame_ratio = in_channels, frame_ratio
        self.stages = len(stage_sizes)

        def fusion(planes: int, stage: int) -> Fusion | None:
            return Fusion(planes, fusion_kernel, frame_ratio) if stage < self.stages else None

        thin = width // channel_ratio
        slow_in, fast_in = width + 2 * thin, thin
        self.blocks = nn.Module()
        self.blocks.add_module(
            "0",
            Pathways(
                0, Stem(in_channels, width, 1), Stem(in_channels, thin, 5), fusion(fast_in, 0)
            ),
        )
        for stage, blocks in enumerate(stage_sizes):
            stride = 1 if stage == 0 else 2
            slow, fast = width * 2**stage, thin * 2**stage
            pathways = Pathways(
                stage + 1,
                Stage(slow_in, slow, blocks, _SLOW_KERNELS[stage], stride),
                Stage(fast_in, fast, blocks, _FAST_KERNELS[stage], stride),
                fusion(4 * fast, stage + 1),
            )
            self.blocks.add_module(str(stage + 1), pathways)
            slow_in, fast_in = 4 * slow + 8 * fast, 4 * fast
        # Nothing joins the slow pathway after the last stage: its 2 * fast_in channels are absent.
        head = nn.Module()
        head.add_module("proj", nn.Linear(slow_in - fast_in, num_outputs))
        self.blocks.add_module(_HEAD, head)
        self.record_pooled = Recorder("pooled")
        self.head_dropout = Dropout("head_dropout", head_dropout)

    def forward(self, video: Tensor, *, with_mask: bool = False) -> Output:
        """Classify clips ``[B, T, H, W, C]``; there is no mask branch."""
        del with_mask
        fast = channels_first(video, self.in_channels)
        count = -(-fast.shape[2] // self.frame_ratio)
        # As the public models sample: equally spaced, rounded down.
        index = torch.linspace(0, fast.shape[2] - 1, count).long()
        slow = fast.index_select(2, index.to(fast.device))
        for part in range(self.stages + 1):
            slow, fast = self.blocks.get_submodule(str(part))(slow, fast)
        pooled = torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], dim=1)
        pooled = self.head_dropout(self.record_pooled(pooled))
        return Output(self.blocks.get_submodule(f"{_HEAD}.proj")(pooled), None)
