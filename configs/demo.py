"""A first look in minutes: the full method, reduced, on a small simulated cohort.

    python train.py --config configs/demo.py --workdir runs/demo
    python eval.py --workdir runs/demo

Arguments: ``configs/demo.py:null`` trains on labels that are independent of the images.
"""

from ml_collections import ConfigDict

from configs import mvo


def get_config(argument: str = "") -> ConfigDict:
    """The experiment; ``argument`` is '' (preset easy) or 'null'."""
    if argument not in ("", "null"):
        raise ValueError(f"unknown argument {argument!r}; choose from null")
    config = mvo.get_config("quick").unlock()
    config.data.preset = argument or "easy"
    config.data.size = "demo"
    config.model.width = 8
    config.model.head_dropout = 0.2
    config.model.encoder_dropout = 0.0
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 20
    config.train.total_steps = 200
    config.train.log_every = 20
    config.train.eval_every = 50
    return config.lock()
