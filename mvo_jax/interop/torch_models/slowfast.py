"""SlowFast in PyTorch, written from the paper; state-dict keys are those of pytorchvideo."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvo_jax.interop.torch_models.layers import chain, channels_first, conv
from mvo_jax.interop.torch_models.recording import Dropout, RecordedModel

_SLOW_KERNELS = (1, 1, 3, 3)
_FAST_KERNELS = (3, 3, 3, 3)
_HEAD = "6"  # the published network: stem, four stages, pooling, head


def _stem(planes_in: int, planes_out: int, time_kernel: int) -> nn.Module:
    """``[B, C, T, H, W]`` to ``[B, C', T, H / 4, W / 4]``."""
    return chain(
        conv=conv(planes_in, planes_out, (time_kernel, 7, 7), (1, 2, 2)),
        norm=nn.BatchNorm3d(planes_out),
        relu=nn.ReLU(inplace=True),
        pool=nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
    )


class Block(nn.Module):
    """Bottleneck block with its shortcut."""

    def __init__(self, planes_in: int, planes: int, time_kernel: int, stride: int):
        super().__init__()
        self.branch1_conv, self.branch1_norm = nn.Identity(), nn.Identity()
        if stride != 1 or planes_in != 4 * planes:
            self.branch1_conv = conv(planes_in, 4 * planes, (1, 1, 1), (1, stride, stride))
            self.branch1_norm = nn.BatchNorm3d(4 * planes)
        self.branch2 = chain(
            conv_a=conv(planes_in, planes, (time_kernel, 1, 1)),
            norm_a=nn.BatchNorm3d(planes),
            relu_a=nn.ReLU(inplace=True),
            conv_b=conv(planes, planes, (1, 3, 3), (1, stride, stride)),
            norm_b=nn.BatchNorm3d(planes),
            relu_b=nn.ReLU(inplace=True),
            conv_c=conv(planes, 4 * planes, (1, 1, 1)),
            norm_c=nn.BatchNorm3d(4 * planes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` to ``[B, C', T, H', W']``."""
        shortcut = self.branch1_norm(self.branch1_conv(x))
        return F.relu(shortcut + self.branch2(x), inplace=True)


def _stage(planes_in: int, planes: int, blocks: int, time_kernel: int, stride: int) -> nn.Module:
    """The blocks of one stage of one pathway."""
    sizes = [(planes_in, stride), *[(4 * planes, 1)] * (blocks - 1)][:blocks]
    return chain(
        res_blocks=nn.Sequential(*(Block(n, planes, time_kernel, step) for n, step in sizes))
    )


class Pathways(nn.Module):
    """One part of both pathways and the lateral connection behind it."""

    def __init__(self, slow: nn.Module, fast: nn.Module, fusion: nn.Module | None):
        super().__init__()
        self.multipathway_blocks = nn.ModuleList([slow, fast])
        self.multipathway_fusion = fusion

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        """Slow and fast features to the next."""
        slow, fast = self.multipathway_blocks[0](slow), self.multipathway_blocks[1](fast)
        if self.multipathway_fusion is not None:
            slow = torch.cat([slow, self.multipathway_fusion(fast)], dim=1)
        return slow, fast


class TorchSlowFast(RecordedModel):
    """The network of ``mvo_jax.models.baselines.slowfast.SlowFast``."""

    def __init__(self, clip: tuple[int, ...], config: Any):
        super().__init__(config.in_channels)
        del clip
        self.frame_ratio, self.stages = config.frame_ratio, len(config.stage_sizes)

        def fusion(planes: int, stage: int) -> nn.Module | None:
            if stage == self.stages:
                return None
            kernel, stride = (config.fusion_kernel, 1, 1), (config.frame_ratio, 1, 1)
            return chain(
                conv_fast_to_slow=conv(planes, 2 * planes, kernel, stride),
                norm=nn.BatchNorm3d(2 * planes),
                relu=nn.ReLU(inplace=True),
            )

        thin = config.width // config.channel_ratio
        slow_in, fast_in = config.width + 2 * thin, thin
        stems = _stem(config.in_channels, config.width, 1), _stem(config.in_channels, thin, 5)
        self.blocks = nn.ModuleDict({"0": Pathways(*stems, fusion(fast_in, 0))})
        for stage, blocks in enumerate(config.stage_sizes):
            stride = 1 if stage == 0 else 2
            slow, fast = config.width * 2**stage, thin * 2**stage
            self.blocks[str(stage + 1)] = Pathways(
                _stage(slow_in, slow, blocks, _SLOW_KERNELS[stage], stride),
                _stage(fast_in, fast, blocks, _FAST_KERNELS[stage], stride),
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
