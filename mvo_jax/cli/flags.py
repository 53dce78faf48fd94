"""Command-line flags and the experiment config.

Imports the heavy libraries inside functions: ``--help`` has to answer at once.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from mvo_jax import settings
from mvo_jax.config_files import available, load_config
from mvo_jax.errors import UserError
from mvo_jax.files import local_path

if TYPE_CHECKING:
    from mvo_jax.data.importers.cine import Options

# Flags of any verb that take a path.
_PATHS = ("workdir", "out", "data_dir", "source", "table", "bundle")
# What a flag takes, by how absl begins to refuse another value.
_TAKES = {
    "('Non-boolean argument": "true or false",
    "invalid literal for int()": "a whole number",
    "could not convert string to float": "a number",
}
QUOTES = "'\""  # around the key in ml_collections' messages, once or twice


def _method(define: Callable[..., Any]) -> Callable[..., None]:
    def method(self: "Flags", *about: Any, **options: Any) -> None:
        define(*about, flag_values=self, **options)

    return method


class Flags(flags.FlagValues):
    """Flags of one verb: defined as absl's are (name, default, help), but in this object alone."""

    string = _method(flags.DEFINE_string)
    integer = _method(flags.DEFINE_integer)
    float = _method(flags.DEFINE_float)
    bool = _method(flags.DEFINE_bool)
    enum = _method(flags.DEFINE_enum)
    list = _method(flags.DEFINE_list)


def parse(
    arguments: list[str],
    define: Callable[[Flags], None] = lambda values: None,
    *,
    with_config: bool = False,
    positional: Sequence[str] = (),
) -> Flags:
    """Parse a command line with flags of its own, leaving absl's global flags alone.

    Args:
        arguments: command line after the verb.
        define: defines the flags in the object it is given.
        with_config: also take ``--config NAME[:ARGUMENT]``, a path in place of the name, and
            ``--config.KEY=VALUE``; ``values.config`` is a locked ConfigDict.
        positional: flags that take the words without dashes, in this order; all must be given.

    Raises:
        UserError: an unknown flag or key (with a suggestion), a value of another type, or a config
            file that cannot be loaded.
    """
    values = Flags()
    define(values)
    values.bool("help", False, "Show the flags.", short_name="h")
    if {"--help", "-h"} & set(arguments):  # before required flags are missed
        _print_help(values, with_config)
        raise SystemExit(0)
    try:
        if with_config:
            arguments = _define_config(values, arguments)
        values.set_gnu_getopt(True)  # flags may follow the words
        rest = values(["mvo_jax", *arguments])[1:]
    except (AttributeError, KeyError) as error:  # ml_collections: unknown key or part
        text = str(error).strip(QUOTES).replace("\\n", " ").replace("\\'", "'")
        key, _, suggestion = " ".join(text.split()).partition(" ")
        cause = f"the config has no key {key.strip(QUOTES)!r}"
        raise UserError(cause, suggestion or "see the file given as --config") from error
    except IndexError as error:  # ml_collections: an entry of a tuple, or one that is not there
        given = [word for word in arguments if re.match(r"--?config\.[^=]*\[", word)]
        raise UserError(
            f"{', '.join(given)} names a part of a value that cannot be set alone",
            "give the whole value, as in --config.model.stage_sizes='(3,4)'",
        ) from error
    except flags.Error as error:
        reason = str(error).strip().splitlines()[0]
        if missing := re.match(r"flag (--\w+)=None: Flag .* other than None", reason):
            _refuse_typeset_dash(arguments)
            raise UserError(f"{missing[1]} is missing", "see --help") from error
        for begins, takes in _TAKES.items():
            if other := re.match(rf"flag (--[\w.]+)=(.*?): {re.escape(begins)}", reason):
                raise UserError(f"{other[1]} is {other[2]!r}", f"give {takes}") from error
        raise UserError(reason, "see --help, and the config file for its keys") from error
    for name in positional:
        if rest:
            values[name].parse(rest.pop(0))
        elif values[name].value is None:
            raise UserError(f"{name.upper()} is missing", "see --help")
    if rest:
        before = arguments[max(arguments.index(rest[0]) - 1, 0)]
        assign = before.startswith("--") and "=" not in before
        cause = f"unexpected argument {rest[0]!r}"
        raise UserError(cause, f"write {before}={rest[0]}" if assign else "see --help")
    for name in _PATHS:
        given: Any = values[name].value if name in values else None
        if isinstance(given, list):  # runs or bundles
            values[name].value = [local_path(path, f"--{name}") for path in given]
        elif given is not None and given != values[name].default:
            values[name].value = local_path(given, f"--{name}")
    if with_config and "config" not in values:
        raise UserError("no experiment given", "add --config demo, for example")
    return values


def config_of(*words: str) -> Any:
    """The locked config that ``--config`` and its keys describe; raises as ``parse``."""
    return parse(list(words), with_config=True).config


def _refuse_typeset_dash(arguments: list[str]) -> None:
    """Name a flag whose hyphens a word processor made one dash, not the flag that it misses."""
    for word in arguments:
        if re.match("[\u2010-\u2015\u2212]", word):
            cause = f"unexpected argument {word!r}: it begins with a typeset dash"
            raise UserError(cause, f"write --{word.lstrip(word[0])}, with two plain hyphens")


def _print_help(values: Flags, with_config: bool) -> None:
    if with_config:
        about = f"Experiment: NAME or FILE.py, and :ARGUMENT. Names: {', '.join(available())}."
        values.string("config", None, about)
    print(values.get_help())
    if with_config:
        print(f"\nKeys of every config, and those of its model:\n{settings.describe()}")


def _define_config(values: Flags, arguments: Sequence[str]) -> list[str]:
    """Load the file of ``--config``, define its keys as flags, and return the other arguments."""
    from ml_collections import config_flags

    spec, rest, words = None, [], iter(arguments)
    for word in words:
        if word in ("--config", "-config"):
            spec = next(words, "")
        elif word.startswith(("--config=", "-config=")):
            spec = word.partition("=")[2]
        else:
            rest.append(word)
    if spec is not None:
        config = load_config(spec)
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
    return rest


def define_process_flags(values: Flags) -> None:
    """Flags of the verbs that several processes can run together (docs/cluster.md)."""
    about = "Several processes as one run: where the environment says so, required, or never."
    values.enum("distributed", "auto", ["auto", "on", "off"], about)
    values.string(
        "coordinator_address", None, "HOST:PORT of process 0; JAX finds it under Slurm and on TPUs."
    )
    values.integer("num_processes", None, "How many processes.", lower_bound=1)
    values.integer("process_id", None, "Which of them this is.", lower_bound=0)
    values.integer("join_seconds", 300, "How long to wait for the others.", lower_bound=1)
    dead = "A process whose host has been silent for so long is dead."
    values.integer("peer_seconds", 30, dead, lower_bound=5)


def joined(values: Flags) -> AbstractContextManager[None]:
    """Be part of the cluster that the flags and the environment name, while the body runs.

    Raises:
        UserError: flags that contradict each other, or processes that do not come together.
    """
    from mvo_jax.devices import cluster, distributed

    found = cluster.find_cluster(
        os.environ,
        mode=values.distributed,
        coordinator_address=values.coordinator_address,
        num_processes=values.num_processes,
        process_id=values.process_id,
    )
    seconds = {"join_seconds": values.join_seconds, "peer_seconds": values.peer_seconds}
    return distributed.joined(found, **seconds)


def define_source_flags(values: Flags) -> None:
    """Flags that say how a source is to be read; the same for every verb that reads one."""
    from mvo_jax.data.importers.formats import IMPORTERS
    from mvo_jax.data.importers.table import COLUMNS

    values.string("source", None, "Folder, image file or .zip.")
    values.string("format", "auto", f"Format: auto, {', '.join(IMPORTERS)}.")
    values.string("table", None, f"CSV about the cases; columns: {', '.join(COLUMNS)}.")
    values.string("cine_pattern", None, "NIfTI: path of a cine, like '{case}_cine.nii.gz'.")
    values.string("mask_pattern", None, "NIfTI: path of its LGE mask, with {case}.")
    values.list(
        "mask_values", [], "Meaning of mask values, like 0=background,1=myocardium,2=infarct,3=mvo."
    )
    values.float("pixel_mm", None, "Side of a pixel, for formats that do not store it.")
    patients = "DICOM: whether PatientID or the folder's name tells patients apart."
    values.enum("patient_from", "header", ["header", "folder"], patients)
    repeats = "DICOM: which of several acquisitions of a slice to take."
    values.enum("repeats", None, ["first", "last"], repeats)
    values.string("series", None, "DICOM: number or description of the series to take.")
    values.bool("still_images", False, "Take single images (LGE) in place of a cine.")


def source_options(values: Flags) -> "Options":
    """What the flags of ``define_source_flags`` say.

    Raises:
        UserError: a table that cannot be read, or mask values that mean nothing.
    """
    from mvo_jax.data.importers.cine import Options
    from mvo_jax.data.importers.table import Table, read_table
    from mvo_jax.data.labels import MASK_NAMES

    if values.pixel_mm is not None and not 0 < values.pixel_mm < math.inf:
        raise UserError(f"--pixel_mm is {values.pixel_mm}", "give the side of a pixel in mm")
    meaning: dict[int, int] = {}
    for item in values.mask_values:
        number, _, name = (part.strip() for part in item.partition("="))
        if name not in MASK_NAMES or not number.isdigit():
            cause = f"--mask_values has {item!r}"
            raise UserError(cause, f"write VALUE=NAME with the names {', '.join(MASK_NAMES)}")
        meaning[int(number)] = MASK_NAMES.index(name)
    table = Table() if values.table is None else read_table(Path(values.table).expanduser())
    options = {field.name: getattr(values, field.name) for field in dataclasses.fields(Options)}
    return Options(**{**options, "table": table, "mask_values": meaning})
