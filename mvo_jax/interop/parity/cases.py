"""What parity compares: the cases, the rows of its result and their bounds."""

import dataclasses
import math
import re
from typing import Any

from mvo_jax.models.mvo_net import VARIANTS
from mvo_jax.models.ops.lowerings import LOWERINGS


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Largest allowed differences in float64.

    A quantity passes through some 40 layers of sums over at most some thousand terms of order 1,
    and float64 rounds at 1.1e-16. A real difference (an epsilon, a biased variance, a wrong decay)
    is 1e-7 or more. Training steps amplify rounding, the longer the more.

    Attributes:
        forward: absolute, for logits, coarse mask and losses; relative to the largest entry for
            intermediates.
        gradient: L2 norm of the difference over the L2 norm, for every parameter and the input.
        zero_gradient: L2 norm of a gradient that is zero in exact arithmetic.
        statistics: absolute, for running means and variances.
        loss_after_30: absolute, loss of each of the first 30 training steps.
        loss_after_100: absolute, loss of later steps.
    """

    forward: float = 1e-12
    gradient: float = 1e-11
    zero_gradient: float = 1e-14
    statistics: float = 1e-13
    loss_after_30: float = 1e-9
    loss_after_100: float = 1e-6


BOUNDS = Bounds()
# float32: error against the float64 truth, ours over torch's own.
FLOAT32_RATIO = 1.5


@dataclasses.dataclass(frozen=True)
class Case:
    """One network to compare, with one lowering.

    Attributes:
        lowering: key of ``LOWERINGS``.
        network: fields of ``MVONet`` and ``TorchMVONet``.
        clip: (T, H, W, C) of a clip.
        loss_form: 'cross_entropy' or 'released'.
        batch: clips in a batch.
    """

    lowering: str
    network: dict[str, Any]
    clip: tuple[int, int, int, int] = (8, 32, 32, 1)
    loss_form: str = "cross_entropy"
    batch: int = 2

    @property
    def options(self) -> dict[str, Any]:
        """The network's fields; small unless the case says otherwise."""
        return {"width": 8, "num_heads": 2, "stage_sizes": (1, 1)} | self.network

    @property
    def mask_size(self) -> int:
        """m of the coarse mask."""
        return self.options.get("mask_size", 16)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __str__(self) -> str:
        options = self.options
        detail = ", ".join(f"{k} {v}" for k, v in self.network.items() if k != "variant")
        name = f"{options['variant']} / {self.lowering}"
        return f"{name} ({detail})" if detail else name

    def zero_gradient(self, name: str) -> bool:
        """Whether the gradient of this torch parameter is zero in exact arithmetic.

        Then only rounding is left to compare. A constant added to all keys of a softmax changes
        nothing, nor does a bias that a BatchNorm subtracts again: every bias of the released
        decoder but the last, and of the paper's what another block follows.
        """
        if re.fullmatch(r"bert\.transformer_blocks\.\d+\.attention\.linear_layers\.1\.bias", name):
            return True
        match = re.fullmatch(r"pseudo_branch\.deconv(\d+)\.(conv1|deconv2|conv3)\.bias", name)
        if match is None:
            return False
        released = self.options.get("decoder_layout", "paper") == "released"
        return released or match[2] == "conv1" or int(match[1]) < self._decoder_blocks

    @property
    def _decoder_blocks(self) -> int:
        """Blocks that double the trunk's grid until it reaches the mask's size."""
        grid = math.ceil(min(self.clip[1:3]) / 2 ** len(self.options["stage_sizes"]))
        return math.ceil(math.log2(max(1.0, self.mask_size / grid)))


def table2_cases(*, lowerings: tuple[str, ...] = tuple(LOWERINGS)) -> list[Case]:
    """Every variant of Table 2 with each of the lowerings; both decoder layouts occur."""
    layouts = {"cgmr": {"decoder_layout": "released"}}
    return [
        Case(lowering, {"variant": variant, **layouts.get(variant, {})})
        for variant in VARIANTS
        for lowering in lowerings
    ]


def deep_case() -> Case:
    """Four stages, the standard encoder, the released loss and decoder, odd sizes, 3 channels.

    9 frames leave two steps to take the maximum over; odd sizes meet every border.
    """
    return Case(
        "conv3d",
        {
            "variant": "full",
            "decoder_layout": "released",
            "encoder_form": "standard",
            "mask_size": 6,
            "stage_sizes": (1, 1, 1, 1),
        },
        clip=(9, 36, 33, 3),
        loss_form="released",
    )


@dataclasses.dataclass(frozen=True)
class Row:
    """One compared quantity.

    Attributes:
        case: what ran.
        stage: 'inference', 'training step', 'AdamW steps', 'SGD steps', 'full size' or 'formulas'.
        quantity: what is compared.
        absolute: largest absolute difference.
        relative: L2 norm of the difference over the L2 norm of torch's value.
        measure: what the bound is about: 'absolute', 'relative' or 'ratio'.
        value: the measured value of that.
        bound: its largest allowed value.
    """

    case: str
    stage: str
    quantity: str
    absolute: float
    relative: float
    measure: str
    value: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the bound holds; a value that is NaN does not."""
        return self.value <= self.bound


@dataclasses.dataclass(frozen=True)
class Trace:
    """Drift along training steps of one case.

    Attributes:
        case: what ran.
        optimiser: 'adamw' or 'sgd'.
        dtype: compute dtype.
        loss: torch's loss of each step.
        loss_difference: absolute difference of the loss, each step.
        parameter_difference: relative L2 difference of all parameters, after each step.
    """

    case: str
    optimiser: str
    dtype: str
    loss: list[float]
    loss_difference: list[float]
    parameter_difference: list[float]
