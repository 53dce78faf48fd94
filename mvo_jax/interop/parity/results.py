"""What a comparison found: rows with their bounds, and drift along training steps."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

OPTIMISER_NAMES = {"adamw": "AdamW", "sgd": "SGD"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One compared quantity."""

    case: str  # what ran
    stage: str  # 'inference', 'training step', 'AdamW steps', 'full size', 'float32', 'formulas'
    quantity: str  # what is compared
    absolute: float  # largest absolute difference; in rows of float32 torch's relative error
    relative: float  # L2 norms, of the difference over torch's; in float32 our relative error
    measure: str  # what the bound is about: 'absolute', 'relative' or 'ratio'
    value: float  # the measured value of that
    bound: float  # its largest allowed value

    @property
    def holds(self) -> bool:
        """Whether the bound holds; a value that is NaN does not."""
        return self.value <= self.bound

    @property
    def strain(self) -> float:
        """Value over bound; infinite for a broken bound that is 0 or a value that is NaN."""
        if math.isnan(self.value) or not self.bound:
            return 0.0 if self.holds else math.inf
        return self.value / self.bound


@dataclasses.dataclass(frozen=True)
class Trace:
    """Drift along training steps of one case."""

    case: str  # what ran
    optimiser: str  # 'adamw' or 'sgd'
    loss: list[float]  # torch's loss of each step
    loss_difference: list[float]  # absolute difference of the loss, each step
    parameter_difference: list[float]  # relative L2 difference of all parameters, after each step


@dataclasses.dataclass
class Result:
    """Every comparison, and the drift along training steps."""

    rows: list[Row] = dataclasses.field(default_factory=list)
    traces: list[Trace] = dataclasses.field(default_factory=list)

    @property
    def broken(self) -> list[Row]:
        """Rows whose bound does not hold."""
        return [row for row in self.rows if not row.holds]


class Family(NamedTuple):
    """Rows of one kind."""

    name: str
    stage: str
    count: int
    worst: Row  # came closest to its bound, or broke it most


def families(rows: Sequence[Row]) -> list[Family]:
    """Rows grouped by stage and kind of quantity, in the order of their first occurrence."""
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        grouped.setdefault((row.stage, _family(row.quantity)), []).append(row)
    return [
        Family(name, stage, len(members), max(members, key=lambda row: row.strain))
        for (stage, name), members in grouped.items()
    ]


def _family(quantity: str) -> str:
    """Gradients by part of the network, statistics together, everything else by its own name."""
    if quantity.startswith("gradient "):
        return quantity.replace(" ", ", ").split(".")[0]
    if quantity.endswith(("running_mean", "running_var")):
        return "running " + quantity.rpartition("running_")[2]
    return quantity.partition(", of ")[0]
