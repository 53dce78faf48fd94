"""Must fail: labels that are independent of the images, and labels that are shuffled.

python -m mvo_jax study --config configs/studies/null.py --out docs/evidence/null
"""

from typing import Any

from . import base

TITLE = "Null: labels that mean nothing"
QUESTION = (
    "Does anything in data, training or evaluation give away labels that cannot be known? Every "
    "interval has to hold 50."
)
SPLIT, SEEDS = base.SPLIT, base.THREE
ROWS: dict[str, dict[str, Any]] = {
    "independent": {"data.preset": "null"},
    "shuffled": {},
}
SHUFFLED = ("shuffled",)
REFERENCES: dict[str, tuple[str, ...]] = {}
NOTES = (
    "independent: the simulator draws labels and masks of another heart than the one in the image.",
    "shuffled: labels with their masks change places among the training and among the validation "
    "cases; the scored cases keep theirs.",
)


def get_config(argument: str = "") -> Any:
    """The experiment of one row; ``argument`` is a name of ``ROWS``."""
    return base.row_of(ROWS, argument)
