"""Lambda 1000 for 1,500 steps, chosen on ``validation_large``, scored on ``test_large`` once.

And with 7,040 patients in place of 440, which the simulator can answer and a hospital cannot.

python -m mvo_jax study --config configs/studies/strong_mask.py --out docs/evidence/strong_mask
"""

from typing import Any

from mvo_jax.config_files import load_config

from . import base

TITLE = "Strong mask"
QUESTION = (
    "With the lambda and the steps that were chosen on validation: does the mask help, does the "
    "method pass area change alone, and does the map point better than the mean training map?"
)
SPLIT, SEEDS = base.SPLIT, base.THREE
FEATURES = base.KNOWN
_CHOSEN: Any = load_config("mvo:strong_mask")
STEPS, LAMBDA = _CHOSEN.train.total_steps, _CHOSEN.loss.mask_loss_weight
_LAMBDA = "loss.mask_loss_weight"
ROWS: dict[str, dict[str, Any]] = {
    **{name: {} for name in FEATURES},
    **{
        name: {"train.total_steps": STEPS, _LAMBDA: weight}
        for name, weight in (
            (f"lambda {LAMBDA:g}", LAMBDA),
            ("lambda 0", 0.0),
            ("lambda 0.05", 0.05),
            ("lambda 20", base.LAMBDA),
        )
    },
    # Twice the steps: a pilot with 3,520 patients was still rising after 3,000 of them.
    **{
        name: {"data.size": "patients7040", "train.total_steps": 2 * STEPS, _LAMBDA: weight}
        for name, weight in (("7040 patients", LAMBDA), ("7040 patients no mask", 0.0))
    },
}
REFERENCES = {
    f"lambda {LAMBDA:g}": (base.AREA_CHANGE, "lambda 0"),
    "7040 patients": (base.AREA_CHANGE, "7040 patients no mask"),
    "7040 patients no mask": (base.AREA_CHANGE,),
    "lambda 20": ("lambda 0",),
    "lambda 0.05": ("lambda 0",),
}


def get_config(argument: str = "") -> Any:
    """The experiment of one row; ``argument`` is a name of ``ROWS``."""
    return base.row_of(ROWS, argument)
