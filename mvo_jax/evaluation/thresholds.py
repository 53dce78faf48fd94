"""Decision thresholds: chosen on the validation split, for slices and for patients."""

import dataclasses
from typing import Any

import numpy as np

from mvo_jax.errors import UserError
from mvo_jax.evaluation.metrics import check_probabilities, has_one_class, roc_curve
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.statistics import by_patient
from mvo_jax.settings import PATIENT_RULES, THRESHOLD_RULES

_FIXED = {
    "fixed_0.5": (0.5, "fixed at 0.5, not chosen on data"),
    "released_0.44": (0.44, "0.44 as in the authors' code, not chosen on data"),
}


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Where probabilities become decisions: called MVO where probability >= value.

    ``patient_rule`` joins slices, ``max`` or ``mean``; None without patients. An origin is one
    sentence.
    """

    value: float
    origin: str
    patient_rule: str | None = None
    patient_value: float = np.nan
    patient_origin: str = ""


def given_threshold(value: float, patient_rule: str | None) -> Threshold:
    """One threshold in [0, 1] for slices and for patients, chosen by the user."""
    origin = "given on the command line"
    return Threshold(value, origin, patient_rule, value, origin)


def choose_threshold(label: Any, probability: Any, *, rule: str = "youden") -> Threshold:
    """Decision threshold, to be chosen on **validation** data and applied once to the test data.

    Rules: ``youden`` maximises recall + specificity - 1; ``sensitivity_0.8`` takes the highest
    threshold whose recall is at least 0.8; ``fixed_0.5`` and ``released_0.44`` (the value of the
    authors' code) do not look at the data. Of equally good thresholds the highest wins. A chosen
    one lies half-way between the lowest probability called positive and the next lower one: the
    same decisions here, and the widest margin for new cases. It is 0.5 if a class is missing.
    ValueError for another rule, or see ``metrics.check_probabilities``.
    """
    if rule not in THRESHOLD_RULES:
        raise ValueError(f"unknown threshold rule '{rule}'; known: {', '.join(THRESHOLD_RULES)}")
    if rule in _FIXED:
        return Threshold(*_FIXED[rule])
    label, probability = check_probabilities(label, probability)
    if has_one_class(label):
        return Threshold(0.5, "0.5: the validation split has one class only, nothing to choose on")
    false_alarm, recall, score = (part[1:] for part in roc_curve(label, probability))
    if rule == "youden":
        # The rates are rationals with small denominators: equal ones may differ by rounding.
        best = int(np.argmax(np.round(recall - false_alarm, 12)))
        origin = f"highest Youden index on the validation split ({label.size} cases)"
    else:
        best = int(np.argmax(recall >= 0.8))
        origin = f"recall of at least 0.8 on the validation split ({label.size} cases)"
    value = float(score[best])
    if best + 1 < score.size:
        middle = (value + float(score[best + 1])) / 2
        value = middle if middle > score[best + 1] else value  # neighbouring floats round down
    return Threshold(value, origin)


def choose_thresholds(config: Any, validation: Predictions) -> Threshold:
    """Choose a run's thresholds, for slices and for patients; UserError for an unknown rule."""
    aggregation, rule = config.eval.patient_aggregation, config.eval.threshold_rule
    if aggregation not in PATIENT_RULES:
        raise UserError(
            f"config.eval.patient_aggregation is {aggregation!r}, which does not exist",
            f"choose from {', '.join(PATIENT_RULES)}",
        )
    patients = by_patient(validation, aggregation)
    try:
        chosen = choose_threshold(validation.label, validation.probability, rule=rule)
        other = choose_threshold(patients.label, patients.probability, rule=rule)
    except ValueError as error:
        raise UserError(f"config.eval.threshold_rule: {error}", "set one of those") from error
    slices = len(validation) / len(patients)
    return dataclasses.replace(
        chosen,
        patient_rule=aggregation,
        patient_value=other.value,
        patient_origin=f"{other.origin}, by patient ({aggregation} of {slices:.3g} slices each)",
    )
