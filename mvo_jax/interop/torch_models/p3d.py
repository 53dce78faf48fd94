"""P3D in PyTorch, written from the paper; state-dict keys are those of the public code."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mvo_jax.interop.torch_models.layers import channels_first, conv
from mvo_jax.interop.torch_models.recording import Dropout, RecordedModel

_STAGES_3D = 3


class Block(nn.Module):
    """Bottleneck block: kind 'A', 'B', 'C' or '2D'."""

    def __init__(self, planes_in: int, planes: int, kind: str, stride: int):
        super().__init__()
        self.kind = kind
        flat = kind == "2D"
        norm = nn.BatchNorm2d if flat else nn.BatchNorm3d
        point, strides = (1, 1, 1)[flat:], (1, stride, stride)[flat:]
        self.conv1, self.bn1 = conv(planes_in, planes, point, strides), norm(planes)
        if flat:
            self.conv_normal, self.bn_normal = conv(planes, planes, (3, 3)), norm(planes)
        else:
            self.conv2, self.bn2 = conv(planes, planes, (1, 3, 3)), norm(planes)
            self.conv3, self.bn3 = conv(planes, planes, (3, 1, 1)), norm(planes)
        self.conv4, self.bn4 = conv(planes, 4 * planes, point), norm(4 * planes)
        self.downsample = None
        if stride != 1 or planes_in != 4 * planes:
            shortcut = conv(planes_in, 4 * planes, point, strides)
            self.downsample = nn.Sequential(shortcut, norm(4 * planes))

    def _inner(self, x: Tensor) -> Tensor:
        if self.kind == "2D":
            return F.relu(self.bn_normal(self.conv_normal(x)))
        space = F.relu(self.bn2(self.conv2(x)))
        time = F.relu(self.bn3(self.conv3(x if self.kind == "B" else space)))
        return time if self.kind == "A" else time + space

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` (2D: ``[N, C, H, W]``) to four times ``planes`` channels."""
        y = self._inner(F.relu(self.bn1(self.conv1(x))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn4(self.conv4(y)) + shortcut, inplace=True)


class TorchP3D(RecordedModel):
    """The network of ``mvo_jax.models.baselines.p3d.P3D``."""

    def __init__(self, clip: tuple[int, ...], config: Any):
        super().__init__(config.in_channels)
        del clip
        planes_in, count, self.stages = config.width, 0, len(config.stage_sizes)
        self.conv1_custom = conv(config.in_channels, planes_in, (1, 7, 7), (1, 2, 2))
        self.bn1 = nn.BatchNorm3d(planes_in)
        for stage, blocks in enumerate(config.stage_sizes):
            layer = nn.Sequential()
            for block in range(blocks):
                kind = "ABC"[count % 3] if stage < _STAGES_3D else "2D"
                stride = 2 if stage > 0 and block == 0 else 1
                layer.append(Block(planes_in, config.width * 2**stage, kind, stride))
                planes_in = 4 * config.width * 2**stage
                count += 1
            self.add_module(f"layer{stage + 1}", layer)
        self.head_dropout = Dropout("head_dropout", config.head_dropout)
        self.fc = nn.Linear(planes_in, config.num_outputs)

    def classify(self, video: Tensor) -> Tensor:
        """Logits ``[B, num_outputs]`` of clips ``[B, T, H, W, in_channels]``."""
        x = F.relu(self.bn1(self.conv1_custom(channels_first(video))), inplace=True)
        x = self.keep("trunk/stem", F.max_pool3d(x, (2, 3, 3), 2, (0, 1, 1)))
        for stage in range(1, self.stages + 1):
            layer = self.get_submodule(f"layer{stage}")
            if stage <= _STAGES_3D:
                x = F.max_pool3d(layer(x), (2, 1, 1), (2, 1, 1))
            else:
                frames = layer(x.transpose(1, 2).flatten(0, 1))
                x = frames.unflatten(0, (x.shape[0], -1)).transpose(1, 2)
            x = self.keep(f"trunk/layer{stage}", x)
        return self.fc(self.head_dropout(self.keep("pooled", x.mean((2, 3, 4)))))
