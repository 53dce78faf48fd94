"""How well a predicted coarse map finds the blocks that hold MVO."""

import math
from typing import Any

import numpy as np

from mvo_jax.evaluation.metrics import average_precision, has_one_class, roc_auc

_NAMES = (
    "mse",
    "zero_map_mse",
    "block_auc",
    "block_average_precision",
    "block_prevalence",
    "pointing_hit_rate",
)


def coarse_map_metrics(
    predicted: Any, target: Any, label: Any, *, split: str = "unnamed"
) -> dict[str, dict[str, float | int]]:
    """How well the predicted coarse map finds the MVO blocks, over all and over positive cases.

    A block is positive where its target share is above 0. ``pointing_hit_rate`` is the share of
    cases with a positive block whose highest predicted block is one; several equally high blocks
    share the credit. ``zero_map_mse`` is the error of an all-zero map: most blocks are empty, so
    a small ``mse`` alone says nothing.

    Args:
        predicted: [N, m, m] finite.
        target: [N, m, m] in [0, 1].
        label: [N] of 0 and 1, the case labels.
        split: name used in warnings.

    Returns:
        {"all": ..., "positive": ...}, each with cases, mse, zero_map_mse, block_auc,
        block_average_precision, block_prevalence, pointing_hit_rate. "positive" is over the
        cases with label 1; nan where there are none.

    Raises:
        ValueError: shapes differ, empty, values not finite, target outside [0, 1].
    """
    predicted = np.asarray(predicted, dtype=np.float64)
    target = np.asarray(target, dtype=np.float64)
    label = np.asarray(label)
    if predicted.ndim != 3 or predicted.shape != target.shape or len(label) != len(target):
        raise ValueError(
            f"predicted {predicted.shape}, target {target.shape} and label {label.shape} "
            "do not fit together; expected [N, m, m], [N, m, m] and [N]"
        )
    if predicted.size == 0:
        raise ValueError("predicted and target are empty")
    if not (np.isfinite(predicted).all() and np.isfinite(target).all()):
        raise ValueError("predicted or target is not finite")
    if target.min() < 0 or target.max() > 1:
        raise ValueError("target holds values outside [0, 1]")
    # One row a case, one column a block.
    predicted = predicted.reshape(len(predicted), -1)
    target = target.reshape(len(target), -1)
    positive = label == 1
    return {
        "all": _map_metrics(predicted, target, split),
        "positive": _map_metrics(predicted[positive], target[positive], split),
    }


def _map_metrics(predicted: np.ndarray, target: np.ndarray, split: str) -> dict[str, float | int]:
    if len(target) == 0:
        return {"cases": 0, **dict.fromkeys(_NAMES, math.nan)}
    occupied = target > 0
    truth, score = occupied.ravel().astype(np.int64), predicted.ravel()
    one_class = has_one_class(truth, f"{split}, blocks of the coarse map")
    pointed = predicted == predicted.max(axis=1, keepdims=True)
    credit = (pointed & occupied).sum(axis=1) / pointed.sum(axis=1)
    with_mvo = occupied.any(axis=1)
    values = (
        float(np.mean((predicted - target) ** 2)),
        float(np.mean(target**2)),
        math.nan if one_class else roc_auc(truth, score),
        math.nan if one_class else average_precision(truth, score),
        float(occupied.mean()),
        float(credit[with_mvo].mean()) if with_mvo.any() else math.nan,
    )
    return {"cases": len(target), **dict(zip(_NAMES, values, strict=True))}
