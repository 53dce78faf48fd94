"""From a config to the objects of an experiment."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import optax

from mvo_jax.devices import parallel
from mvo_jax.errors import UserError
from mvo_jax.models.registry import build_model, published_config
from mvo_jax.settings import Augmentation, LossSettings, check
from mvo_jax.training import optim
from mvo_jax.training.state import TrainState, create_state, start_from

# m of the target that the report shows of a model that predicts no mask: the method's.
REPORTED_MASK_SIZE: int = published_config("mvo_net")["mask_size"]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config describes, built.

    Attributes:
        model: joined over ``parallel.AXIS``: call it under ``parallel.data_parallel``; it can be
            initialised anywhere.
        optimiser: with its schedule.
        optimiser_settings: what the optimiser was built from.
        loss: form and weights of the loss.
        augmentation: strengths.
        clip_shape: (T, H, W, C) of one clip of the data.
        mask_size: m of the coarse mask.
        ema_decay: 0 where no average is kept.
        devices: devices to run on.
    """

    model: nn.Module
    optimiser: optax.GradientTransformation
    optimiser_settings: optim.OptimiserSettings
    loss: LossSettings
    augmentation: Augmentation
    clip_shape: tuple[int, int, int, int]
    mask_size: int
    ema_decay: float
    devices: Sequence[parallel.Device]

    def init_state(self, seed: int, variables: Mapping[str, Any] | None = None) -> TrainState:
        """The state at step 0, placed on all devices.

        Args:
            seed: of the initialisation.
            variables: {'params', 'batch_stats'} to start from, whole or in part.
        """
        state = self._create_state(seed)
        if variables is not None:
            state = start_from(state, variables)
        return parallel.replicate(state, self.devices)

    def state_shapes(self) -> TrainState:
        """The state's shapes and dtypes, without computing anything."""
        return jax.eval_shape(lambda: self._create_state(0))

    def _create_state(self, seed: int) -> TrainState:
        return create_state(
            self.model,
            self.optimiser,
            jax.random.key(seed),
            self.clip_shape,
            ema=self.ema_decay > 0,
        )


def set_up(
    config: Any, *, devices: Sequence[parallel.Device] | None = None, train: bool = True
) -> Experiment:
    """Build everything but the data, and check that it fits together.

    Args:
        config: a whole experiment config.
        devices: devices to run on; by default those that ``config.train.num_devices`` asks for.
        train: also check that they can share a training batch equally.

    Returns:
        The experiment.

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

    settings = optim.OptimiserSettings(**config.optimizer, total_steps=config.train.total_steps)
    experiment = Experiment(
        model=build_model(
            config.model,
            backend=jax.default_backend(),
            xla_flags=os.environ.get("XLA_FLAGS", ""),
            axis_name=parallel.AXIS,
        ),
        optimiser=_checked("optimizer", lambda: optim.make_optimiser(settings)),
        optimiser_settings=settings,
        loss=LossSettings(**config.loss),
        augmentation=Augmentation(**config.augment),
        clip_shape=(config.data.frames, config.data.image_size, config.data.image_size, 1),
        mask_size=config.model.mask_size if "mask_size" in config.model else REPORTED_MASK_SIZE,
        ema_decay=settings.ema_decay,
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
    shapes = _checked("model", experiment.state_shapes)
    optim.check_parts(settings, shapes.params)
    return experiment


def _checked(part: str, build: Any) -> Any:
    try:
        return build()
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"config.{part} cannot be built: {str(error).splitlines()[0]}",
            f"change the value in config.{part} or config.data",
        ) from error
