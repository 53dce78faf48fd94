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

from . import mvo, paper

_SIZES = [size for size in paper.TABLE_3 if size != paper.IMAGE_SIZE]
# name -> what differs from configs/mvo.py
ROWS: dict[str, dict[str, Any]] = {
    **{variant: {"model.variant": variant} for variant in paper.TABLE_2},
    **{f"mask{size}": {"model.mask_size": size} for size in _SIZES},
    "mask_raw": {"model.mask_size": paper.IMAGE_SIZE},
    **{f"lambda{weight}": {"loss.mask_loss_weight": weight} for weight in paper.TABLE_4},
}

REFERENCE = "full"  # the row that the others are tested against

# The printed AUC in percent, and millions of parameters where the paper gives them.
PAPER = {
    **paper.TABLE_2,
    **{f"mask{size}": {"auc": paper.TABLE_3[size]} for size in _SIZES},
    "mask_raw": {"auc": paper.TABLE_3[paper.IMAGE_SIZE]},
    **{f"lambda{weight}": {"auc": auc} for weight, auc in paper.TABLE_4.items()},
}


def get_config(argument: str = "full") -> ConfigDict:
    """The experiment of one row; ``argument`` is a name of ``ROWS``, with '-quick' or without."""
    name, _, size = argument.partition("-")
    if name not in ROWS or size not in ("", "quick"):
        raise ValueError(f"unknown row {argument!r}; choose from {', '.join(ROWS)} (or NAME-quick)")
    config: Any = mvo.get_config(size).unlock()
    config.update_from_flattened_dict(ROWS[name])
    if config.model.variant in ("backbone", "cgmr"):
        config.optimizer.name = "sgd"
        config.optimizer.learning_rate = paper.SGD_LEARNING_RATE
        config.optimizer.weight_decay = 5e-4
        config.optimizer.decoupled_weight_decay = False
    return config.lock()
