"""A grid over the demo: learning rate and weight of the mask term, scored on validation.

python -m mvo_jax study --config configs/sweep.py --out runs/sweep   # every setting, and a table
python train.py --config configs/sweep.py --workdir runs/middle     # the config that it changes

With the argument of the demo, as in configs/sweep.py:null, the grid is over its other cohort.
"""

from typing import Any

from ml_collections import ConfigDict

from . import demo

SEEDS = (0, 1)


def get_config(argument: str = "") -> ConfigDict:
    """The experiment that the grid changes; the argument is that of the demo."""
    return demo.get_config(argument)


def get_hyper(hyper: Any) -> Any:
    """Six settings; ``hyper`` is ``mvo_jax.sweep``."""
    return hyper.product(
        [
            hyper.sweep("config.optimizer.learning_rate", [3e-4, 1e-3, 3e-3]),
            hyper.sweep("config.loss.mask_loss_weight", [0.0, 20.0]),
        ]
    )
