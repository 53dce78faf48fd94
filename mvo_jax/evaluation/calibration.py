"""Temperature scaling (Guo et al., ICML 2017): logits over a number fitted on validation cases.

The order of the cases, and with it AUC and decisions at a scaled threshold, stays the same.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from mvo_jax.evaluation import metrics
from mvo_jax.evaluation.predictions import Predictions

_LEAST, _MOST = 0.05, 20.0  # beyond these the validation cases say nothing about a temperature


@dataclasses.dataclass(frozen=True)
class Temperature:
    """What logits are divided by.

    ``value`` is above 1 where the network is too sure, None where it cannot be fitted; ``origin``
    is one sentence on where it comes from, or why there is none.
    """

    value: float | None
    origin: str

    def scale(self, probability: Any) -> np.ndarray:
        """Scaled probabilities, float64, of the same shape; unchanged where there is no value."""
        given = np.asarray(probability, np.float64)
        if self.value is None:
            return given
        return 1.0 / (1.0 + np.exp(-metrics.logit(given) / self.value))


def fit_temperature(validation: Predictions) -> Temperature:
    """The temperature of least log loss on cases that the network has not learned from.

    Without a value where a class is missing or the least loss lies beyond 0.05 to 20: classes that
    are told apart completely, or no better than by chance.
    """
    from scipy.optimize import brentq  # 0.3 s

    about = f"the {validation.split} split ({len(validation)} cases)"
    label = validation.label
    if metrics.has_one_class(label):
        return Temperature(None, f"not fitted: {about} has one class")
    logit = metrics.logit(validation.probability)

    def slope(inverse: float) -> float:
        """Of the log loss over the inverse of the temperature, in which it is convex."""
        return float(np.mean((1.0 / (1.0 + np.exp(-logit * inverse)) - label) * logit))

    if slope(1 / _MOST) >= 0 or slope(1 / _LEAST) <= 0:
        return Temperature(
            None, f"not fitted: on {about} no temperature of {_LEAST} to {_MOST:g} is best"
        )
    root: Any = brentq(slope, 1 / _MOST, 1 / _LEAST, xtol=1e-12)
    return Temperature(1.0 / float(root), f"fitted on {about} by least log loss")


def log_loss(label: Any, probability: Any) -> float:
    """Mean of -log of the probability of what is true, in nats; see ``check_probabilities``."""
    label, probability = metrics.check_probabilities(label, probability)
    inside = np.clip(probability, metrics.MARGIN, 1 - metrics.MARGIN)
    return float(-np.mean(np.where(label == 1, np.log(inside), np.log1p(-inside))))


def describe_calibration(predictions: Predictions) -> dict[str, float | int]:
    """Calibration error, its bins, slope, intercept, Brier score and log loss of one split."""
    label, probability = predictions.label, predictions.probability
    slope, intercept = metrics.calibration_slope_intercept(label, probability)
    return {
        "expected_calibration_error": metrics.expected_calibration_error(label, probability),
        "bins": metrics.CALIBRATION_BINS,
        "slope": slope,
        "intercept": intercept,
        "brier": metrics.brier_score(label, probability),
        "log_loss": log_loss(label, probability),
    }


def scaled(predictions: Predictions, temperature: Temperature) -> Predictions:
    """The same cases with scaled probabilities."""
    probability = temperature.scale(predictions.probability)
    return dataclasses.replace(predictions, probability=probability)


def scaled_threshold(value: float, temperature: Temperature) -> float:
    """Where a threshold lies on the scaled probabilities, so that decisions stay as they are."""
    moved = float(temperature.scale(value))
    return value if math.isnan(value) else moved
