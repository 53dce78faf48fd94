"""Table 3 of the paper: resolution of the mask.

python -m mvo_jax study --config configs/studies/table3.py --out docs/evidence/table3
"""

from typing import Any

from . import base

TITLE = "Table 3: resolution of the mask"
QUESTION = "Which resolution of the target helps, at a weight that acts?"
SPLIT, SEEDS = base.SPLIT, base.FIVE
FEATURES = base.FEATURES
SIZES = {"mask 16": 16, "mask 4": 4, "mask 32": 32, "raw": 64}
ROWS: dict[str, dict[str, Any]] = {
    base.AREA_CHANGE: {},
    **{name: {"model.mask_size": size} for name, size in SIZES.items()},
}
SAME_AS = {"mask 16": ("patients", "440 mask")}
REFERENCES = {name: ("mask 16",) for name in SIZES if name != "mask 16"}
PAPER = {
    "mask 4": {"auc": 68.68},
    "mask 16": {"auc": 72.70},
    "mask 32": {"auc": 67.02},
    "raw": {"auc": 62.23},
}


def get_config(argument: str = "") -> Any:
    """The experiment of one row; ``argument`` is a name of ``ROWS``."""
    return base.row_of(ROWS, argument)
