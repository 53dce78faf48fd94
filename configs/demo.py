"""A first look in minutes: the full method, reduced, on a small simulated cohort.

    python train.py --config configs/demo.py --workdir runs/demo
    python eval.py --workdir runs/demo

Arguments: ``configs/demo.py:null`` trains on labels that are independent of the images.
"""

from typing import Any

from ml_collections import ConfigDict

from . import mvo


def get_config(argument: str = "") -> ConfigDict:
    """The experiment; ``argument`` is '' (preset easy) or 'null'."""
    if argument not in ("", "null"):
        raise ValueError(f"unknown argument {argument!r}; choose from null")
    config: Any = mvo.get_config("quick").unlock()
    config.data.preset = argument or "easy"
    config.data.size = "demo"
    config.model.encoder_dropout = 0.0
    config.loss.mask_loss_weight = 20.0  # a short run learns nothing from 0.05
    config.optimizer.learning_rate = 3e-3
    # Rotation and photometry cost more steps than a first look has.
    config.augment.max_rotation_deg = 0.0
    config.augment.brightness = 0.0
    config.augment.contrast = 0.0
    config.augment.gamma = 0.0
    config.train.batch_size = 16
    config.train.total_steps = 400
    config.train.log_every = 20
    config.train.eval_every = 100
    return config.lock()
