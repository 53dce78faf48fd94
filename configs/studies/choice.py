"""What to train with, chosen on 1,000 further validation patients before any test case is scored.

python -m mvo_jax study --config configs/studies/choice.py --out docs/evidence/choice
"""

from typing import Any

from . import base

TITLE = "Choice: steps, weight decay and lambda"
QUESTION = (
    "How many steps, which weight decay and which lambda make the method work best on patients "
    "that are neither trained on nor tested?"
)
SPLIT, SEEDS = "validation_large", base.THREE
FEATURES = base.FEATURES
_STEPS, _DECAY, _LAMBDA = "train.total_steps", "optimizer.weight_decay", "loss.mask_loss_weight"
_PAPER_DECAY = 0.01
ROWS: dict[str, dict[str, Any]] = {
    base.AREA_CHANGE: {},
    "decay 0.01": {_DECAY: _PAPER_DECAY},
    "decay 0.1": {_DECAY: 0.1},
    "decay 0.3": {_DECAY: 0.3},
    "decay 1": {_DECAY: 1.0},
    "lambda 0": {_LAMBDA: 0.0},
    "lambda 200": {_LAMBDA: 200.0},
    # For the map, which takes longer to point than the class takes to learn.
    "lambda 200 1500 steps": {_LAMBDA: 200.0, _STEPS: 1500},
    "lambda 1000 1500 steps": {_LAMBDA: 1000.0, _STEPS: 1500},
    "1000 steps": {_STEPS: 1000},
    # Whether more patients need a larger network, and weights that are averaged.
    base.WIDE: base.changes_of("mvo:wide"),
    "1000 steps decay 0.01": {_STEPS: 1000, _DECAY: _PAPER_DECAY},
}
REFERENCES = {name: (base.AREA_CHANGE,) for name in ROWS if name != base.AREA_CHANGE}


def get_config(argument: str = "") -> Any:
    """The experiment of one row; ``argument`` is a name of ``ROWS``."""
    return base.row_of(ROWS, argument)
