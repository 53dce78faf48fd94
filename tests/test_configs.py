"""Every config file, and every argument it lists, builds what it describes."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

import mvo_jax
from mvo_jax.config_files import available, load_config, load_module
from mvo_jax.data.splits import split_bytes
from mvo_jax.devices import parallel
from mvo_jax.errors import UserError
from mvo_jax.models.registry import published_config
from mvo_jax.training.setup import set_up

ROOT = Path(__file__).resolve().parents[1]
NAMES = available()
paper = load_module("paper")
load = cache(load_module)


@cache
def arguments(name: str) -> tuple[str, ...]:
    """The arguments that the refusal of an unknown one lists."""
    with pytest.raises(UserError, match="choose from") as caught:
        load_config(f"{name}:no such argument")
    listed, _, suffix = caught.value.cause.partition("choose from ")[2].partition(" (or NAME")
    found = tuple(re.split(r",\s*", listed.strip()))
    return found + tuple(argument + suffix.rstrip(")") for argument in found if suffix)


# Table 1 has no row that stands for all.
SPECS = [
    *(name for name in NAMES if name != "baselines"),
    *(f"{name}:{argument}" for name in NAMES for argument in arguments(name)),
]
specs = pytest.mark.parametrize("spec", SPECS)


def test_the_configs_that_ship():
    assert NAMES == ["ablations", "baselines", "demo", "mvo", "sweep"]


_TRACED: set[str] = set()  # 17 of the 45 have the network of another; tracing takes seconds


@specs
def test_it_builds_and_its_data_exist(spec):
    config = load_config(spec)
    experiment = set_up(config, devices=parallel.devices(1))
    if (network := config.model.to_json()) not in _TRACED:
        assert experiment.state_shapes().params
        _TRACED.add(network)
    for split in ("train", "validation", "test"):
        assert split_bytes(config.data, split) > 0


@specs
def test_it_is_locked_at_every_level_and_has_all_keys(spec):
    config = load_config(spec)
    assert config.is_locked
    for part in config.values():
        if isinstance(part, ConfigDict):
            with pytest.raises(AttributeError):
                part.no_such_key = 1


@specs
def test_it_survives_json_and_is_the_same_each_time(spec):
    config = load_config(spec)
    again = ConfigDict(json.loads(config.to_json()))
    assert again.to_json() == config.to_json() == load_config(spec).to_json()


@specs
def test_its_steps_fit_each_other(spec):
    config = load_config(spec)
    assert config.train.eval_every <= config.train.total_steps
    assert config.optimizer.warmup_steps < config.train.total_steps


@pytest.mark.parametrize("name", NAMES)
def test_its_docstring_gives_the_command_and_the_arguments(name):
    docstring = load(name).__doc__
    assert f"python train.py --config configs/{name}.py" in docstring
    for argument in re.findall(rf"configs/{name}.py:([a-z_0-9.]+)", docstring):
        assert argument.rstrip(".") in arguments(name)
    for argument in (argument.removesuffix("-quick") for argument in arguments(name)):
        assert re.search(rf"(?<!\w){re.escape(argument)}(?!\w)", docstring), argument


def test_a_spec_names_a_config_or_a_file():
    wanted = load_config("demo:null").to_dict()
    path = ROOT / "configs" / "demo.py"
    assert wanted["data"]["preset"] == "null"
    assert load_config(f"{path}:null").to_dict() == wanted
    assert mvo_jax.load_config("demo:null").to_dict() == wanted


def test_a_file_finds_its_neighbours_and_the_configs_that_ship(tmp_path):
    (tmp_path / "base.py").write_text("FRAMES = 7\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "from mvo_jax import load_config\n"
        "from . import base\n"
        "def get_config():\n"
        "    config = load_config('mvo')\n"
        "    config.data.frames = base.FRAMES\n"
        "    return config\n"
    )
    assert load_config(str(file)).data.frames == 7
    (tmp_path / "base.py").write_text("FRAMES = 11\n")
    assert load_config(str(file)).data.frames == 11


def test_a_file_is_executed_once(tmp_path):
    file, log = tmp_path / "counted.py", tmp_path / "log"
    file.write_text(
        "from mvo_jax import load_config\n"
        f"with open({str(log)!r}, 'a') as log:\n    print('executed', file=log)\n"
        "def get_config():\n    return load_config('mvo')\n"
    )
    from mvo_jax.cli.flags import parse

    flags = [f"--config={file}", "--config.seed=3"]
    assert parse(flags, with_config=True).config.seed == 3
    assert log.read_text() == "executed\n"


def test_the_paper_s_rows():
    rows = load("baselines").ROWS
    assert set(rows) == set(paper.TABLE_1)
    for name in rows:
        assert dict(load_config(f"baselines:{name}").model) == published_config(name)
    assert load("ablations").PAPER.keys() == load("ablations").ROWS.keys()
    # The method's row is the same in all four tables.
    figures = {row["auc"] for row in (paper.TABLE_1["mvo_net"], paper.TABLE_2["full"])}
    assert figures == {paper.TABLE_3[paper.MASK_SIZE], paper.TABLE_4[paper.MASK_LOSS_WEIGHT]}


def test_baselines_share_everything_but_model_and_optimiser():
    for suffix in ("", "-quick"):
        first, *others = (load_config(f"baselines:{row}{suffix}") for row in load("baselines").ROWS)
        for other in others:
            for part in set(first) - {"model", "optimizer", "train"}:
                assert other[part] == first[part]
            differing = {k for k in first.train if other.train[k] != first.train[k]}
            assert differing <= ({"total_steps"} if suffix else set())


def test_the_paper_config_is_the_paper():
    config: Any = load_config("mvo")
    assert (config.train.batch_size, config.train.total_steps) == (16, 8000)
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("adamw", 1e-4)
    assert config.loss.mask_loss_weight == 0.05
    assert config.model.mask_size == 16
    assert (config.data.frames, config.data.image_size) == (30, 64)
    assert load_config("ablations:cgmr").optimizer.learning_rate == 1e-2
