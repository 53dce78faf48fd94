"""Configs that cannot work are refused before any data is made, by the name of their key."""

import dataclasses
import json
from typing import Any

import flax.linen as nn
import jax
import pytest

from mvo_jax.devices import parallel
from mvo_jax.errors import UserError
from mvo_jax.training.optim import OptimiserSettings, make_optimiser
from mvo_jax.training.setup import set_up
from mvo_jax.training.state import create_state


def test_what_is_built(tiny_config):
    experiment = set_up(tiny_config(**{"optimizer.ema_decay": 0.9}))
    assert experiment.clip_shape == (8, 32, 32, 1)
    assert experiment.mask_size == 32
    assert len(experiment.devices) == 1
    shapes = experiment.state_shapes()
    assert jax.tree.structure(shapes.ema_params) == jax.tree.structure(shapes.params)
    assert experiment.optimiser_settings.total_steps == 50
    assert set_up(tiny_config()).state_shapes().ema_params is None


def test_all_devices_by_default(tiny_config):
    assert len(set_up(tiny_config(**{"train.num_devices": 0})).devices) == 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.batch_size": 12, "train.num_devices": 8}, "batch of 12 cannot be shared by 8"),
        ({"train.num_devices": 9}, "config.train.num_devices asks for 9 devices"),
        ({"train.num_devices": -1}, "config.train.num_devices is -1"),
        ({"data.device_budget_mb": -1}, "config.data.device_budget_mb is -1"),
        ({"train.batch_size": 0}, "config.train.batch_size is 0"),
        ({"train.total_steps": 0}, "config.train.total_steps is 0"),
        ({"train.eval_every": -5}, "config.train.eval_every is -5"),
        ({"train.log_every": 0}, "config.train.log_every is 0"),
        ({"train.steps_per_dispatch": -1}, "config.train.steps_per_dispatch is -1"),
        ({"eval.batch_size": 0}, "config.eval.batch_size is 0"),
        ({"data.frames": 7}, "clips of 7 frames of 32x32 are too small"),
        ({"data.image_size": 24, "model.mask_size": 8}, "clips of 8 frames of 24x24 are too small"),
        ({"model.num_heads": 3}, "hidden size 8 is not divisible by 3 heads"),
        ({"model.variant": "cgm"}, "config.model.variant is 'cgm'"),
        ({"model.lowering": "fast"}, "config.model.lowering is 'fast'"),
        ({"model.decoder_layout": "unet"}, "decoder_layout is 'unet'"),
        ({"model.encoder_form": "big"}, "encoder_form is 'big'"),
        ({"model.mask_size": 0}, "config.model.mask_size is 0"),
        ({"model.mask_size": 33}, "config.model.mask_size is 33"),
        ({"model.num_outputs": 3}, "config.model.num_outputs is 3"),
        ({"model.num_outputs": 2, "loss.form": "released"}, "'released' is defined for one output"),
        ({"loss.form": "focal"}, "config.loss.form is 'focal'"),
        ({"optimizer.name": "adam"}, "config.optimizer.name is 'adam'"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(tiny_config, changes, words):
    with pytest.raises(UserError) as caught:
        set_up(tiny_config(**changes))
    assert words in caught.value.cause
    for line in (caught.value.cause, caught.value.remedy):
        assert line
        assert "\n" not in line


def test_a_field_of_another_version_is_refused(tiny_config):
    for part, key in (("augment", "cutout"), ("loss", "dice"), ("optimizer", "nesterov")):
        config = tiny_config()
        config.unlock()
        config[part][key] = 1.0
        with pytest.raises(UserError, match=f"config.{part}.*{key}"):
            set_up(config)


def test_device_count_is_checked_against_the_devices_given(tiny_config):
    config = tiny_config(**{"train.batch_size": 6})
    assert len(set_up(config, devices=parallel.devices(2)).devices) == 2
    with pytest.raises(UserError, match="multiple of 4"):
        set_up(config, devices=parallel.devices(4))


def test_a_config_survives_json(tiny_config):
    from ml_collections import ConfigDict

    config = tiny_config()
    again = ConfigDict(json.loads(config.to_json()))
    assert set_up(again).state_shapes() == set_up(config).state_shapes()


def test_shapes_and_values_of_a_model_take_one_trace():
    calls = []

    class Counted(nn.Module):
        @nn.compact
        def __call__(self, video, *, train, with_mask=False):
            del train, with_mask
            calls.append(video.shape)
            return nn.Dense(1, name="classifier")(video.reshape(len(video), -1))

    optimiser = make_optimiser(OptimiserSettings())

    def create():
        return create_state(Counted(), optimiser, jax.random.key(0), (2, 4, 4, 1))

    shapes = [jax.eval_shape(create) for _ in range(2)]
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, shapes[0], create()))
    assert calls == [(1, 2, 4, 4, 1)]


def test_a_model_with_a_list_among_its_fields():
    class Listed(nn.Module):
        sizes: Any = dataclasses.field(default_factory=lambda: [3, 1])

        @nn.compact
        def __call__(self, video, *, train, with_mask=False):
            del train, with_mask
            return nn.Dense(self.sizes[0], name="classifier")(video.reshape(len(video), -1))

    optimiser = make_optimiser(OptimiserSettings())
    state = create_state(Listed(), optimiser, jax.random.key(0), (2, 4, 4, 1))
    assert state.params["classifier"]["kernel"].shape == (32, 3)
