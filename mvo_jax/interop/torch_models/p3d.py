"""P3D in PyTorch, written from the paper; state-dict keys are those of the public code."""

import torch.nn.functional as F
from torch import Tensor, nn

from mvo_jax.interop.torch_models.recording import (
    Dropout,
    Output,
    RecordedModel,
    Recorder,
    channels_first,
)

_STAGES_3D = 3


def _conv(planes_in: int, planes_out: int, kernel: tuple[int, ...], stride: int = 1) -> nn.Module:
    """Convolution without bias, 2-D or 3-D as the kernel; the stride is in-plane."""
    padding = tuple(size // 2 for size in kernel)
    kind = nn.Conv2d if len(kernel) == 2 else nn.Conv3d
    strides = (stride, stride) if len(kernel) == 2 else (1, stride, stride)
    conv = kind(planes_in, planes_out, kernel, strides, padding, bias=False)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class Block(nn.Module):
    """Bottleneck block: kind 'A', 'B', 'C' or '2D'."""

    def __init__(self, planes_in: int, planes: int, kind: str, stride: int):
        super().__init__()
        self.kind = kind
        flat = kind == "2D"
        norm = nn.BatchNorm2d if flat else nn.BatchNorm3d
        point = (1, 1) if flat else (1, 1, 1)
        self.conv1, self.bn1 = _conv(planes_in, planes, point, stride), norm(planes)
        if flat:
            self.conv_normal, self.bn_normal = _conv(planes, planes, (3, 3)), norm(planes)
        else:
            self.conv2, self.bn2 = _conv(planes, planes, (1, 3, 3)), norm(planes)
            self.conv3, self.bn3 = _conv(planes, planes, (3, 1, 1)), norm(planes)
        self.conv4, self.bn4 = _conv(planes, 4 * planes, point), norm(4 * planes)
        self.downsample = None
        if stride != 1 or planes_in != 4 * planes:
            self.downsample = nn.Sequential(
                _conv(planes_in, 4 * planes, point, stride), norm(4 * planes)
            )

    def _space(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(x)))

    def _time(self, x: Tensor) -> Tensor:
        return F.relu(self.bn3(self.conv3(x)))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` (2D: ``[N, C, H, W]``) to four times ``planes`` channels."""
        y = F.relu(self.bn1(self.conv1(x)))
        if self.kind == "2D":
            y = F.relu(self.bn_normal(self.conv_normal(y)))
        elif self.kind == "A":
            y = self._time(self._space(y))
        elif self.kind == "B":
            y = self._time(y) + self._space(y)
        else:
            y = self._space(y)
            y = self._time(y) + y
        y = self.bn4(self.conv4(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(y + shortcut, inplace=True)


class TorchP3D(RecordedModel):
    """The network of ``mvo_jax.models.baselines.p3d.P3D``, argument for argument.

    Args:
        frames: of the clips; any number fits.
        image_size: of the clips; any size fits.
        num_outputs: 1 (sigmoid) or 2 (softmax).
        in_channels: channels of the stem; a grey clip is copied.
        width: channels of the stem.
        stage_sizes: residual blocks of each stage.
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
        stage_sizes: tuple[int, ...] = (3, 8, 36, 3),
        head_dropout: float = 0.5,
    ):
        super().__init__()
        del frames, image_size
        self.in_channels = in_channels
        self.conv1_custom = _conv(in_channels, width, (1, 7, 7), 2)
        self.bn1 = nn.BatchNorm3d(width)
        self.record_stem = Recorder("trunk/stem")
        planes_in, count, self.stages = width, 0, len(stage_sizes)
        for stage, blocks in enumerate(stage_sizes):
            layer = nn.Sequential()
            for block in range(blocks):
                kind = "ABC"[count % 3] if stage < _STAGES_3D else "2D"
                stride = 2 if stage > 0 and block == 0 else 1
                layer.append(Block(planes_in, width * 2**stage, kind, stride))
                planes_in = 4 * width * 2**stage
                count += 1
            self.add_module(f"layer{stage + 1}", layer)
            self.add_module(f"record{stage + 1}", Recorder(f"trunk/layer{stage + 1}"))
        self.record_pooled = Recorder("pooled")
        self.head_dropout = Dropout("head_dropout", head_dropout)
        self.fc = nn.Linear(planes_in, num_outputs)

    def forward(self, video: Tensor, *, with_mask: bool = False) -> Output:
        """Classify clips ``[B, T, H, W, C]``; there is no mask branch."""
        del with_mask
        x = channels_first(video, self.in_channels)
        x = F.relu(self.bn1(self.conv1_custom(x)), inplace=True)
        x = self.record_stem(F.max_pool3d(x, (2, 3, 3), 2, (0, 1, 1)))
        for stage in range(1, self.stages + 1):
            layer = self.get_submodule(f"layer{stage}")
            if stage <= _STAGES_3D:
                x = F.max_pool3d(layer(x), (2, 1, 1), (2, 1, 1))
            else:
                frames = layer(x.transpose(1, 2).flatten(0, 1))
                x = frames.unflatten(0, (x.shape[0], -1)).transpose(1, 2)
            x = self.get_submodule(f"record{stage}")(x)
        pooled = self.record_pooled(x.mean((2, 3, 4)))
        return Output(self.fc(self.head_dropout(pooled)), None)
