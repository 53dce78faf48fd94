"""What a network's probabilities hold beyond a feature that can be had without the network.

Their rank correlation says how far the network has learned just that feature; the AUC of both
together, less that of the feature alone, says what it adds.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from mvo_jax.evaluation.oracle import logistic_model

FOLDS = 10
_CERTAIN = 1e-6  # probabilities nearer to 0 or 1 have no finite logit in float32


def rank_correlation(probability: Sequence[np.ndarray], feature: np.ndarray) -> float:
    """Mean of Spearman's correlations of seeds [N] with a feature [N]; nan if one is constant."""
    from scipy.stats import spearmanr  # 0.5 s

    if any(np.ptp(one) == 0 for one in (*probability, feature)):
        return math.nan
    return float(np.mean([cast(Any, spearmanr(one, feature)).statistic for one in probability]))


def joined(label: np.ndarray, *probability: np.ndarray) -> np.ndarray:
    """Probabilities of a logistic model of one or several probabilities [N], each case out of fold.

    Ten folds, the same at each call. The folds' models differ a little, which costs some AUC: what
    a network adds is the difference to the feature alone, which is to go through this too.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    clipped = np.clip(np.stack(probability, axis=1).astype(np.float64), _CERTAIN, 1 - _CERTAIN)
    logits = np.log(clipped / (1 - clipped))
    spread = np.maximum(logits.std(axis=0), 1e-12)
    table = (logits - logits.mean(axis=0)) / spread
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    # Threads that wait for each other on busy cores made twenty times the time of it.
    with threadpool_limits(1):
        found = cross_val_predict(logistic_model(), table, label, cv=folds, method="predict_proba")
    return np.asarray(found)[:, 1]
