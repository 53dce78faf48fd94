"""The hypothesis of the paper at a weight of the mask that acts: lambda 1000, 1,500 steps.

``misalignment.py`` asks the same at lambda 20, where the mask hardly acts on the class.

python -m mvo_jax study --config configs/studies/strong_misalignment.py \
    --out docs/evidence/strong_misalignment
"""

from typing import Any

from . import base, misalignment

TITLE = "Misalignment at a weight that acts"
QUESTION = (
    "Does a coarse target help where the LGE mask lies beside the cine, and does the raw mask hurt "
    "there, when the mask term weighs as much as the class?"
)
SPLIT, SEEDS = base.SPLIT, base.THREE
FEATURES = base.FEATURES
_SETTING = base.changes_of("mvo:strong_mask")
ROWS: dict[str, dict[str, Any]] = {
    name: {**changes, **_SETTING} if changes else {} for name, changes in misalignment.ROWS.items()
}
REFERENCES = misalignment.REFERENCES


def get_config(argument: str = "") -> Any:
    """The experiment of one row; ``argument`` is a name of ``ROWS``."""
    return base.row_of(ROWS, argument)
