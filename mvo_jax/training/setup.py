"""From a config to the objects of an experiment."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import numpy as np
import optax

from mvo_jax.data.batches import batch_indices
from mvo_jax.devices import parallel
from mvo_jax.errors import UserError
from mvo_jax.models.registry import build_model, published_config
from mvo_jax.settings import Augmentation, LossSettings, TrainSettings, check
from mvo_jax.training.optim import OptimiserSettings, make_optimiser
from mvo_jax.training.state import TrainState, create_state, start_from

T = TypeVar("T")
# m of the target that the report shows of a model that predicts no mask: the method's.
REPORTED_MASK_SIZE: int = published_config("mvo_net")["mask_size"]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config describes, built: nothing below takes the config itself.

    Attributes:
        seed: of weights, batches, augmentation and dropout.
        model: joined over ``parallel.AXIS``: call it under ``parallel.data_parallel``; it can be
            initialised anywhere.
        optimiser: with its schedule.
        optimiser_settings: what the optimiser was built from.
        loss: form and weights of the loss.
        augmentation: strengths.
        train: steps, and what is due when.
        eval_batch_size: clips a batch of an evaluation.
        clip_shape: (T, H, W, C) of one clip of the data.
        mask_size: m of the coarse mask.
        devices: devices to run on.
    """

    seed: int
    model: nn.Module
    optimiser: optax.GradientTransformation
    optimiser_settings: OptimiserSettings
    loss: LossSettings
    augmentation: Augmentation
    train: TrainSettings
    eval_batch_size: int
    clip_shape: tuple[int, int, int, int]
    mask_size: int
    devices: Sequence[parallel.Device]

    def init_state(self, variables: Mapping[str, Any] | None = None) -> TrainState:
        """The state at step 0, placed on all devices.

        Args:
            variables: {'params', 'batch_stats'} to start from, whole or in part.
        """
        state = self._create_state()
        if variables is not None:
            state = start_from(state, variables)
        return parallel.replicate(state, self.devices)

    def state_shapes(self) -> TrainState:
        """The state's shapes and dtypes, without computing anything."""
        return jax.eval_shape(self._create_state)

    def _create_state(self) -> TrainState:
        key, ema = jax.random.key(self.seed), self.optimiser_settings.ema_decay > 0
        return create_state(self.model, self.optimiser, key, self.clip_shape, ema=ema)

    def draw(self, num_cases: int, step: int) -> np.ndarray:
        """Cases of a step: ``[B]``, see ``data.batches.batch_indices``."""
        batch_size = self.train.batch_size
        return batch_indices(self.seed, step, num_cases=num_cases, batch_size=batch_size)


def set_up(
    config: Any, *, devices: Sequence[parallel.Device] | None = None, train: bool = True
) -> Experiment:
    """Build everything but the data, and check that it fits together.

    Args:
        config: a whole experiment config.
        devices: devices to run on; by default those that ``config.train.num_devices`` asks for.
        train: also check that they can share a training batch equally.

    Raises:
        UserError: a value that cannot work, named by its config key.
    """
    check(config)
    if devices is None:
        devices = parallel.devices(config.train.num_devices)
    if train:
        parallel.check_divisible(config.train.batch_size, len(devices))
        if config.train.batch_size % (len(devices) * config.train.accumulate):
            raise UserError(
                f"a batch of {config.train.batch_size} cannot be made of config.train.accumulate="
                f"{config.train.accumulate} micro-batches on {len(devices)} devices",
                f"choose a batch size that is a multiple of "
                f"{len(devices) * config.train.accumulate}",
            )

    settings = OptimiserSettings(**config.optimizer, total_steps=config.train.total_steps)
    experiment = Experiment(
        seed=config.seed,
        model=build_model(
            config.model,
            backend=jax.default_backend(),
            xla_flags=os.environ.get("XLA_FLAGS", ""),
            axis_name=parallel.AXIS,
        ),
        optimiser=_checked("optimizer", lambda: make_optimiser(settings)),
        optimiser_settings=settings,
        loss=LossSettings(**config.loss),
        augmentation=Augmentation(**config.augment),
        train=TrainSettings(**config.train),
        eval_batch_size=config.eval.batch_size,
        clip_shape=(config.data.frames, config.data.image_size, config.data.image_size, 1),
        mask_size=config.model.get("mask_size", REPORTED_MASK_SIZE),
        devices=devices,
    )
    outputs = config.model.num_outputs
    if outputs not in (1, 2):
        raise UserError(
            f"config.model.num_outputs is {outputs}", "set it to 1 (sigmoid) or 2 (softmax)"
        )
    if experiment.loss.form == "released" and outputs != 1:
        raise UserError(
            "config.loss.form 'released' is defined for one output",
            "set config.model.num_outputs to 1, or config.loss.form to 'cross_entropy'",
        )
    if not 1 <= experiment.mask_size <= config.data.image_size:
        raise UserError(
            f"config.model.mask_size is {experiment.mask_size}",
            f"choose 1 to {config.data.image_size}, the size of the image",
        )
    # Abstract shapes only: finds a clip the network cannot take before any data is made.
    settings.check_parts(_checked("model", experiment.state_shapes).params)
    return experiment


def _checked(part: str, build: Callable[[], T]) -> T:
    try:
        return build()
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"config.{part} cannot be built: {str(error).splitlines()[0]}",
            f"change the value in config.{part} or config.data",
        ) from error
