"""Results by subgroup: every group of every attribute with its count and intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mvo_jax.evaluation.metrics import confusion, roc_auc
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.statistics import (
    Resamples,
    bootstrap_intervals,
    delong_interval,
    wilson_interval,
)

SMALL = 10  # with fewer cases of a class than this a group is marked
UNKNOWN = "not known"
_REPLICATES = 500


def groups_of(values: Sequence[float] | Sequence[str]) -> list[str]:
    """The group of every case: a text is its own, numbers are put into thirds.

    An empty text or nan says that it is not known.
    """
    if isinstance(values[0], str):
        return [str(value) or UNKNOWN for value in values]
    numbers = np.asarray(values, np.float64)
    known = numbers[np.isfinite(numbers)]
    if not known.size:
        return [UNKNOWN] * len(numbers)
    low, high = np.quantile(known, (1 / 3, 2 / 3))
    names = (f"up to {low:.3g}", f"{low:.3g} to {high:.3g}", f"above {high:.3g}")
    return [
        names[int(value > low) + int(value > high)] if np.isfinite(value) else UNKNOWN
        for value in numbers
    ]


def subgroups(
    predictions: Predictions,
    attributes: Mapping[str, Sequence[float] | Sequence[str]],
    threshold: float,
) -> list[dict[str, Any]]:
    """Results of every group, as plain types but for nan.

    Nothing is tested: groups were not chosen before the data were seen, and small ones differ by
    chance. None is left out but an attribute with a single group; what has fewer than ``SMALL``
    cases of a class is marked. The interval of the AUC is DeLong's, or a bootstrap over patients
    where these have several slices.

    Args:
        attributes: values by title, in the order of the split.
        threshold: for the decisions, that of the whole split.
    """
    rows = []
    for attribute, values in attributes.items():
        groups = np.array(groups_of(values))
        names = list(dict.fromkeys(groups))
        if isinstance(values[0], str):
            names.sort(key=lambda name: (name == UNKNOWN, name))
        else:
            names.sort(key=lambda name: _least(values, groups, name))
        if len(names) > 1:
            for name in names:
                part = predictions.part(groups == name)
                row = {"attribute": attribute, "group": str(name)}
                rows.append({**row, **_results(part, threshold)})
    return rows


def _least(values: Sequence[Any], groups: np.ndarray, name: str) -> float:
    """Sorts groups of numbers by what they hold; those that are not known come last."""
    least = float(np.min(np.asarray(values, np.float64)[groups == name]))
    return least if np.isfinite(least) else float("inf")


def _results(part: Predictions, threshold: float) -> dict[str, Any]:
    counts = confusion(part.label, part.probability, threshold)
    patients = len(set(part.patient_id))
    if patients == len(part):
        auc = delong_interval(part.label, part.probability)
    else:
        drawn = {"auc": (roc_auc(part.label, part.probability), Resamples.auc)}
        auc = bootstrap_intervals(part, drawn, threshold=threshold, replicates=_REPLICATES)["auc"]
    return {
        "cases": len(part),
        "patients": patients,
        "positive": counts.positive,
        "auc": asdict(auc),
        "recall": asdict(wilson_interval(counts.true_positive, counts.positive)),
        "specificity": asdict(wilson_interval(counts.true_negative, counts.negative)),
        "small": min(counts.positive, counts.negative) < SMALL,
    }
