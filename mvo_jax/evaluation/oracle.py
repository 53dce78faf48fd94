"""What can be had without a network: logistic models of what the simulator knows of each case.

They know the truth about the heart without measurement error, and nothing of the label mask: a
ceiling for what the images can tell, and single features as the bar to pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mvo_jax.data.splits import Cases
from mvo_jax.errors import UserError
from mvo_jax.evaluation.predictions import Predictions


def logistic_model() -> Any:
    """A model of a few variables that is not fitted yet; nearly without a penalty."""
    from sklearn.linear_model import LogisticRegression  # 1 s

    return LogisticRegression(C=1e3, max_iter=1000)


def fit_logistic(table: np.ndarray, label: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fit ``logistic_model`` to variables [N, V] brought to mean 0 and deviation 1, and labels [N].

    Returns:
        Probabilities [M] of a table [M, V].
    """
    centre, scale = table.mean(axis=0), np.maximum(table.std(axis=0), 1e-12)
    model = logistic_model().fit((table - centre) / scale, label)
    return lambda other: model.predict_proba((other - centre) / scale)[:, 1]


def oracle_predictions(
    features: Sequence[str], training: Cases, splits: Sequence[Cases]
) -> list[Predictions]:
    """Predictions of a logistic model of some features, fitted on the training split.

    'territory', which is a number without an order, counts as one variable a value. UserError where
    the cohort does not know a feature.
    """
    missing = [name for name in features if name not in training.features]
    if missing:
        raise UserError(
            f"the cohort does not know the {', '.join(missing)} of its cases",
            "rows of true features need a simulated cohort; leave them out",
        )

    def table(split: Cases) -> np.ndarray:
        columns = []
        for name in features:
            values = split.features[name].astype(np.float64)
            if name == "territory":
                columns += [(values == other).astype(np.float64) for other in (1, 2)]
            else:
                columns.append(values)
        return np.stack(columns, axis=1)

    predict = fit_logistic(table(training), training.label)
    return [
        Predictions(
            split.name,
            split.case_id,
            split.patient_id,
            split.label,
            predict(table(split)),
        )
        for split in splits
    ]
