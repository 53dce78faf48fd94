"""Temperature scaling: fitted by least log loss, and nothing but the scale changes."""

import numpy as np
import pytest

from mvo_jax.evaluation import calibration
from mvo_jax.evaluation.calibration import Temperature, fit_temperature
from mvo_jax.evaluation.metrics import calibration_slope_intercept, roc_auc
from mvo_jax.evaluation.predictions import Predictions


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def predictions(factor, cases=4000, seed=0):
    """Cases whose logits are honest, multiplied by a factor."""
    draws = np.random.default_rng(seed)
    logit = draws.normal(-0.3, 1.2, cases)
    label = (draws.random(cases) < sigmoid(logit)).astype(int)
    names = tuple(map(str, range(cases)))
    return Predictions("validation", names, names, label, sigmoid(factor * logit))


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_it_undoes_a_factor_on_the_logits(factor):
    found = fit_temperature(predictions(factor))
    assert found.value == pytest.approx(factor, rel=0.08)  # 4,000 cases
    assert "validation split (4000 cases)" in found.origin
    again = fit_temperature(calibration.scaled(predictions(factor), found))
    assert again.value == pytest.approx(1.0, abs=1e-6)  # nothing is left to scale


def test_no_other_temperature_has_less_log_loss():
    data = predictions(2.0, cases=300)
    least = calibration.log_loss(data.label, fit_temperature(data).scale(data.probability))
    for value in np.geomspace(0.1, 10, 41):
        other = Temperature(float(value), "").scale(data.probability)
        assert calibration.log_loss(data.label, other) >= least - 1e-12


def test_order_and_decisions_stay():
    data, temperature = predictions(3.0, cases=500), Temperature(2.7, "")
    after = calibration.scaled(data, temperature)
    assert roc_auc(data.label, after.probability) == roc_auc(data.label, data.probability)
    threshold = float(np.sort(data.probability)[200:202].mean())
    moved = calibration.scaled_threshold(threshold, temperature)
    assert ((after.probability >= moved) == (data.probability >= threshold)).all()
    slope, _ = calibration_slope_intercept(data.label, data.probability)
    assert calibration.describe_calibration(after)["slope"] == pytest.approx(slope * 2.7)


@pytest.mark.parametrize(
    ("label", "probability", "why"),
    [
        ([1, 1, 1, 1], [0.2, 0.4, 0.6, 0.8], "one class"),
        ([0, 0, 1, 1], [0.2, 0.4, 0.6, 0.8], "no temperature"),  # told apart completely
        ([1, 1, 0, 0], [0.2, 0.4, 0.6, 0.8], "no temperature"),  # the wrong way round
    ],
)
def test_where_there_is_none_it_says_why_and_scales_nothing(label, probability, why):
    names = tuple("abcd")
    found = fit_temperature(Predictions("validation", names, names, label, probability))
    assert found.value is None
    assert why in found.origin
    np.testing.assert_array_equal(found.scale(probability), probability)


def test_certain_probabilities_stay_finite():
    found = Temperature(2.0, "").scale([0.0, 1.0])
    assert 0 < found[0] < 0.001
    assert 0.999 < found[1] < 1
