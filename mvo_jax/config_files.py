"""Config files: found by name or by path, executed once, checked to give a config."""

import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvo_jax.errors import UserError
from mvo_jax.settings import LATER


def shipped() -> Path:
    """The folder of the configs that ship: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next(
        folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()
    )


def available() -> list[str]:
    """Names of the shipped configs that can be run."""
    return sorted(p.stem for p in shipped().glob("*.py") if "def get_config(" in p.read_text())


def load_config(spec: str) -> Any:
    """The experiment that a config file describes.

    Args:
        spec: ``NAME`` of a shipped config or the path of a file, and its argument after a colon:
            ``demo``, ``demo:null``, ``configs/demo.py:null``.

    Returns:
        A locked ``ConfigDict``: values can be changed, keys cannot be added.

    Raises:
        UserError: there is no such file or argument, or the file fails.
    """
    from ml_collections import ConfigDict

    path, _, argument = str(spec).partition(":")
    module = load_module(path)
    try:
        config = module.get_config(*([argument] if argument else []))
        if not isinstance(config, ConfigDict):
            raise TypeError(f"get_config returned {type(config).__name__}")
    except ValueError as error:
        raise UserError(f"{path}: {error}", "choose one of the names it lists") from error
    except Exception as error:
        raise _failed(path, error) from error
    return config.lock()


def config_from_json(content: Mapping[str, Any]) -> Any:
    """The content of a run's ``config.json`` as a locked ``ConfigDict``.

    Keys that came later than the run have the values that leave it as it was.
    """
    from ml_collections import ConfigDict

    config: Any = ConfigDict(content)
    for name, default in LATER.items():
        _, part, key = name.split(".")
        if part in config and key not in config[part]:
            config[part][key] = default
    return config.lock()


def load_module(path: str) -> Any:
    """The module that a config file makes, afresh each time.

    Args:
        path: ``NAME`` of a shipped config, or a path. The file can import its neighbours:
            ``from . import mvo``.

    Raises:
        UserError: there is no such file, or it fails.
    """
    by_name = path and not path.endswith(".py") and Path(path).name == path
    file = shipped() / f"{path}.py" if by_name else Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"the config file {path!r} does not exist",
            f"give a path, or one of the configs that ship: {', '.join(available())}",
        )
    file = file.resolve()
    package = f"mvo_jax_configs_{abs(hash(str(file.parent)))}"
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]  # a neighbour may have been changed since
    sys.modules[package] = folder = types.ModuleType(package)
    folder.__path__ = [str(file.parent)]
    module = types.ModuleType(f"{package}.{file.stem}")
    module.__package__, module.__file__ = package, str(file)
    try:
        exec(compile(file.read_text(), str(file), "exec"), module.__dict__)
    except Exception as error:
        raise _failed(path, error) from error
    return module


def _failed(path: str, error: Exception) -> UserError:
    return UserError(
        f"{path} failed with {type(error).__name__}: {error}",
        "a config file defines get_config(argument='') and returns a ConfigDict",
    )
