"""C3D: eight 3x3x3 convolutions, five max poolings and three dense layers.

Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks", ICCV 2015, section
3.3 and Fig. 3; layer names and the padding of the last pooling follow the PyTorch port of the
authors' Sports-1M network (DavideA/c3d-pytorch). Differences: clips of any size from 16 frames of
16x16 on, where the first dense layer takes what the last pooling leaves (4608 values of 30x64x64,
8192 of the original 16x112x112); He initialisation of the convolutions.
"""

import flax.linen as nn

from mvo_jax.models.ops.conv3d import Conv3d
from mvo_jax.models.ops.layers import Dropout, Linear, ModelOutput, check_clip, classify, sow
from mvo_jax.models.ops.lowerings import Triple
from mvo_jax.models.ops.numerics import Array, Numerics
from mvo_jax.models.ops.pooling import max_pool

MIN_FRAMES = 16  # four poolings halve the frames
MIN_SIZE = 16  # and the last pooling pads its 1x1 grid

# (convolutions, their channels over ``width``, pooling window and stride, its padding)
STAGES: tuple[tuple[tuple[str, ...], int, Triple, Triple], ...] = (
    (("conv1",), 1, (1, 2, 2), (0, 0, 0)),
    (("conv2",), 2, (2, 2, 2), (0, 0, 0)),
    (("conv3a", "conv3b"), 4, (2, 2, 2), (0, 0, 0)),
    (("conv4a", "conv4b"), 8, (2, 2, 2), (0, 0, 0)),
    (("conv5a", "conv5b"), 8, (2, 2, 2), (0, 1, 1)),
)


class C3DTrunk(nn.Module):
    """The convolutions and poolings of C3D; fields as in ``C3D``."""

    in_channels: int = 3
    width: int = 64
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, video: Array) -> Array:
        """``[B, T, H, W, C]`` to ``[B, T', H', W', 8 * width]``, 1x3x3 of 30x64x64.

        Sows 'pool1' ... 'pool5'.
        """
        x = video
        for stage, (names, factor, window, padding) in enumerate(STAGES, start=1):
            for name in names:
                convolution = Conv3d(
                    factor * self.width,
                    (3, 3, 3),
                    numerics=self.numerics,
                    use_bias=True,
                    in_channels=self.in_channels if name == "conv1" else None,
                    name=name,
                )
                x = nn.relu(convolution(x))
            x = sow(self, f"pool{stage}", max_pool(x, window, window, padding))
        return x


class C3D(nn.Module):
    """Classifies a clip with C3D.

    Args:
        num_outputs: 1 (sigmoid) or 2 (softmax).
        in_channels: channels of the first convolution; a grey clip counts as so many copies.
        width: channels of the first convolution, 64 in the paper.
        hidden_size: units of the two hidden dense layers, 4096 in the paper.
        head_dropout: dropout rate after each of them, 0.5 in the paper.
        numerics: see ``Numerics``.
    """

    num_outputs: int = 1
    in_channels: int = 3
    width: int = 64
    hidden_size: int = 4096
    head_dropout: float = 0.5
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, video: Array, *, train: bool, with_mask: bool = False) -> ModelOutput:
        """Classify clips.

        Args:
            video: ``[B, T, H, W, C]`` normalised, T >= 16, H and W >= 16, C 1 or ``in_channels``.
            train: dropout (rng collection 'dropout').
            with_mask: ignored, there is no mask branch.

        Returns:
            ``ModelOutput`` without mask. Sows 'hidden1' and 'hidden2' beside what the trunk sows.

        Raises:
            ValueError: a clip the network cannot take.
        """
        del with_mask
        check_clip(video, in_channels=self.in_channels, frames=MIN_FRAMES, size=MIN_SIZE)
        numerics = self.numerics
        x = C3DTrunk(self.in_channels, self.width, numerics, name="trunk")(video)
        # Channels first, so that the dense kernel keeps torch's order of inputs.
        x = x.transpose(0, 4, 1, 2, 3).reshape(x.shape[0], -1)
        for layer, name in enumerate(("fc6", "fc7"), start=1):
            x = nn.relu(Linear(self.hidden_size, numerics, name=name)(x))
            sow(self, f"hidden{layer}", x)
            x = Dropout(self.head_dropout, numerics, name=f"{name}_dropout")(x, train=train)
        return ModelOutput(classify(x, self.num_outputs, numerics, train=train), None)
