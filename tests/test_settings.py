"""The keys of a config: their types and bounds, and what may change on resume."""

import dataclasses
import json
import math

import pytest

from mvo_jax import settings
from mvo_jax.config_files import load_config
from mvo_jax.errors import UserError
from mvo_jax.runs.folder import config_changes
from mvo_jax.settings import Due, TrainSettings


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
    told = ["config.seed 0 -> 5", "config.train.batch_size 16 -> 4"]
    assert config_changes(config, changed) == told


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


def options(**changes):
    values = {"total_steps": 25, "log_every": 4, "eval_every": 10, "save_every": 6, **changes}
    return TrainSettings(**values)


@pytest.mark.parametrize(
    ("step", "seconds", "expected"),
    [
        (1, 0, Due(log=False, save=False, evaluate=False)),
        (4, 0, Due(log=True, save=False, evaluate=False)),
        (6, 0, Due(log=False, save=True, evaluate=False)),
        (7, 301, Due(log=False, save=True, evaluate=False)),
        # Saved before it is evaluated, and logged up to there.
        (10, 0, Due(log=True, save=True, evaluate=True)),
        (25, 0, Due(log=True, save=True, evaluate=True)),
    ],
)
def test_what_is_due(step, seconds, expected):
    assert options().due(step, seconds_since_save=seconds) == expected


def test_intervals_of_zero_are_off_and_before_the_first_step_nothing_is_evaluated():
    assert not options().due(0).evaluate
    off = options(save_every=0, save_every_seconds=0.0)
    assert not off.due(6, seconds_since_save=1e9).save
    assert off.next_stop(4, longest=99) == 8


@pytest.mark.parametrize("longest", [1, 3, 99])
def test_a_dispatch_ends_where_something_is_due(longest):
    step, stops = 0, []
    while step < 25:
        stop = options().next_stop(step, longest=longest)
        assert step < stop <= step + longest
        between = [options().due(k) for k in range(step + 1, stop)]
        assert not any(now.log or now.save or now.evaluate for now in between)
        stops.append(step := stop)
    assert step == 25
    if longest == 99:
        assert stops == [4, 6, 8, 10, 12, 16, 18, 20, 24, 25]
