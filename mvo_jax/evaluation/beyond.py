"""What a network's probabilities hold beyond a feature that can be had without the network.

A network may score as well as the area change of the cavity because it has learned just that. Its
rank correlation with the feature says how far it has; the AUC of both together, less that of the
feature alone, says what it adds.
"""

from collections.abc import Sequence

import numpy as np

_FOLDS = 10
_CERTAIN = 1e-6  # probabilities nearer to 0 or 1 have no finite logit in float32


def rank_correlation(probability: Sequence[np.ndarray], feature: np.ndarray) -> float:
    """Spearman's correlation of a network with a feature, averaged over its seeds.

    Args:
        probability: [N], one a seed.
        feature: [N], of the same cases; any increasing function of it gives the same.
    """
    from scipy.stats import spearmanr  # 0.5 s

    return float(np.mean([spearmanr(one, feature).statistic for one in probability]))


def joined(label: np.ndarray, probability: np.ndarray, feature: np.ndarray) -> np.ndarray:
    """Probabilities of a logistic model of a network and a feature, each case out of fold.

    Ten folds, the same at each call. Fitting costs the model a little, and a network that adds
    nothing comes out slightly below the feature alone.

    Args:
        label: int [N].
        probability: [N], of the network.
        feature: [N], the probability that the feature alone gives.

    Returns:
        float64 [N].
    """
    from sklearn.linear_model import LogisticRegression  # 1 s
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    clipped = np.clip(np.stack([probability, feature], axis=1), _CERTAIN, 1 - _CERTAIN)
    logits = np.log(clipped / (1 - clipped))
    spread = np.maximum(logits.std(axis=0), 1e-12)
    table = (logits - logits.mean(axis=0)) / spread
    # Nearly without a penalty, as in ``oracle``: two variables and hundreds of cases.
    model = LogisticRegression(C=1e3, max_iter=1000)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    return cross_val_predict(model, table, label, cv=folds, method="predict_proba")[:, 1]
