"""Every row of the paper's Tables 2, 3 and 4, each a config of its own.

    python train.py --config configs/ablations.py:backbone --workdir runs/ablations/backbone
    python eval.py --workdir runs/ablations/backbone --split test_large

Names: ``backbone``, ``bert``, ``cgmr``, ``full`` (Table 2); ``mask4``, ``mask16``, ``mask32``,
``mask_raw`` (Table 3); ``lambda0.01``, ``lambda0.05``, ``lambda0.1`` (Table 4). Append ``-quick``
for the reduced network: ``configs/ablations.py:backbone-quick``. As in the paper, models with a
temporal encoder use AdamW at 1e-4 and the others SGD at 1e-2.

Expected: the paper's AUCs are in ``PAPER``. At 130 test cases an AUC has a 95 % interval of
about +-0.10, so no two rows differ significantly; score ``test_large``. Cost: as configs/mvo.py;
``-quick`` two to three minutes on 2 CPU cores.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import mvo

# name -> (variant, mask size, lambda)
ROWS = {
    "backbone": ("backbone", 16, 0.05),
    "bert": ("bert", 16, 0.05),
    "cgmr": ("cgmr", 16, 0.05),
    "full": ("full", 16, 0.05),
    "mask4": ("full", 4, 0.05),
    "mask16": ("full", 16, 0.05),
    "mask32": ("full", 32, 0.05),
    "mask_raw": ("full", 64, 0.05),
    "lambda0.01": ("full", 16, 0.01),
    "lambda0.05": ("full", 16, 0.05),
    "lambda0.1": ("full", 16, 0.1),
}

REFERENCE = "full"  # the row that the others are tested against

# The printed AUC in percent, and millions of parameters where the paper gives them.
PAPER = {
    "backbone": {"auc": 64.45, "millions": 31.50},
    "bert": {"auc": 65.45, "millions": 37.86},
    "cgmr": {"auc": 67.97, "millions": 37.56},
    "full": {"auc": 72.70, "millions": 43.72},
    "mask4": {"auc": 68.68},
    "mask16": {"auc": 72.70},
    "mask32": {"auc": 67.02},
    "mask_raw": {"auc": 62.23},
    "lambda0.01": {"auc": 67.79},
    "lambda0.05": {"auc": 72.70},
    "lambda0.1": {"auc": 70.30},
}


def get_config(argument: str = "full") -> ConfigDict:
    """The experiment of one row; ``argument`` is a name of ``ROWS``, with '-quick' or without."""
    name, _, size = argument.partition("-")
    if name not in ROWS or size not in ("", "quick"):
        raise ValueError(f"unknown row {argument!r}; choose from {', '.join(ROWS)} (or NAME-quick)")
    config: Any = mvo.get_config(size).unlock()
    config.model.variant, config.model.mask_size, config.loss.mask_loss_weight = ROWS[name]
    if config.model.variant in ("backbone", "cgmr"):
        config.optimizer.name = "sgd"
        config.optimizer.learning_rate = 1e-2
        config.optimizer.weight_decay = 5e-4
        config.optimizer.decoupled_weight_decay = False
    return config.lock()
