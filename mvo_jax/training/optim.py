"""Optimisers and the polynomial schedule (paper section 3.2; details from the released code)."""

import contextlib
import dataclasses
import math
from collections.abc import Collection, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mvo_jax.errors import UserError
from mvo_jax.settings import OPTIMISERS, OptimizerSettings


@dataclasses.dataclass(frozen=True)
class OptimiserSettings(OptimizerSettings):
    """The part ``optimizer`` of a config, and what else the schedule depends on.

    Attributes:
        total_steps: length of the schedule, ``config.train.total_steps``.
    """

    total_steps: int = 1000

    @property
    def frozen(self) -> tuple[str, ...]:
        """Parts of the model that ``freeze`` names."""
        return tuple(part for word in self.freeze.split(",") if (part := word.strip()))

    @property
    def rates(self) -> dict[str, float]:
        """Factors of the learning rate that ``rate_by_part`` gives.

        Raises:
            UserError: an entry is not PART=FACTOR, or the factor is negative or not finite.
        """
        rates: dict[str, float] = {}
        for word in filter(None, self.rate_by_part.split(",")):
            part, _, text = (piece.strip() for piece in word.partition("="))
            rate = math.nan
            with contextlib.suppress(ValueError):
                rate = float(text)
            if not part or not 0 <= rate < math.inf:
                raise UserError(
                    f"config.optimizer.rate_by_part has {word!r}",
                    "write PART=FACTOR with a factor of 0 or more, as in trunk=0.1,encoder=0.5",
                )
            rates[part] = rate
        return rates

    def check_parts(self, parts: Collection[str]) -> None:
        """Check the names of ``freeze`` and ``rate_by_part`` against the parts of the model.

        Raises:
            UserError: a part that the model does not have, or nothing left to train.
        """
        for key, named in (("freeze", self.frozen), ("rate_by_part", self.rates)):
            for part in named:
                if part not in parts:
                    raise UserError(
                        f"config.optimizer.{key} names {part!r}, which the model does not have",
                        f"its parts are {', '.join(parts)}",
                    )
        if set(self.frozen) >= set(parts):
            raise UserError("config.optimizer.freeze leaves nothing to train", "name fewer parts")


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

    Frozen parts have no moments, no decay and no share in the norm that is clipped.

    Raises:
        ValueError: an unknown name.
        UserError: see ``OptimiserSettings.rates``.
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
    optimiser = optax.chain(*parts)
    if frozen := settings.frozen:

        def labels(params: Mapping[str, Any]) -> dict[str, Any]:
            return {
                part: jax.tree.map(lambda _, held=part in frozen: held, tree)
                for part, tree in params.items()
            }

        by_label: dict[Hashable, Any] = {False: optimiser, True: optax.set_to_zero()}
        optimiser = optax.multi_transform(by_label, labels)
    if rates := settings.rates:

        def scaled(updates: Any, _: Any) -> Any:
            return {
                part: optax.tree.scale(rates.get(part, 1.0), tree) for part, tree in updates.items()
            }

        # Last, so that it scales decay and momentum as a smaller rate would.
        optimiser = optax.chain(optimiser, optax.stateless(scaled))
    return optimiser
