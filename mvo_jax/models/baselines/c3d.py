"""C3D: eight 3x3x3 convolutions, five max poolings and three dense layers.

Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks", ICCV 2015, section
3.3 and Fig. 3; layer names and the padding of the last pooling follow the PyTorch port of the
authors' Sports-1M network (DavideA/c3d-pytorch). Differences: clips of any size from 16 frames of
16x16 on, where the first dense layer takes what the last pooling leaves (4608 values of 30x64x64,
8192 of the original 16x112x112); He initialisation of the convolutions.
"""

import flax.linen as nn

from mvo_jax.models.baselines.baseline import Baseline
from mvo_jax.models.ops.conv3d import Conv3d
from mvo_jax.models.ops.layers import Linear, check_clip, sow
from mvo_jax.models.ops.lowerings import Triple
from mvo_jax.models.ops.numerics import Array
from mvo_jax.models.ops.pooling import max_pool

# (convolutions, their channels over ``width``, pooling window and stride, its padding)
STAGES: tuple[tuple[tuple[str, ...], int, Triple, Triple], ...] = (
    (("conv1",), 1, (1, 2, 2), (0, 0, 0)),
    (("conv2",), 2, (2, 2, 2), (0, 0, 0)),
    (("conv3a", "conv3b"), 4, (2, 2, 2), (0, 0, 0)),
    (("conv4a", "conv4b"), 8, (2, 2, 2), (0, 0, 0)),
    (("conv5a", "conv5b"), 8, (2, 2, 2), (0, 1, 1)),
)


class Trunk(nn.Module):
    """The convolutions and poolings."""

    @nn.compact
    def __call__(self, of: "C3D", video: Array) -> Array:
        """``[B, T, H, W, C]`` to ``[B, T', H', W', 8 * width]``, 1x3x3 of 30x64x64.

        Sows 'pool1' ... 'pool5'.
        """
        x = video
        for stage, (names, factor, window, padding) in enumerate(STAGES, start=1):
            for name in names:
                convolution = Conv3d(
                    factor * of.width,
                    (3, 3, 3),
                    numerics=of.numerics,
                    use_bias=True,
                    in_channels=of.in_channels if name == "conv1" else None,
                    name=name,
                )
                x = nn.relu(convolution(x))
            x = sow(self, f"pool{stage}", max_pool(x, window, window, padding))
        return x


class C3D(Baseline):
    """C3D. Sows 'hidden1' and 'hidden2' beside what the trunk sows."""

    width: int = 64  # channels of the first convolution
    hidden_size: int = 4096  # units of the two hidden dense layers
    head_dropout: float = 0.5  # after each of them

    def features(self, video: Array, *, train: bool) -> Array:
        """The second hidden layer, ``[B, hidden_size]``."""
        # Four poolings halve the frames, and the last one pads its 1x1 grid.
        check_clip(video, in_channels=self.in_channels, frames=16, size=16)
        x = Trunk(name="trunk")(self, video)
        # Channels first, so that the dense kernel keeps torch's order of inputs.
        x = x.transpose(0, 4, 1, 2, 3).reshape(x.shape[0], -1)
        for layer, name in enumerate(("fc6", "fc7"), start=1):
            x = nn.relu(Linear(self.hidden_size, self.numerics, name=name)(x))
            sow(self, f"hidden{layer}", x)
            x = self.dropout(f"{name}_dropout", x, self.head_dropout, train=train)
        return x
