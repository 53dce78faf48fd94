"""Schedule by hand; optimisers against torch's."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from mvo_jax.training.optim import OptimiserSettings, learning_rate_schedule, make_optimiser


def constant_rate(name: str, **changes: Any) -> OptimiserSettings:
    """No warm-up and a decay to its own start: the rate stays 0.1."""
    settings = OptimiserSettings(
        name, learning_rate=0.1, end_learning_rate=0.1, warmup_steps=0, total_steps=10
    )
    return dataclasses.replace(settings, **changes)


def rates(schedule: Any, count: int) -> np.ndarray:
    return np.array([schedule(k) for k in range(count)], np.float64)


def test_linear_decay_by_hand():
    rate = learning_rate_schedule(
        OptimiserSettings(learning_rate=1.0, warmup_steps=0, total_steps=4)
    )
    np.testing.assert_allclose(rates(rate, 6), [1, 0.75, 0.5, 0.25, 0, 0])


def test_power_and_end_value_by_hand():
    rate = learning_rate_schedule(
        OptimiserSettings(
            learning_rate=1.1, warmup_steps=0, total_steps=4, power=2, end_learning_rate=0.1
        )
    )
    expected = [1.1, 0.1 + 0.5625, 0.1 + 0.25, 0.1 + 0.0625, 0.1]
    np.testing.assert_allclose(rates(rate, 5), expected, rtol=1e-6)


def test_warm_up_scales_the_decay():
    # Step k of 4: share 0.2 + 0.8 k / 4 of the decayed rate 1 - k / 8.
    rate = learning_rate_schedule(
        OptimiserSettings(learning_rate=1.0, warmup_steps=4, warmup_start=0.2, total_steps=8)
    )
    expected = [0.2, 0.4 * 7 / 8, 0.6 * 6 / 8, 0.8 * 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]
    np.testing.assert_allclose(rates(rate, 9), expected, rtol=1e-6)


def test_released_schedule():
    rate = learning_rate_schedule(
        OptimiserSettings(learning_rate=1e-4, warmup_steps=1500, total_steps=10_000)
    )
    # float32 near one: the share 1e-6 of step 0 is known to 6e-8.
    np.testing.assert_allclose(rate(0), 1e-10, atol=1e-11)
    np.testing.assert_allclose(rate(750), 1e-4 * (1 - 0.075) * 0.5, rtol=1e-5)
    np.testing.assert_allclose(rate(1500), 0.85e-4, rtol=1e-5)
    np.testing.assert_allclose(rate(9_999), 1e-8, rtol=1e-3)  # a small difference of float32


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            constant_rate("adamw", weight_decay=0.3),
            lambda p: torch.optim.AdamW([p], lr=0.1, betas=(0.9, 0.999), weight_decay=0.3),
        ),
        (
            constant_rate("sgd", weight_decay=0.3, decoupled_weight_decay=False),
            lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.3),
        ),
        (
            constant_rate("sgd", weight_decay=0.0, momentum=0.0),
            lambda p: torch.optim.SGD([p], lr=0.1),
        ),
    ],
    ids=["adamw", "sgd", "plain sgd"],
)
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_five_steps_against_torch(ours, theirs, clip_norm):
    draws = np.random.default_rng(0)
    start, gradients = draws.standard_normal(6), draws.standard_normal((5, 6))
    parameter = torch.tensor(start, requires_grad=True)
    reference = theirs(parameter)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_([parameter], clip_norm)
        reference.step()

    with jax.enable_x64(True):
        optimiser = make_optimiser(dataclasses.replace(ours, clip_norm=clip_norm))
        params: Any = jnp.asarray(start)
        state = optimiser.init(params)
        for gradient in gradients:
            updates, state = optimiser.update(jnp.asarray(gradient), state, params)
            params = optax.apply_updates(params, updates)
        # The schedule's rate is a float32: 1.5e-8 of every update. torch adds 1e-6 to the norm it
        # divides by, which optax does not.
        bound = 1e-5 if clip_norm else 1e-7
        np.testing.assert_allclose(params, parameter.detach().numpy(), rtol=bound, atol=bound)


def test_decoupled_decay_of_sgd_by_hand():
    # Step 1: p - 0.1 (g + 0.5 p); step 2: the momentum holds gradients alone.
    settings = constant_rate("sgd", weight_decay=0.5, momentum=0.9, decoupled_weight_decay=True)
    optimiser = make_optimiser(settings)
    params: Any = jnp.array([2.0])
    state = optimiser.init(params)
    for gradient, expected in ((1.0, 2 - 0.1 * 2), (1.0, 1.8 - 0.1 * (1.9 + 0.9))):
        updates, state = optimiser.update(jnp.array([gradient]), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, [expected], rtol=1e-6)


def test_first_adamw_step_by_hand():
    # The corrected moments of the first step are g and g^2: a step of rate * sign(g), and decay.
    optimiser = make_optimiser(constant_rate("adamw", weight_decay=0.01))
    params = jnp.array([1.0, -2.0])
    updates, _ = optimiser.update(jnp.array([3.0, -4.0]), optimiser.init(params), params)
    expected = [-0.1 * (1 + 0.01 * 1), -0.1 * (-1 + 0.01 * -2)]
    np.testing.assert_allclose(np.asarray(updates), expected, rtol=1e-5)


def test_clipping_leaves_small_gradients_alone():
    optimiser = make_optimiser(constant_rate("sgd", weight_decay=0.0, momentum=0.0, clip_norm=5.0))
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    state = optimiser.init(params)
    small: Any
    large: Any
    small, _ = optimiser.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, state, params)
    large, _ = optimiser.update({"a": jnp.array([6.0]), "b": jnp.array([8.0])}, state, params)
    for updates in (small, large):  # norm 5 is allowed, norm 10 is halved
        np.testing.assert_allclose(updates["a"], [-0.3], rtol=1e-6)
        np.testing.assert_allclose(updates["b"], [-0.4], rtol=1e-6)


def test_unknown_optimiser_is_refused():
    with pytest.raises(ValueError, match="optimiser 'adam' is unknown; choose from"):
        make_optimiser(OptimiserSettings(name="adam"))
