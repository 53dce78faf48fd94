"""SlowFast in PyTorch, written from the paper; state-dict keys are those of pytorchvideo."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvo_jax.interop.torch_models.layers import channels_first, conv
from mvo_jax.interop.torch_models.recording import Dropout, RecordedModel

_SLOW_KERNELS = (1, 1, 3, 3)
_FAST_KERNELS = (3, 3, 3, 3)
_HEAD = "6"  # the published network: stem, four stages, pooling, head


class Stem(nn.Module):
    """Convolution, BatchNorm, ReLU, max pooling in-plane."""

    def __init__(self, planes_in: int, planes_out: int, time_kernel: int):
        super().__init__()
        self.conv = conv(planes_in, planes_out, (time_kernel, 7, 7), (1, 2, 2))
        self.norm = nn.BatchNorm3d(planes_out)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to ``[B, C', T, H / 4, W / 4]``."""
        x = F.relu(self.norm(self.conv(x)), inplace=True)
        return F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))


class Branch(nn.Module):
    """The three convolutions of a bottleneck block."""

    def __init__(self, planes_in: int, planes: int, time_kernel: int, stride: int):
        super().__init__()
        self.conv_a = conv(planes_in, planes, (time_kernel, 1, 1))
        self.norm_a = nn.BatchNorm3d(planes)
        self.conv_b = conv(planes, planes, (1, 3, 3), (1, stride, stride))
        self.norm_b = nn.BatchNorm3d(planes)
        self.conv_c = conv(planes, 4 * planes, (1, 1, 1))
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
            self.branch1_conv = conv(planes_in, 4 * planes, (1, 1, 1), (1, stride, stride))
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
        for _ in range(blocks):
            self.res_blocks.append(Block(planes_in, planes, time_kernel, stride))
            planes_in, stride = 4 * planes, 1

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to ``[B, C', T, H', W']``."""
        return self.res_blocks(x)


class Fusion(nn.Module):
    """Lateral connection from the fast to the slow pathway."""

    def __init__(self, planes: int, kernel: int, stride: int):
        super().__init__()
        self.conv_fast_to_slow = conv(planes, 2 * planes, (kernel, 1, 1), (stride, 1, 1))
        self.norm = nn.BatchNorm3d(2 * planes)

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        """The slow features with the fast ones' joined to their channels."""
        lateral = F.relu(self.norm(self.conv_fast_to_slow(fast)), inplace=True)
        return torch.cat([slow, lateral], dim=1)


class Pathways(nn.Module):
    """One part of both pathways and the connection behind it."""

    def __init__(self, slow: nn.Module, fast: nn.Module, fusion: Fusion | None):
        super().__init__()
        self.multipathway_blocks = nn.ModuleList([slow, fast])
        self.multipathway_fusion = fusion

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        """Slow and fast features to the next."""
        slow, fast = self.multipathway_blocks[0](slow), self.multipathway_blocks[1](fast)
        if self.multipathway_fusion is not None:
            slow = self.multipathway_fusion(slow, fast)
        return slow, fast


class TorchSlowFast(RecordedModel):
    """The network of ``mvo_jax.models.baselines.slowfast.SlowFast``.

    Args:
        clip: (T, H, W, C); any fits.
        config: the fields of the Flax model.
    """

    def __init__(self, clip: tuple[int, ...], config: Any):
        super().__init__(config.in_channels)
        del clip
        self.frame_ratio, self.stages = config.frame_ratio, len(config.stage_sizes)

        def fusion(planes: int, stage: int) -> Fusion | None:
            if stage == self.stages:
                return None
            return Fusion(planes, config.fusion_kernel, config.frame_ratio)

        thin = config.width // config.channel_ratio
        slow_in, fast_in = config.width + 2 * thin, thin
        stems = Stem(config.in_channels, config.width, 1), Stem(config.in_channels, thin, 5)
        self.blocks = nn.ModuleDict({"0": Pathways(*stems, fusion(fast_in, 0))})
        for stage, blocks in enumerate(config.stage_sizes):
            stride = 1 if stage == 0 else 2
            slow, fast = config.width * 2**stage, thin * 2**stage
            self.blocks[str(stage + 1)] = Pathways(
                Stage(slow_in, slow, blocks, _SLOW_KERNELS[stage], stride),
                Stage(fast_in, fast, blocks, _FAST_KERNELS[stage], stride),
                fusion(4 * fast, stage + 1),
            )
            slow_in, fast_in = 4 * slow + 8 * fast, 4 * fast
        # Nothing joins the slow pathway after the last stage: its 2 * fast_in channels are absent.
        proj = nn.Linear(slow_in - fast_in, config.num_outputs)
        self.blocks[_HEAD] = nn.ModuleDict({"proj": proj})
        self.head_dropout = Dropout("head_dropout", config.head_dropout)

    def classify(self, video: Tensor) -> Tensor:
        """Logits ``[B, num_outputs]`` of clips ``[B, T, H, W, in_channels]``."""
        fast = channels_first(video)
        count = -(-fast.shape[2] // self.frame_ratio)
        # As the public models sample: equally spaced, rounded down.
        index = torch.linspace(0, fast.shape[2] - 1, count).long()
        slow = fast.index_select(2, index.to(fast.device))
        for part in range(self.stages + 1):
            slow, fast = self.blocks[str(part)](slow, fast)
            self.keep(f"trunk/slow{part}", slow)
            self.keep(f"trunk/fast{part}", fast)
        pooled = torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], dim=1)
        pooled = self.head_dropout(self.keep("pooled", pooled))
        return self.blocks.get_submodule(f"{_HEAD}.proj")(pooled)
