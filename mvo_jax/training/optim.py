"""Optimisers and the polynomial schedule (paper section 3.2; details from the released code)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

OPTIMISERS = ("adamw", "sgd")


@dataclasses.dataclass(frozen=True)
class OptimiserSettings:
    """Optimiser and learning-rate schedule.

    Attributes:
        name: 'adamw' or 'sgd'.
        learning_rate: peak learning rate.
        total_steps: length of the schedule.
        warmup_steps: steps of linear warm-up; 0 for none.
        warmup_start: share of the scheduled rate at step 0 of the warm-up.
        power: exponent of the polynomial decay.
        end_learning_rate: rate at ``total_steps``.
        weight_decay: on every parameter, as in the released code.
        decoupled_weight_decay: AdamW is always decoupled. For SGD, False is torch's L2 term that
            enters the momentum, True adds ``-learning_rate * weight_decay * p`` beside it.
        momentum: of SGD.
        clip_norm: largest global gradient norm; 0 for no clipping.
    """

    name: str = "adamw"
    learning_rate: float = 1e-4
    total_steps: int = 8000
    warmup_steps: int = 1500
    warmup_start: float = 1e-6
    power: float = 1.0
    end_learning_rate: float = 0.0
    weight_decay: float = 0.01
    decoupled_weight_decay: bool = True
    momentum: float = 0.9
    clip_norm: float = 0.0


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
