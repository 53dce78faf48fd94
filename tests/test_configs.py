"""Every config file, and every argument it lists, builds what it describes."""

import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from mvo_jax.cli.summary import TABLE_1, TABLE_2
from mvo_jax.data.splits import split_bytes
from mvo_jax.devices import parallel
from mvo_jax.models.registry import published_config
from mvo_jax.training.setup import set_up

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")


@cache
def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def arguments(path: Path) -> tuple[str, ...]:
    """The names that the refusal of an unknown one lists."""
    with pytest.raises(ValueError, match="choose from") as caught:
        load(path).get_config("no such argument")
    listed, _, suffix = str(caught.value).partition("choose from ")[2].partition(" (or NAME")
    names = tuple(re.split(r",\s*", listed.strip()))
    return names + tuple(name + suffix.rstrip(")") for name in names if suffix)


def takes_an_argument(path: Path) -> bool:
    return load(path).get_config.__code__.co_argcount > 0


def runs() -> list[tuple[Path, str]]:
    found = []
    for path in FILES:
        # A file may demand an argument: then it has no default run.
        names = arguments(path) if takes_an_argument(path) else ()
        try:
            load(path).get_config()
        except ValueError:
            assert names
        else:
            found.append((path, ""))
        found += [(path, name) for name in names]
    return found


def get(path: Path, argument: str) -> Any:
    return load(path).get_config(*([argument] if argument else []))


RUNS = runs()
names = pytest.mark.parametrize(
    ("path", "argument"), RUNS, ids=[f"{p.stem}:{a}" if a else p.stem for p, a in RUNS]
)


@names
def test_it_builds_and_its_data_exist(path, argument):
    config = get(path, argument)
    experiment = set_up(config, devices=parallel.devices(1))
    assert experiment.state_shapes().params
    for split in ("train", "validation", "test"):
        assert split_bytes(config.data, split) > 0


@names
def test_it_is_locked_at_every_level(path, argument):
    config = get(path, argument)
    assert config.is_locked
    for part, value in config.items():
        if isinstance(value, ConfigDict):
            assert value.is_locked
            with pytest.raises(AttributeError):
                value.no_such_key = 1
        else:
            assert part in ("seed", "init_from")


@names
def test_it_has_the_keys_of_the_paper_config(path, argument):
    def keys(config: Any) -> set[str]:
        # A model has fields of its own, which `build_model` checks.
        parts = [part for part in config if part not in ("seed", "init_from", "model")]
        return {f"{part}.{key}" for part in parts for key in config[part]}

    assert keys(get(path, argument)) == keys(get(ROOT / "configs" / "mvo.py", ""))


@names
def test_it_survives_json_and_is_the_same_each_time(path, argument):
    config = get(path, argument)
    again = ConfigDict(json.loads(config.to_json()))
    assert again.to_json() == config.to_json() == get(path, argument).to_json()


@names
def test_its_steps_fit_each_other(path, argument):
    train = get(path, argument).train
    assert train.eval_every <= train.total_steps
    assert get(path, argument).optimizer.warmup_steps < train.total_steps


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_docstring_gives_the_command_and_the_arguments(path):
    docstring = load(path).__doc__
    assert f"python train.py --config configs/{path.name}" in docstring
    for name in re.findall(rf"configs/{path.name}:([a-z_0-9.]+)", docstring):
        assert name.rstrip(".") in arguments(path)
    if takes_an_argument(path):
        for name in (name.removesuffix("-quick") for name in arguments(path)):
            assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", docstring), name


def test_baselines_are_the_published_models():
    path = ROOT / "configs" / "baselines.py"
    rows = load(path).ROWS
    assert set(rows) <= set(load(path).PAPER)
    printed = {name: figures["millions"] for name, figures in load(path).PAPER.items()}
    assert printed == {**TABLE_1, "mvo_net": TABLE_2["full"]}
    for name in rows:
        assert dict(get(path, name).model) == published_config(name)


def test_baselines_share_everything_but_model_and_optimiser():
    path = ROOT / "configs" / "baselines.py"
    for suffix in ("", "-quick"):
        first, *others = (get(path, name + suffix) for name in load(path).ROWS)
        for other in others:
            for part in set(first) - {"model", "optimizer"}:
                if part != "train":
                    assert other[part] == first[part]
            differing = {k for k in first.train if other.train[k] != first.train[k]}
            assert differing <= ({"total_steps"} if suffix else set())


def test_the_paper_config_is_the_paper():
    config = get(ROOT / "configs" / "mvo.py", "")
    assert config.train.batch_size == 16
    assert config.train.total_steps == 8000
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("adamw", 1e-4)
    assert config.loss.mask_loss_weight == 0.05
    assert config.model.mask_size == 16
    assert (config.data.frames, config.data.image_size) == (30, 64)
