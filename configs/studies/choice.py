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
# Name: steps, weight decay, lambda. Where a name says no weight decay it is 0.1.
_SETTINGS = {
    "decay 0.01": (500, _PAPER_DECAY, 20.0),
    "decay 0.1": (500, 0.1, 20.0),
    "decay 0.3": (500, 0.3, 20.0),
    "decay 1": (500, 1.0, 20.0),
    "lambda 0": (500, 0.1, 0.0),
    "lambda 200": (500, 0.1, 200.0),
    "1000 steps decay 0.01": (1000, _PAPER_DECAY, 20.0),
    "1000 steps decay 0.1": (1000, 0.1, 20.0),
}
ROWS: dict[str, dict[str, Any]] = {
    base.AREA_CHANGE: {},
    **{
        name: {_STEPS: steps, _DECAY: decay, _LAMBDA: weight}
        for name, (steps, decay, weight) in _SETTINGS.items()
    },
}
REFERENCES = {name: (base.AREA_CHANGE,) for name in _SETTINGS}


def get_config(argument: str = "") -> Any:
    """The experiment of one row; ``argument`` is a name of ``ROWS``."""
    return base.row_of(ROWS, argument)
