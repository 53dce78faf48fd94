"""Table 2 of the paper: encoder, mask, both.

python -m mvo_jax study --config configs/studies/table2.py --out docs/evidence/table2
"""

from typing import Any

from . import base

TITLE = "Table 2: encoder and mask"
QUESTION = (
    "Do the temporal encoder and the coarse mask help, each and together, where all variants have "
    "one optimiser?"
)
SPLIT, SEEDS = base.SPLIT, base.FIVE
FEATURES = base.FEATURES
_SGD = {
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 1e-2,
    "optimizer.weight_decay": 5e-4,
    "optimizer.decoupled_weight_decay": False,
}
_VARIANTS = ("full", "backbone", "bert", "cgmr")
ROWS: dict[str, dict[str, Any]] = {
    base.AREA_CHANGE: {},
    **{variant: {"model.variant": variant} for variant in _VARIANTS},
    # The paper trains the variants without temporal encoder with SGD.
    "backbone SGD": {"model.variant": "backbone", **_SGD},
    "cgmr SGD": {"model.variant": "cgmr", **_SGD},
}
SAME_AS = {"full": ("patients", "440 mask")}
REFERENCES = {
    "full": (base.AREA_CHANGE,),
    **{name: ("full",) for name in ROWS if name not in ("full", base.AREA_CHANGE)},
}
PAPER = {
    "backbone SGD": {"auc": 64.45},
    "bert": {"auc": 65.45},
    "cgmr SGD": {"auc": 67.97},
    "full": {"auc": 72.70},
}


def get_config(argument: str = "") -> Any:
    """The experiment of one row; ``argument`` is a name of ``ROWS``."""
    return base.row_of(ROWS, argument)
