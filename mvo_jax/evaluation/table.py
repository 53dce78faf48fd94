"""The table of metrics: what is computed of a split, with which interval, and how it is shown.

``metrics.json``, the report and the comparison read it. Another metric is one function and one
line, here or in a program of one's own::

    METRICS["mcc"] = Metric("Matthews correlation", "my_module:matthews_correlation")
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from mvo_jax.evaluation.metrics import (
    Confusion,
    average_precision,
    brier_score,
    confusion,
    roc_auc,
)
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.statistics import (
    Estimate,
    Resamples,
    bootstrap_intervals,
    delong_interval,
    wilson_interval,
)


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Attributes:
        function: of label [N], probability [N] and threshold, nan where not defined; or where it
            is, 'package.module:name'.
        interval: of predictions and threshold; None draws patients (bootstrap).
        resampled: ``function`` of many bootstrap samples at once; None calls it for each of them,
            which takes about a second for each millisecond of it.
        format: ``percent`` shows 0.5 as 50, ``number`` as 0.500.
        pages: where it has a place in a table of metrics.
        short: title where there is little room; the title if empty.
    """

    title: str
    function: Callable[[np.ndarray, np.ndarray, float], float] | str
    interval: Callable[[Predictions, float], Estimate] | None = None
    resampled: Callable[[Resamples], np.ndarray] | None = None
    format: Literal["percent", "number"] = "percent"
    pages: tuple[str, ...] = ("report", "comparison")
    short: str = ""

    def __call__(self, label: np.ndarray, probability: np.ndarray, threshold: float) -> float:
        """The point estimate; nan where it is not defined."""
        function: Any = self.function
        if isinstance(function, str):
            function = pkgutil.resolve_name(function)
        return float(function(label, probability, threshold))


def _delong(predictions: Predictions, threshold: float) -> Estimate:
    return delong_interval(predictions.label, predictions.probability)


def _wilson(
    share: Callable[[Confusion], tuple[int, int]],
) -> Callable[[Predictions, float], Estimate]:
    """Interval of a proportion, (part, whole) of the counts."""
    return lambda predictions, threshold: wilson_interval(
        *share(confusion(predictions.label, predictions.probability, threshold))
    )


def _at(name: str) -> Callable[[np.ndarray, np.ndarray, float], float]:
    """A ratio of the counts at the threshold."""
    return lambda label, probability, threshold: getattr(
        confusion(label, probability, threshold), name
    )


def _auc(label: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    return roc_auc(label, probability)


METRICS: dict[str, Metric] = {
    "auc": Metric("AUC", _auc, _delong),
    "specificity": Metric(
        "Specificity", _at("specificity"), _wilson(lambda c: (c.true_negative, c.negative))
    ),
    "recall": Metric(
        "Recall (sensitivity)",
        _at("recall"),
        _wilson(lambda c: (c.true_positive, c.positive)),
        short="Recall",
    ),
    "f1": Metric("F1 score", _at("f1"), resampled=Resamples.f1, short="F1"),
    "precision": Metric(
        "Precision (PPV)",
        _at("precision"),
        _wilson(lambda c: (c.true_positive, c.true_positive + c.false_positive)),
        pages=("report",),
    ),
    "negative_predictive_value": Metric(
        "Negative predictive value",
        _at("negative_predictive_value"),
        _wilson(lambda c: (c.true_negative, c.true_negative + c.false_negative)),
        pages=("report",),
    ),
    "balanced_accuracy": Metric(
        "Balanced accuracy",
        _at("balanced_accuracy"),
        resampled=Resamples.balanced_accuracy,
        pages=("report",),
    ),
    "average_precision": Metric(
        "Average precision",
        lambda label, probability, threshold: average_precision(label, probability),
        resampled=Resamples.average_precision,
        pages=("report",),
    ),
    # The report says these in sentences.
    "auc_bootstrap": Metric("AUC, patients drawn", _auc, resampled=Resamples.auc, pages=()),
    "accuracy": Metric(
        "Accuracy",
        _at("accuracy"),
        _wilson(lambda c: (c.true_positive + c.true_negative, c.positive + c.negative)),
        pages=(),
    ),
    "brier": Metric(
        "Brier score",
        lambda label, probability, threshold: brier_score(label, probability),
        resampled=Resamples.brier,
        format="number",
        pages=(),
    ),
}


def estimates(
    predictions: Predictions, threshold: float, *, replicates: int
) -> dict[str, Estimate]:
    """Every metric of the table with its interval, decisions at a threshold."""
    resampled = {
        name: (
            metric(predictions.label, predictions.probability, threshold),
            metric.resampled or partial(Resamples.one_by_one, function=metric),
        )
        for name, metric in METRICS.items()
        if metric.interval is None
    }
    drawn = bootstrap_intervals(predictions, resampled, threshold=threshold, replicates=replicates)
    return {
        name: metric.interval(predictions, threshold) if metric.interval else drawn[name]
        for name, metric in METRICS.items()
    }
