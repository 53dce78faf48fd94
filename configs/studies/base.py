"""What all studies share: the reduced network on the preset ``paper``, one budget, one optimiser.

1,600 steps of 16 clips: in a pilot the validation AUC was 0.45, 0.63, 0.74, 0.77 and 0.78 after
200, 400, 600, 800 and 1,200 steps. The mask term weighs 20: at the paper's 0.05 it is some 0.0001
of a loss of 0.7 here. A run takes five minutes on 2 quiet CPU cores.

A row names what differs, by key; ``FEATURES`` are rows without a network.
"""

from collections.abc import Mapping
from typing import Any

from mvo_jax.config_files import load_config

STEPS = 1600
LAMBDA = 20.0
SPLIT = "test_large"
AREA_CHANGE = "area change alone"
FEATURES = {AREA_CHANGE: ("fractional_area_change",)}
FIVE, THREE = (0, 1, 2, 3, 4), (0, 1, 2)  # seeds of a table and of a grid


def study_config(changes: Mapping[str, Any]) -> Any:
    """The config of one row.

    Args:
        changes: values by key, as {'model.mask_size': 4}.
    """
    config: Any = load_config("mvo:quick").unlock()
    config.loss.mask_loss_weight = LAMBDA
    config.train.total_steps = STEPS
    config.train.eval_every = 200
    config.update_from_flattened_dict(dict(changes))
    return config.lock()


def row_of(rows: Mapping[str, Mapping[str, Any]], argument: str) -> Any:
    """The config of the row that an argument names.

    Raises:
        ValueError: there is no such row.
    """
    if argument not in rows:
        raise ValueError(f"unknown row {argument!r}; choose from {', '.join(rows)}")
    return study_config(rows[argument])
