"""Table 4 of the paper: lambda, the weight of the mask term.

python -m mvo_jax study --config configs/studies/table4.py --out docs/evidence/table4
"""

from typing import Any

from . import base

TITLE = "Table 4: weight of the mask"
QUESTION = "Where does the mask term begin to act, and where does it harm?"
SPLIT, SEEDS = base.SPLIT, base.FIVE
FEATURES = base.FEATURES
WEIGHTS = (0, 0.05, 1, 20, 0.01, 0.1, 5, 100)
ROWS: dict[str, dict[str, Any]] = {
    base.AREA_CHANGE: {},
    **{f"lambda {weight:g}": {"loss.mask_loss_weight": float(weight)} for weight in WEIGHTS},
}
SAME_AS = {
    "lambda 0": ("patients", "440 no mask"),
    f"lambda {base.LAMBDA:g}": ("patients", "440 mask"),
}
REFERENCES = {f"lambda {weight:g}": ("lambda 0",) for weight in WEIGHTS if weight}
PAPER = {
    "lambda 0.01": {"auc": 67.79},
    "lambda 0.05": {"auc": 72.70},
    "lambda 0.1": {"auc": 70.30},
}


def get_config(argument: str = "") -> Any:
    """The experiment of one row; ``argument`` is a name of ``ROWS``."""
    return base.row_of(ROWS, argument)
