"""The decision thresholds of a run, chosen on its validation split."""

import dataclasses
import warnings
from typing import Any

from mvo_jax.errors import UserError
from mvo_jax.evaluation.metrics import OneClassWarning, choose_threshold
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.statistics import PATIENT_RULES, by_patient


@dataclasses.dataclass(frozen=True)
class PatientLevel:
    """How slices become patients: a rule of ``statistics.by_patient`` and a threshold.

    Args:
        rule: ``max`` or ``mean``.
        threshold: decision threshold for patients, chosen elsewhere (on validation patients).
        threshold_origin: one sentence on how it was chosen.
    """

    rule: str
    threshold: float
    threshold_origin: str


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """What was chosen on the validation split: for slices, and for patients."""

    value: float
    origin: str
    patients: PatientLevel


def choose_thresholds(config: Any, validation: Predictions) -> Thresholds:
    """Choose the decision thresholds of a run.

    Args:
        config: of the run.
        validation: predictions of the validation split.

    Raises:
        UserError: ``config.eval`` names a rule that does not exist.
    """
    aggregation = config.eval.patient_aggregation
    if aggregation not in PATIENT_RULES:
        raise UserError(
            f"config.eval.patient_aggregation is {aggregation!r}, which does not exist",
            f"choose from {', '.join(PATIENT_RULES)}",
        )
    rule = config.eval.threshold_rule
    patients = by_patient(validation, aggregation)
    with warnings.catch_warnings():
        # Said once, by the summary of the evaluated split.
        warnings.simplefilter("ignore", OneClassWarning)
        try:
            one = choose_threshold(validation.label, validation.probability, rule=rule)
            other = choose_threshold(patients.label, patients.probability, rule=rule)
        except ValueError as error:
            raise UserError(f"config.eval.threshold_rule: {error}", "set one of those") from error
    slices = len(validation) / len(patients)
    patient_level = PatientLevel(
        rule=aggregation,
        threshold=other.value,
        threshold_origin=f"{other.origin}, by patient ({aggregation} of {slices:.3g} slices each)",
    )
    return Thresholds(one.value, one.origin, patient_level)
