"""Decision curve: what acting on the probabilities is worth.

Acting at a probability of t says that one case with MVO found is worth (1 - t) / t cases treated
for nothing. Net benefit, a case, is compared with treating all and nobody, 0 (Vickers and Elkin,
2006, Med Decis Making 26:565).
"""

from typing import Any

import numpy as np

from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.statistics import TAILS, bootstrap_weights

THRESHOLDS = np.round(np.arange(0.01, 1.0, 0.01), 2)
_REPLICATES = 500  # for a band that is drawn


def net_benefit(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Net benefit at each of ``THRESHOLDS``, called MVO where probability >= threshold."""
    return _benefit(np.ones((1, len(label))), label, probability)[0]


def _benefit(weights: np.ndarray, label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Of many samples, given as weights of the cases, [rows, thresholds]."""
    called = (probability[:, None] >= THRESHOLDS).astype(np.float64)
    found = weights @ (called * label[:, None])
    alarms = weights @ (called * (1 - label)[:, None])
    odds = THRESHOLDS / (1 - THRESHOLDS)
    return (found - alarms * odds) / weights.sum(axis=1, keepdims=True)


def decision_curve(predictions: Predictions, scaled: Predictions | None) -> dict[str, Any]:
    """Net benefit of the model and of treating all, over thresholds, as plain lists.

    Returns:
        'threshold', 'model' with 'model_low' and 'model_high' (a pointwise 95 % band, over
        patients), 'treat_all', and 'calibrated', of the ``scaled`` probabilities, None without
        these.
    """
    label, probability = predictions.label, predictions.probability
    drawn = [
        _benefit(weights, label, probability)
        for weights in bootstrap_weights(label, predictions.patient_id, replicates=_REPLICATES)
    ]
    low, high = np.quantile(np.concatenate(drawn), TAILS, axis=0)
    return {
        "threshold": THRESHOLDS.tolist(),
        "model": net_benefit(label, probability).tolist(),
        "model_low": low.tolist(),
        "model_high": high.tolist(),
        "treat_all": net_benefit(label, np.ones(len(label))).tolist(),
        "calibrated": None if scaled is None else net_benefit(label, scaled.probability).tolist(),
    }
