"""7,040 patients and twice the width: chosen on ``validation_large``, ``test_large`` scored once.

There it was 2.3 points above area change alone (0.3 to 4.4, p = 0.031; ``choice.py``, one seed).

python -m mvo_jax study --config configs/studies/wide.py --out docs/evidence/wide
"""

from typing import Any

from . import base

TITLE = "7,040 patients, wider network"
QUESTION = (
    "With as many patients as a simulator can give: does the method pass area change alone, and "
    "does the mask help?"
)
SPLIT, SEEDS = base.SPLIT, base.THREE
FEATURES = base.KNOWN
NO_MASK = "no mask"
ROWS: dict[str, dict[str, Any]] = {
    **{name: {} for name in FEATURES},
    base.WIDE: base.changes_of("mvo:wide"),
    NO_MASK: {**base.changes_of("mvo:wide"), "loss.mask_loss_weight": 0.0},
}
REFERENCES = {base.WIDE: (base.AREA_CHANGE, NO_MASK), NO_MASK: (base.AREA_CHANGE,)}


def get_config(argument: str = "") -> Any:
    """The experiment of one row; ``argument`` is a name of ``ROWS``."""
    return base.row_of(ROWS, argument)
