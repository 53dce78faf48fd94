"""Command-line flags and the experiment config."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mvo_jax.errors import UserError

QUOTES = "'\""  # around the key in ml_collections' messages, once or twice


def parse(
    arguments: list[str], define: Callable[[flags.FlagValues], None], *, with_config: bool = False
) -> flags.FlagValues:
    """Parse a command line with flags of its own, leaving absl's global flags alone.

    Args:
        arguments: command line after the verb.
        define: defines the flags, each with ``flag_values=`` the object it is given.
        with_config: also take ``--config FILE.py[:argument]`` and ``--config.KEY=VALUE``.

    Returns:
        Parsed flags; ``values.config`` is a locked ConfigDict.

    Raises:
        UserError: an unknown flag or key (with a suggestion), a value of another type, or a config
            file that cannot be loaded.
    """
    values = flags.FlagValues()
    define(values)
    if with_config:
        config_flags.DEFINE_config_file(
            "config",
            None,
            "Experiment: configs/NAME.py or configs/NAME.py:ARGUMENT",
            flag_values=values,
            sys_argv=arguments,
        )
        _check_config_file(arguments)
    flags.DEFINE_bool("help", False, "Show the flags.", short_name="h", flag_values=values)
    if {"--help", "-h"} & set(arguments):  # before required flags are missed
        print(values.get_help())
        raise SystemExit(0)
    try:
        rest = values(["mvo_jax", *arguments])[1:]
    except (AttributeError, KeyError) as error:  # ml_collections: unknown key or part
        text = str(error).strip(QUOTES).replace("\\n", " ").replace("\\'", "'")
        key, _, suggestion = " ".join(text.split()).partition(" ")
        raise UserError(
            f"the config has no key {key.strip(QUOTES)!r}",
            suggestion or "see the file given as --config",
        ) from error
    except flags.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(reason, "see --help, and the config file for its keys") from error
    if rest:
        raise UserError(f"unexpected arguments: {' '.join(rest)}", "see --help")
    if with_config and values.config is None:
        raise UserError("no experiment given", "add --config configs/demo.py, for example")
    return values


def _check_config_file(arguments: list[str]) -> None:
    """Load the file once by itself: config_flags wraps its errors in tracebacks."""
    for i, argument in enumerate(arguments):
        if argument == "--config":
            value = arguments[i + 1] if i + 1 < len(arguments) else ""
        elif argument.startswith("--config="):
            value = argument.partition("=")[2]
        else:
            continue
        path, _, name = value.partition(":")
        if not Path(path).is_file():
            raise UserError(
                f"the config file {path!r} does not exist",
                f"run from the top of the repository; configs: {_available()}",
            )
        try:
            source: dict[str, Any] = {"__name__": "config", "__file__": path}
            exec(compile(Path(path).read_text(), path, "exec"), source)
            config = source["get_config"](*([name] if name else []))
            if not isinstance(config, ConfigDict):
                raise TypeError(f"get_config returned {type(config).__name__}")
        except ValueError as error:
            raise UserError(f"{path}: {error}", "choose one of the names it lists") from error
        except Exception as error:
            raise UserError(
                f"{path} failed with {type(error).__name__}: {error}",
                "a config file defines get_config(argument='') and returns a ConfigDict",
            ) from error


def _available() -> str:
    return ", ".join(sorted(str(p) for p in Path("configs").glob("[a-z]*.py"))) or "none here"


def config_from_json(content: dict[str, Any]) -> Any:
    """The resolved config that a run folder keeps, locked again."""
    return ConfigDict(json.loads(json.dumps(content))).lock()
