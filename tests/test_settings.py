"""The keys of a config: their types and bounds, and what may change on resume."""

import dataclasses
import json
import math

import pytest

from mvo_jax import settings
from mvo_jax.config_files import load_config
from mvo_jax.errors import UserError
from mvo_jax.runs.folder import config_changes


@pytest.fixture
def config():
    return load_config("demo").to_dict()


@pytest.mark.parametrize(
    ("part", "key", "value", "bound"),
    [
        ("", "seed", -1, "0 to 4294967295"),
        ("", "seed", 2**32, "0 to 4294967295"),
        ("data", "seed", 2**32, "0 to 4294967295"),
        ("optimizer", "learning_rate", -1e-3, "0 or more"),
        ("optimizer", "learning_rate", math.inf, "finite"),
        ("optimizer", "learning_rate", math.nan, "finite"),
        ("optimizer", "momentum", 1.5, "0 to 1"),
        ("augment", "gamma", -0.1, "0 or more"),
        ("train", "batch_size", 0, "1 or more"),
        ("train", "keep_latest", 0, "1 or more"),
        ("train", "batch_size", 2.5, "int"),
        ("train", "batch_size", True, "int"),
        ("train", "save_every_seconds", "often", "float"),
        ("augment", "flip", 1, "bool"),
        ("loss", "form", "focal", "cross_entropy, released"),
    ],
)
def test_a_value_out_of_its_bounds(config, part, key, value, bound):
    (config[part] if part else config)[key] = value
    with pytest.raises(UserError) as caught:
        settings.check(config)
    name = ".".join(filter(None, ("config", part, key)))
    assert caught.value.cause.startswith(f"{name} is {value!r}")
    assert bound in caught.value.remedy


def test_values_at_their_bounds_and_whole_numbers_for_floats(config):
    config["seed"] = 2**32 - 1
    config["optimizer"] |= {"learning_rate": 0, "momentum": 1, "clip_norm": 0.0}
    settings.check(config)


@pytest.mark.parametrize("part", ["data", "loss", "optimizer", "augment", "train", "eval"])
def test_a_key_that_is_missing_or_unknown(config, part):
    key = next(key for key in config[part] if f"config.{part}.{key}" not in settings.LATER)
    value = config[part].pop(key)
    with pytest.raises(UserError, match=f"the config has no key {part}.{key}"):
        settings.check(config)
    config[part] |= {key: value, f"{key}x": value}
    with pytest.raises(UserError, match=f"config.{part}.{key}x does not exist") as caught:
        settings.check(config)
    assert f"did you mean {key}?" in caught.value.remedy
    del config[part]
    with pytest.raises(UserError, match=f"the config has no key {part}"):
        settings.check(config)


def test_every_key_is_documented_and_has_the_type_of_its_default():
    text = settings.describe()
    for part, kind in settings.PARTS.items():
        for field in dataclasses.fields(kind):
            assert f"--config.{part}.{field.name} " in text
            assert field.metadata["help"]
            assert type(field.default) is field.type


def test_what_may_change_on_resume(config):
    changed = load_config("demo").to_dict()
    changed["data"]["dir"] = "elsewhere"
    changed["train"] |= {"num_devices": 2, "save_every": 7, "watchdog_leaves": True}
    config["model"]["stage_sizes"] = [0, 1, 1]  # as JSON gives it back
    assert config_changes(config, changed) == []
    changed["train"]["batch_size"] = 4
    changed["seed"] = 5
    assert config_changes(config, changed) == [
        "config.seed 0 -> 5",
        "config.train.batch_size 16 -> 4",
    ]


def test_a_key_that_an_earlier_run_lacks_has_its_default(config):
    earlier = {**config, "data": {k: v for k, v in config["data"].items()}}
    del earlier["data"]["misregistration_mm"]
    settings.check(earlier)
    earlier = json.loads(json.dumps(earlier))  # as a run folder keeps it
    assert config_changes(earlier, config) == []
    config["data"]["misregistration_mm"] = 8.0
    assert config_changes(earlier, config) == ["config.data.misregistration_mm 3.2 -> 8.0"]
    del earlier["data"]["fold"]
    with pytest.raises(UserError, match=r"no key data\.fold"):
        settings.check(earlier)
