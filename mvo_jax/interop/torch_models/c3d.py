"""C3D in PyTorch, written from the paper; state-dict keys are those of the published port."""

import torch.nn.functional as F
from torch import Tensor, nn

from mvo_jax.interop.torch_models.recording import (
    Dropout,
    Output,
    RecordedModel,
    Recorder,
    channels_first,
)

# convolutions of each stage, channels over the width, pooling window, padding of the pooling
_STAGES = (
    (("conv1",), 1, (1, 2, 2), (0, 0, 0)),
    (("conv2",), 2, (2, 2, 2), (0, 0, 0)),
    (("conv3a", "conv3b"), 4, (2, 2, 2), (0, 0, 0)),
    (("conv4a", "conv4b"), 8, (2, 2, 2), (0, 0, 0)),
    (("conv5a", "conv5b"), 8, (2, 2, 2), (0, 1, 1)),
)


class TorchC3D(RecordedModel):
    """The network of ``mvo_jax.models.baselines.c3d.C3D``, argument for argument.

    Args:
        frames: T of the clips; with the size it fixes the inputs of the first dense layer.
        image_size: H and W of the clips.
        num_outputs: 1 (sigmoid) or 2 (softmax).
        in_channels: channels of the first convolution; a grey clip is copied.
        width: channels of the first convolution.
        hidden_size: units of the two hidden dense layers.
        head_dropout: dropout rate after each of them.
    """

    def __init__(
        self,
        frames: int = 30,
        image_size: int = 64,
        *,
        num_outputs: int = 1,
        in_channels: int = 3,
        width: int = 64,
        hidden_size: int = 4096,
        head_dropout: float = 0.5,
    ):
        super().__init__()
        self.in_channels = in_channels
        planes, grid = in_channels, [frames, image_size, image_size]
        for stage, (names, factor, window, padding) in enumerate(_STAGES, start=1):
            for name in names:
                conv = nn.Conv3d(planes, factor * width, 3, padding=1)
                nn.init.kaiming_normal_(conv.weight)
                self.add_module(name, conv)
                planes = factor * width
            self.add_module(f"record{stage}", Recorder(f"trunk/pool{stage}"))
            grid = [(n + 2 * p - w) // w + 1 for n, w, p in zip(grid, window, padding, strict=True)]
        self.fc6 = nn.Linear(planes * grid[0] * grid[1] * grid[2], hidden_size)
        self.fc7 = nn.Linear(hidden_size, hidden_size)
        self.fc8 = nn.Linear(hidden_size, num_outputs)
        self.record_fc6, self.record_fc7 = Recorder("hidden1"), Recorder("hidden2")
        self.fc6_dropout = Dropout("fc6_dropout", head_dropout)
        self.fc7_dropout = Dropout("fc7_dropout", head_dropout)

    def forward(self, video: Tensor, *, with_mask: bool = False) -> Output:
        """Classify clips ``[B, T, H, W, C]``; there is no mask branch."""
        del with_mask
        x = channels_first(video, self.in_channels)
        for stage, (names, _, window, padding) in enumerate(_STAGES, start=1):
            for name in names:
                x = F.relu(self.get_submodule(name)(x), inplace=True)
            x = F.max_pool3d(x, window, window, padding)
            x = self.get_submodule(f"record{stage}")(x)
        x = self.record_fc6(F.relu(self.fc6(x.flatten(1))))
        x = self.record_fc7(F.relu(self.fc7(self.fc6_dropout(x))))
        return Output(self.fc8(self.fc7_dropout(x)), None)
