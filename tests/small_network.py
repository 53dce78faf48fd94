"""A network with everything that devices could disagree about, compiled in no time."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mvo_jax.devices import parallel
from mvo_jax.models.mvo_net import ModelOutput
from mvo_jax.models.ops.layers import BatchNorm, Dropout
from mvo_jax.models.ops.numerics import Numerics
from mvo_jax.training.setup import Experiment

SMALL = {
    "train.total_steps": 30,
    "train.num_devices": 0,
    "optimizer.learning_rate": 1e-3,
    "eval.batch_size": 6,
}


class SmallNetwork(nn.Module):
    """A strided convolution, BatchNorm over all devices, dropout and a mask branch."""

    @nn.compact
    def __call__(self, video: Any, *, train: bool, with_mask: bool = False) -> ModelOutput:
        dtype = jnp.result_type(float)
        numerics = Numerics(None, parallel.AXIS, dtype, dtype)
        # No bias: BatchNorm subtracts it, its gradient is rounding, and AdamW would step by that.
        x = nn.Conv(8, (3, 3), strides=(4, 4), use_bias=False, param_dtype=dtype, name="stem")(
            video
        )
        x = BatchNorm(numerics, name="norm")(x, train=train)
        x = nn.relu(x).mean(axis=1)
        mask = nn.sigmoid(nn.Dense(1, param_dtype=dtype, name="decoder")(x)[..., 0])
        x = Dropout(0.4, numerics, name="dropout")(x.reshape(len(x), -1), train=train)
        logits = nn.Dense(1, param_dtype=dtype, name="classifier")(x)
        return ModelOutput(logits, mask if with_mask else None)


def small(experiment: Experiment) -> Experiment:
    """The experiment with this network in place of its own; masks of 32x32 clips are 8x8."""
    return dataclasses.replace(experiment, model=SmallNetwork(), mask_size=8)
