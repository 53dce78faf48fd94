"""How many patients the method needs, with and without mask.

python -m mvo_jax study --config configs/studies/patients.py --out docs/evidence/patients
"""

from typing import Any

from . import base

TITLE = "Patients"
QUESTION = (
    "How many training patients does the method need to pass area change alone, and does the "
    "coarse mask save some?"
)
SPLIT, SEEDS = base.SPLIT, base.THREE
# Training patients: cohort size and steps. Fewer patients than the paper's 440 get as many steps.
SIZES = {
    440: ("paper", base.STEPS),
    1760: ("patients1760", 2 * base.STEPS),
    110: ("patients110", base.STEPS),
    220: ("patients220", base.STEPS),
    7040: ("patients7040", 4 * base.STEPS),
}
FEATURES = base.KNOWN
ROWS: dict[str, dict[str, Any]] = {
    **{name: {} for name in FEATURES},
    **{
        f"{patients} {what}": {
            "data.size": size,
            "train.total_steps": steps,
            "loss.mask_loss_weight": weight,
        }
        for patients, (size, steps) in SIZES.items()
        for what, weight in (("mask", base.LAMBDA), ("no mask", 0.0))
    },
}
REFERENCES = {
    **{f"{patients} mask": (base.AREA_CHANGE, f"{patients} no mask") for patients in SIZES},
    **{f"{patients} no mask": (base.AREA_CHANGE,) for patients in SIZES},
}


def get_config(argument: str = "") -> Any:
    """The experiment of one row; ``argument`` is a name of ``ROWS``."""
    return base.row_of(ROWS, argument)
