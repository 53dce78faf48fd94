"""C3D in PyTorch, written from the paper; state-dict keys are those of the published port."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mvo_jax.interop.torch_models.layers import channels_first, conv
from mvo_jax.interop.torch_models.recording import Dropout, RecordedModel

# convolutions of each stage, channels over the width, pooling window, padding of the pooling
_STAGES = (
    (("conv1",), 1, (1, 2, 2), (0, 0, 0)),
    (("conv2",), 2, (2, 2, 2), (0, 0, 0)),
    (("conv3a", "conv3b"), 4, (2, 2, 2), (0, 0, 0)),
    (("conv4a", "conv4b"), 8, (2, 2, 2), (0, 0, 0)),
    (("conv5a", "conv5b"), 8, (2, 2, 2), (0, 1, 1)),
)


class TorchC3D(RecordedModel):
    """The network of ``mvo_jax.models.baselines.c3d.C3D``."""

    def __init__(self, clip: tuple[int, ...], config: Any):
        super().__init__(config.in_channels)
        planes, grid = config.in_channels, clip[:3]
        for names, factor, window, padding in _STAGES:
            for name in names:
                self.add_module(name, conv(planes, factor * config.width, (3, 3, 3), bias=True))
                planes = factor * config.width
            grid = [(n + 2 * p - w) // w + 1 for n, w, p in zip(grid, window, padding, strict=True)]
        hidden = config.hidden_size
        self.fc6 = nn.Linear(planes * grid[0] * grid[1] * grid[2], hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc8 = nn.Linear(hidden, config.num_outputs)
        self.fc6_dropout = Dropout("fc6_dropout", config.head_dropout)
        self.fc7_dropout = Dropout("fc7_dropout", config.head_dropout)

    def classify(self, video: Tensor) -> Tensor:
        """Logits ``[B, num_outputs]`` of clips ``[B, T, H, W, in_channels]``."""
        x = channels_first(video)
        for stage, (names, _, window, padding) in enumerate(_STAGES, start=1):
            for name in names:
                x = F.relu(self.get_submodule(name)(x), inplace=True)
            x = self.keep(f"trunk/pool{stage}", F.max_pool3d(x, window, window, padding))
        x = self.keep("hidden1", F.relu(self.fc6(x.flatten(1))))
        x = self.keep("hidden2", F.relu(self.fc7(self.fc6_dropout(x))))
        return self.fc8(self.fc7_dropout(x))
