"""Net benefit, worked by hand and at its limits."""

import numpy as np
import pytest

from mvo_jax.evaluation.decision_curve import THRESHOLDS, decision_curve, net_benefit
from mvo_jax.evaluation.predictions import Predictions

LABEL = np.array([1, 1, 0, 0, 0])
PROBABILITY = np.array([0.9, 0.3, 0.6, 0.2, 0.1])


def at(values, threshold):
    return values[list(THRESHOLDS).index(threshold)]


def test_by_hand_and_at_its_limits():
    found = net_benefit(LABEL, PROBABILITY)
    assert at(found, 0.5) == pytest.approx(1 / 5 - 1 / 5 * 0.5 / 0.5)
    assert at(found, 0.2) == pytest.approx(2 / 5 - 2 / 5 * 0.2 / 0.8)
    assert at(found, 0.8) == pytest.approx(1 / 5)
    assert at(found, 0.95) == 0  # nobody is treated
    assert net_benefit(LABEL, LABEL.astype(float)) == pytest.approx(2 / 5)  # a perfect model
    treat_all = net_benefit(LABEL, np.ones(5))
    assert at(treat_all, 0.4) == pytest.approx(0, abs=1e-12)  # at the prevalence


def test_the_curve_holds_its_band_and_the_scaled_model():
    draws = np.random.default_rng(0)
    label = (draws.random(200) < 0.4).astype(int)
    names = tuple(map(str, range(200)))
    probability = 1 / (1 + np.exp(-draws.normal(label - 0.5)))
    data = Predictions("test", names, names, label, probability)
    found = decision_curve(data, data)
    assert found["calibrated"] == found["model"]
    low, middle, high = (np.array(found[key]) for key in ("model_low", "model", "model_high"))
    assert (low <= middle + 1e-12).all()
    assert (middle <= high + 1e-12).all()
    assert (high - low).max() > 0.05
    assert decision_curve(data, None)["calibrated"] is None
