"""Optimisers and the polynomial schedule (paper section 3.2; details from the released code)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from mvo_jax.settings import OPTIMISERS, OptimizerSettings


@dataclasses.dataclass(frozen=True)
class OptimiserSettings(OptimizerSettings):
    """The part ``optimizer`` of a config, and what else the schedule depends on.

    Attributes:
        total_steps: length of the schedule, ``config.train.total_steps``.
    """

    total_steps: int = 1000


def learning_rate_schedule(settings: OptimiserSettings) -> optax.Schedule:
    """Polynomial decay, scaled by a linear warm-up while it lasts (mmcv's PolyLrUpdater).

    Returns:
        A function of the step, from 0: ``(end + (peak - end) (1 - k/total)^power) *
        (start + (1 - start) min(k / warmup, 1))``.
    """
    decay = optax.polynomial_schedule(
        settings.learning_rate,
        settings.end_learning_rate,
        settings.power,
        settings.total_steps,
    )
    warmup = optax.constant_schedule(1.0)
    if settings.warmup_steps:
        warmup = optax.linear_schedule(settings.warmup_start, 1.0, settings.warmup_steps)

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        # As a float of the precision in force: from an integer optax computes in float32 always.
        step = jnp.asarray(step, jnp.result_type(float))
        return jnp.asarray(decay(step) * warmup(step))

    return rate


def make_optimiser(settings: OptimiserSettings) -> optax.GradientTransformation:
    """The optimiser with its schedule.

    Raises:
        ValueError: an unknown name.
    """
    rate = learning_rate_schedule(settings)
    parts = []
    if settings.clip_norm:
        parts.append(optax.clip_by_global_norm(settings.clip_norm))
    if settings.name == "adamw":
        parts.append(optax.adamw(rate, b1=0.9, b2=0.999, weight_decay=settings.weight_decay))
    elif settings.name == "sgd":
        decay = optax.add_decayed_weights(settings.weight_decay)
        trace = optax.trace(settings.momentum)
        parts += [trace, decay] if settings.decoupled_weight_decay else [decay, trace]
        parts.append(optax.scale_by_learning_rate(rate))
    else:
        raise ValueError(f"optimiser {settings.name!r} is unknown; choose from {OPTIMISERS}")
    return optax.chain(*parts)
