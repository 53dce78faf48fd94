"""What can be had at all, and without a network: models of the true features.

python -m mvo_jax study --config configs/studies/ceiling.py --out docs/evidence/ceiling
"""

from typing import Any

from . import base

TITLE = "Ceiling: what the simulator knows"
QUESTION = (
    "How well do the true features of the heart in the image tell MVO, and how well does area "
    "change alone, which needs contours only?"
)
SPLIT, SEEDS = base.SPLIT, base.THREE
FEATURES = {
    **base.KNOWN,
    "all true features": (
        "fractional_area_change",
        "infarct_size",
        "transmurality",
        "strain",
        "territory",
    ),
}
ROWS: dict[str, dict[str, Any]] = {name: {} for name in FEATURES}
REFERENCES = {name: (base.AREA_CHANGE,) for name in ROWS if name != base.AREA_CHANGE}
NOTES = (
    "Logistic models, fitted on the training split. Features come from the simulator, without "
    "measurement error.",
)


def get_config(argument: str = "") -> Any:
    """The experiment of one row; ``argument`` is a name of ``ROWS``."""
    return base.row_of(ROWS, argument)
