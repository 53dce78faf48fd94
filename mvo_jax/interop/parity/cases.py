"""What parity compares: the networks, and the bounds of the differences."""

import dataclasses
import math
import re
from typing import Any

from mvo_jax.models.mvo_net import VARIANTS
from mvo_jax.models.ops.lowerings import LOWERINGS, PADDED
from mvo_jax.models.registry import published_config

Clip = tuple[int, int, int, int]

# Zero channels change no result, which tests/models/ops holds at 1e-12: not compared once more.
COMPARED = tuple(name for name in LOWERINGS if not name.endswith(PADDED))


class BOUNDS:
    """Largest allowed differences in float64.

    A quantity passes through some 40 layers of sums over at most some thousand terms of order 1,
    and float64 rounds at 1.1e-16. A real difference (an epsilon, a biased variance, a wrong decay)
    is 1e-7 or more. Training steps amplify rounding, the longer the more.
    """

    # Losses, outputs and intermediates; absolute, and relative to the largest entry where that is
    # above 1: logits of the published P3D with random weights are 2e9, where float64 steps by 2e-7.
    forward: float = 1e-12
    # L2 norm of the difference over the L2 norm, for every parameter and the input.
    gradient: float = 1e-11
    zero_gradient: float = 1e-14  # L2 norm of a gradient that is zero in exact arithmetic
    statistics: float = 1e-13  # absolute, for running means and variances
    loss_after_30: float = 1e-9  # absolute, loss of each of the first 30 training steps
    loss_after_100: float = 1e-6  # absolute, loss of later steps


# float32: error against the float64 truth, ours over torch's own.
FLOAT32_RATIO = 1.5

_TRANSFORMER = {
    "hidden_size": 12,
    "num_layers": 1,
    "num_heads": 3,
    "head_dim": 6,  # three of them are wider than a token, as 12 of 64 are than 512
    "mlp_dim": 20,
    "patch_size": 8,
    "dropout_rate": 0.2,
}
# model -> (fields, clip) of the fewest layers that hold every kind of block. Odd sizes meet every
# border, and a clip of one channel the stem of three.
SMALL: dict[str, tuple[dict[str, Any], Clip]] = {
    "mvo_net": ({"width": 8, "num_heads": 2, "stage_sizes": (1, 1)}, (8, 32, 32, 1)),
    "vivit": ({**_TRANSFORMER, "tubelet_size": 2}, (6, 16, 16, 1)),
    "timesformer": (_TRANSFORMER, (3, 16, 16, 3)),
    "c3d": ({"width": 4, "hidden_size": 16}, (17, 20, 20, 1)),
    "i3d": ({"width": 8, "stage_sizes": (0, 1, 0), "head_size": 8}, (9, 33, 33, 1)),
    "slowfast": ({"width": 16, "stage_sizes": (1, 1)}, (9, 33, 33, 1)),
    "p3d": ({"width": 4, "stage_sizes": (3, 0, 0, 1), "num_outputs": 2}, (17, 33, 33, 3)),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One network to compare, computed in one way on the Flax side."""

    model: str = "mvo_net"  # its name in the registry
    lowering: str = ""  # key of LOWERINGS; '' where the model has no choice
    # Fields that differ from SMALL, or from the published size.
    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    clip: tuple[int, ...] = ()  # (T, H, W, C) of a clip; () for that of SMALL
    loss_form: str = "cross_entropy"  # 'cross_entropy' or 'released'
    batch: int = 3  # clips in a batch
    published: bool = False  # start from the published size in place of SMALL

    def __post_init__(self) -> None:
        if not self.clip:
            object.__setattr__(self, "clip", SMALL[self.model][1])

    @property
    def config(self) -> dict[str, Any]:
        """The ``model`` part of a config, for both sides."""
        small = {} if self.published else SMALL[self.model][0]
        lowering = {"lowering": self.lowering} if self.lowering else {}
        return published_config(self.model) | small | self.network | lowering

    @property
    def mask_size(self) -> int:
        """m of the coarse mask; models without one are given a target all the same."""
        return self.config.get("mask_size", 16)

    def __str__(self) -> str:
        name = f"{self.model} / {self.lowering}" if self.lowering else self.model
        detail = ", ".join(f"{key} {value}" for key, value in self.network.items())
        return f"{name} ({detail})" if detail else name

    def zero_gradient(self, name: str) -> bool:
        """Whether the gradient of this torch parameter is zero in exact arithmetic.

        Then only rounding is left to compare. A constant added to all keys of a softmax changes
        nothing, nor does a bias that a BatchNorm subtracts again: every bias of the released
        decoder but the last, and of the paper's what another block follows. (Where one map gives
        queries, keys and values, the bias of the keys is a third of its bias and does not count.)
        """
        if re.fullmatch(r"bert\.transformer_blocks\.\d+\.attention\.linear_layers\.1\.bias", name):
            return True
        match = re.fullmatch(r"pseudo_branch\.deconv(\d+)\.(conv1|deconv2|conv3)\.bias", name)
        if match is None:
            return False
        released = self.config["decoder_layout"] == "released"
        return released or match[2] == "conv1" or int(match[1]) < self._decoder_blocks

    @property
    def _decoder_blocks(self) -> int:
        """Blocks that double the trunk's grid until it reaches the mask's size."""
        grid = math.ceil(min(self.clip[1:3]) / 2 ** len(self.config["stage_sizes"]))
        return math.ceil(math.log2(max(1.0, self.mask_size / grid)))


def cases_of(model: str) -> list[Case]:
    """Every network of a model that is compared, with each lowering.

    ``mvo_net``: every variant of Table 2 (both decoder layouts occur) and ``deep_case``.
    """
    if model == "timesformer":
        gated = Case(model, network={"form": "gated", "num_outputs": 2}, clip=(3, 16, 16, 1))
        return [gated, Case(model, network={"form": "released"})]
    lowerings = COMPARED if "lowering" in published_config(model) else ("",)
    if model != "mvo_net":
        return [Case(model, lowering) for lowering in lowerings]
    layouts = {"cgmr": {"decoder_layout": "released"}}
    table2 = [{"variant": name, **layouts.get(name, {})} for name in VARIANTS]
    cases = [Case(model, low, network, batch=2) for network in table2 for low in lowerings]
    return [*cases, deep_case()]


def deep_case() -> Case:
    """MVONet of four stages: standard encoder, released loss and decoder, odd sizes, 3 channels."""
    network = {
        "variant": "full",
        "decoder_layout": "released",
        "encoder_form": "standard",
        "mask_size": 6,
        "stage_sizes": (1, 1, 1, 1),
    }  # 9 frames leave two steps to take the maximum over
    return Case("mvo_net", "conv3d", network, (9, 36, 33, 3), loss_form="released", batch=2)


def full_size_case(model: str, *, clips: int = 1) -> Case:
    """The published network at the paper's clips, as many of them."""
    network = {"decoder_layout": "released"} if model == "mvo_net" else {}
    # im2col: XLA:CPU has a fast float64 matrix product, but a slow float64 convolution.
    lowering = "im2col_conv1d" if "lowering" in published_config(model) else ""
    return Case(model, lowering, network, (30, 64, 64, 1), batch=clips, published=True)
