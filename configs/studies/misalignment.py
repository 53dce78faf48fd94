"""The hypothesis of the paper: a coarse target helps where cine and LGE lie apart.

python -m mvo_jax study --config configs/studies/misalignment.py --out docs/evidence/misalignment
"""

from typing import Any

from . import base

TITLE = "Misalignment"
QUESTION = (
    "Does a coarse target help where the LGE mask lies beside the cine, and does the raw mask hurt "
    "there?"
)
SPLIT, SEEDS = base.SPLIT, base.THREE
FEATURES = base.FEATURES
# Standard deviation, an axis, of what registration leaves; 3.2 mm is the default of the cohort.
MILLIMETRES = (0, 4, 8, 2)
MASKS = {"mask 16": 16, "raw": 64, "mask 4": 4, "mask 32": 32}
ROWS: dict[str, dict[str, Any]] = {
    base.AREA_CHANGE: {},
    **{
        f"{mm} mm {mask}": {"data.misregistration_mm": float(mm), "model.mask_size": size}
        for mask, size in MASKS.items()
        for mm in MILLIMETRES
    },
}
REFERENCES = {
    f"{mm} mm {mask}": (f"{mm} mm mask 16",)
    for mask in MASKS
    if mask != "mask 16"
    for mm in MILLIMETRES
}


def get_config(argument: str = "") -> Any:
    """The experiment of one row; ``argument`` is a name of ``ROWS``."""
    return base.row_of(ROWS, argument)
