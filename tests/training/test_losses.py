"""Losses by hand, in both forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvo_jax.training.losses import classification_loss, coarse_mask_loss, mvo_probability

ONE = jnp.array([[0.0], [0.0], [math.log(3)], [-2.0]])
LABEL = jnp.array([0, 1, 1, 0])


def test_probability_of_one_and_of_two_outputs():
    # log 3 is a probability of 3/4; two logits a, b are the one logit b - a.
    np.testing.assert_allclose(mvo_probability(ONE)[:3], [0.5, 0.5, 0.75], rtol=1e-6)
    two = jnp.array([[1.0, 1.0 + math.log(3)], [5.0, 5.0], [math.log(4), 0.0]])
    np.testing.assert_allclose(mvo_probability(two), [0.75, 0.5, 0.2], rtol=1e-6)


def test_cross_entropy_of_one_output():
    loss = classification_loss(ONE, LABEL)
    expected = [math.log(2), math.log(2), math.log(4 / 3), math.log1p(math.exp(-2))]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_cross_entropy_of_two_outputs():
    logits = jnp.array([[0.0, math.log(3)], [0.0, math.log(3)], [7.0, 7.0]])
    loss = classification_loss(logits, jnp.array([0, 1, 1]))
    np.testing.assert_allclose(loss, [math.log(4), math.log(4 / 3), math.log(2)], rtol=1e-6)


def test_released_form_is_half_with_its_epsilon():
    loss = classification_loss(ONE, LABEL, form="released")
    expected = [
        -0.5 * math.log(0.5 + 1e-7),
        -0.5 * math.log(0.5 + 1e-7),
        -0.5 * math.log(0.75 + 1e-7),
        -0.5 * math.log(1 / (1 + math.exp(-2)) + 1e-7),
    ]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("form", ["cross_entropy", "released"])
@pytest.mark.parametrize("label", [0, 1])
def test_extreme_logits_stay_finite(form, label):
    def value(logit):
        return classification_loss(logit.reshape(1, 1), jnp.array([label]), form=form)[0]

    for logit in (-1e4, -100.0, 100.0, 1e4):
        loss, gradient = jax.value_and_grad(value)(jnp.array(logit))
        assert np.isfinite(loss)
        assert np.isfinite(gradient)
    if form == "released":
        # Saturated and wrong: half of -log(1e-7), where the cross-entropy grows with the logit.
        wrong = value(jnp.array(-100.0 if label else 100.0))
        np.testing.assert_allclose(wrong, -0.5 * math.log(1e-7), rtol=1e-3)


@pytest.mark.parametrize("form", ["cross_entropy", "released"])
def test_positive_weight_multiplies_positive_cases_only(form):
    plain = classification_loss(ONE, LABEL, form=form)
    weighted = classification_loss(ONE, LABEL, form=form, positive_weight=2.5)
    np.testing.assert_allclose(np.asarray(weighted / plain), [1, 2.5, 2.5, 1], rtol=1e-6)


def test_coarse_mask_loss_by_hand():
    predicted = jnp.array([[[0.0, 1.0], [0.5, -1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    target = jnp.array([[[0.0, 0.5], [0.5, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    np.testing.assert_allclose(coarse_mask_loss(predicted, target), [(0.25 + 4) / 4, 0])


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(ValueError, match="defined for one output"):
        classification_loss(jnp.zeros((2, 2)), jnp.array([0, 1]), form="released")
    with pytest.raises(ValueError, match="loss form 'focal' is unknown"):
        classification_loss(ONE, LABEL, form="focal")
