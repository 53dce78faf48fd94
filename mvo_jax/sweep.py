"""Grids of settings in a config file, written as big_vision's and Vizier's configs write them.

def get_hyper(hyper):
    return hyper.product([
        hyper.sweep("config.optimizer.learning_rate", [1e-3, 1e-4]),
        hyper.zipit([
            hyper.sweep("config.model.width", [32, 64]),
            hyper.sweep("config.train.batch_size", [32, 16]),
        ]),
    ])

``hyper`` is this module. Each setting of the grid is a row of ``python -m mvo_jax study``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product as _product
from typing import Any

from mvo_jax.errors import UserError

Settings = list[dict[str, Any]]


def sweep(key: str, values: Iterable[Any]) -> Settings:
    """One setting for each value of a key, ``config.PART.KEY`` as on the command line."""
    return [{key.removeprefix("config."): value} for value in values]


def fixed(key: str, value: Any) -> Settings:
    """One setting: a key that is the same in a whole branch of the grid."""
    return sweep(key, [value])


def product(parts: Sequence[Settings]) -> Settings:
    """Every combination."""
    return [_joined(*chosen) for chosen in _product(*parts)]


def zipit(parts: Sequence[Settings]) -> Settings:
    """The first of each together, then the second of each; ValueError if they differ in length."""
    return [_joined(*chosen) for chosen in zip(*parts, strict=True)]


def chainit(parts: Sequence[Settings]) -> Settings:
    """All of the first, then all of the second, and so on."""
    return [setting for part in parts for setting in part]


def rows(settings: Settings) -> dict[str, dict[str, Any]]:
    """The settings of ``get_hyper`` by names that tell them apart; UserError for none or two."""
    if not isinstance(settings, list) or not all(isinstance(one, Mapping) for one in settings):
        raise UserError(
            "get_hyper gives no grid", "return what hyper.product, zipit, chainit or sweep make"
        )
    found: dict[str, dict[str, Any]] = {}
    keys = {key for setting in settings for key in setting}
    for setting in settings:
        name = ", ".join(f"{_short(key, keys)}={value}" for key, value in setting.items())
        name = re.sub(r"[^\w.,=+() -]", "_", name)  # it names files
        if name in found:
            raise UserError(f"get_hyper has the setting {name} twice", "take one away")
        found[name] = dict(setting)
    if not found:
        raise UserError("get_hyper gives an empty grid", "give each sweep at least one value")
    return found


def flags(setting: Mapping[str, Any]) -> list[str]:
    """A setting as words of a command line."""
    return [f"--config.{key}={value}" for key, value in setting.items()]


def _joined(*settings: Mapping[str, Any]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for setting in settings:
        if twice := joined.keys() & setting.keys():
            raise UserError(f"get_hyper sets {', '.join(twice)} twice", "set each key once")
        joined |= setting
    return joined


def _short(key: str, keys: Iterable[str]) -> str:
    """The last word of a key, if no other key ends in it."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key
