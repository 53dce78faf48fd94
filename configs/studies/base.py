"""What all studies share: the reduced network on the preset ``paper``, one budget, one optimiser.

Both were chosen on ``validation_large``: with the paper's weight decay of 0.01 the AUC was the
same after 500 and 1,000 steps, and three points lower than with 0.1 (``choice.py``). The mask term
weighs 20: at the paper's 0.05 it is some 0.0001 of a loss of 0.7 here.

A row names what differs, by key; ``FEATURES`` are rows without a network.
"""

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from mvo_jax.config_files import load_config

STEPS = 500
WEIGHT_DECAY = 0.1
LAMBDA = 20.0
SPLIT = "test_large"
AREA_CHANGE = "area change alone"
FEATURES = {AREA_CHANGE: ("fractional_area_change",)}
# Beside networks they say what these have learned.
KNOWN = {
    **FEATURES,
    "infarct size alone": ("infarct_size",),
    "transmurality alone": ("transmurality",),
    "strain alone": ("strain",),
}
WIDE = "7040 patients width 32"
FIVE, THREE = (0, 1, 2, 3, 4), (0, 1, 2)  # seeds of a table and of a grid


def study_config(changes: Mapping[str, Any]) -> Any:
    """The config of one row.

    Args:
        changes: values by key, as {'model.mask_size': 4}.
    """
    config: Any = load_config("mvo:quick").unlock()
    config.loss.mask_loss_weight = LAMBDA
    config.train.total_steps = STEPS
    config.optimizer.weight_decay = WEIGHT_DECAY
    config.train.eval_every = 100
    config.update_from_flattened_dict(dict(changes))
    return config.lock()


def changes_of(name: str) -> dict[str, Any]:
    """What sets a named config, as 'mvo:wide', apart from the one that all rows share, by key."""
    shared, chosen = (
        flatten_dict(config.to_dict(), sep=".") for config in (study_config({}), load_config(name))
    )
    return {key: value for key, value in chosen.items() if shared[key] != value}


def row_of(rows: Mapping[str, Mapping[str, Any]], argument: str) -> Any:
    """The config of the row that an argument names.

    Raises:
        ValueError: there is no such row.
    """
    if argument not in rows:
        raise ValueError(f"unknown row {argument!r}; choose from {', '.join(rows)}")
    return study_config(rows[argument])
