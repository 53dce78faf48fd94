"""The torch side itself: losses, schedule and optimisers against ours."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from mvo_jax.interop.torch_models import training as torch_training
from mvo_jax.training import losses, optim


@pytest.mark.parametrize(
    ("form", "outputs"), [("cross_entropy", 1), ("cross_entropy", 2), ("released", 1)]
)
def test_losses(form: str, outputs: int) -> None:
    rng = np.random.default_rng(0)
    logits, label = 3 * rng.standard_normal((6, outputs)), np.array([0, 1, 1, 0, 1, 0])
    theirs = torch_training.classification_loss(
        torch.from_numpy(logits), torch.from_numpy(label), form=form, positive_weight=2.0
    )
    with jax.enable_x64(True):
        settings = losses.LossSettings(form=form, positive_weight=2.0)
        ours = losses.classification_loss(jnp.asarray(logits), jnp.asarray(label), settings)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-14)


@pytest.mark.parametrize("power", [1.0, 0.9])
@pytest.mark.parametrize("warmup_steps", [0, 15])
def test_learning_rate(power: float, warmup_steps: int) -> None:
    with jax.enable_x64(True):
        schedule = optim.learning_rate_schedule(
            optim.OptimiserSettings(
                learning_rate=1e-2,
                total_steps=80,
                warmup_steps=warmup_steps,
                power=power,
                end_learning_rate=1e-5,
            )
        )
        ours = [float(np.asarray(schedule(step))) for step in range(100)]
    theirs = [
        torch_training.learning_rate(
            step, peak=1e-2, total_steps=80, warmup_steps=warmup_steps, power=power, end=1e-5
        )
        for step in range(100)
    ]
    np.testing.assert_allclose(ours, theirs, rtol=1e-13)


@pytest.mark.parametrize(
    ("name", "peak", "weight_decay"), [("adamw", 1e-2, 0.1), ("sgd", 1e-1, 5e-2)]
)
def test_optimisers_follow_the_same_path(name: str, peak: float, weight_decay: float) -> None:
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal((4, 3)), rng.standard_normal((50, 4, 3))
    settings = optim.OptimiserSettings(
        name=name,
        learning_rate=peak,
        total_steps=60,
        warmup_steps=10,
        weight_decay=weight_decay,
        decoupled_weight_decay=name == "adamw",
    )
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimiser = torch_training.make_optimiser([parameter], name, weight_decay=weight_decay)
    with jax.enable_x64(True):
        transform = optim.make_optimiser(settings)
        # Both sides take the same rate; that the rates agree is tested above. (From an int32
        # counter optax computes it in float32.)
        schedule = optim.learning_rate_schedule(settings)
        params: Any = jnp.asarray(start)
        state = transform.init(params)
        for step, gradient in enumerate(gradients):
            updates, state = transform.update(jnp.asarray(gradient), state, params)
            params = optax.apply_updates(params, updates)
            torch_training.set_learning_rate(
                optimiser, float(np.asarray(schedule(jnp.int32(step))))
            )
            parameter.grad = torch.from_numpy(gradient)
            optimiser.step()
    # 50 steps, each rounding parameters of order 1 at 1e-16.
    np.testing.assert_allclose(params, parameter.detach().numpy(), rtol=0, atol=1e-13)
