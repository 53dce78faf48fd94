"""``python -m mvo_jax compare --config configs/baselines.py --out FOLDER``: systems in one table.

Every row of the config file is trained and evaluated as ``train.py`` and ``eval.py`` do it, each in
a run folder of its own below FOLDER.
"""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvo_jax.cli.flags import Flags, config_of, parse
from mvo_jax.config_files import load_module
from mvo_jax.devices.cluster import find_cluster
from mvo_jax.errors import EXIT_FINDINGS, UserError


def _define(values: Flags) -> None:
    about = "Config file with rows, configs/baselines.py; --config.KEY=VALUE applies to all rows."
    values.string("config", None, about, required=True)
    values.string("out", None, "Folder of the comparison.", required=True)
    values.list("systems", ["all"], "Rows: all, or names with commas.")
    values.list("seeds", ["0"], "Seeds; one run for each.")
    values.bool("quick", False, "The reduced forms (NAME-quick).")
    values.string("split", "test", "Split to compare on.")


def separate(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(own flags, ``--config.KEY=VALUE`` overrides); a value may be a word of its own."""
    own, overrides, words = [], [], iter(arguments)
    for word in words:
        if not word.startswith("--config."):
            own.append(word)
        else:
            overrides.append(word if "=" in word else f"{word}={next(words, '')}")
    return own, overrides


def chosen(asked: Sequence[str], names: Sequence[str]) -> list[str]:
    """The systems asked for, in the order of the file."""
    if list(asked) == ["all"]:
        return list(names)
    for name in asked:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise UserError(
                f"there is no system {name!r}",
                f"choose from {', '.join(names)}" + (f"; did you mean {near[0]}?" if near else ""),
            )
    return [name for name in names if name in asked]


def read_seeds(asked: Sequence[str]) -> list[int]:
    """Seeds as numbers, in order, each once."""
    if asked and all(seed.strip().isdecimal() for seed in asked):
        return sorted({int(seed) for seed in asked})
    raise UserError(f"--seeds is {','.join(asked)!r}", "give whole numbers from 0, as in 0,1,2")


def main(arguments: list[str]) -> dict[str, Any]:
    """Run what is missing, row by row, write the table anew after each, and print it.

    Raises:
        UserError: a mistake in the command; or, at the end and after the table is written, with
            exit code 4, systems that failed.
    """
    own, overrides = separate(arguments)
    values = parse(own, _define)
    from mvo_jax.comparison import Comparison, run_comparison  # loads JAX, which --help can spare
    from mvo_jax.evaluation.pages.comparison import markdown

    if found := find_cluster(os.environ):
        raise UserError(
            f"compare runs in one process, and {found.found_by} has started several",
            "start it in one (srun --ntasks=1), or train its rows with train.py",
        )
    source = vars(load_module(values.config))
    if missing := [name for name in ("ROWS", "REFERENCE", "PAPER") if name not in source]:
        raise UserError(
            f"{values.config} has no rows to compare ({', '.join(missing)} not defined)",
            "use configs/baselines.py (Table 1) or configs/ablations.py (Tables 2 to 4)",
        )
    systems, seeds = chosen(values.systems, source["ROWS"]), read_seeds(values.seeds)

    def config(name: str, seed: int) -> Any:
        row = f"{values.config}:{name}-quick" if values.quick else f"{values.config}:{name}"
        return config_of(f"--config={row}", *overrides, f"--config.seed={seed}")

    form = "reduced forms" if values.quick else "published sizes"
    comparison = Comparison(
        configs={name: {seed: config(name, seed) for seed in seeds} for name in systems},
        split=values.split,
        reference=source["REFERENCE"],
        paper=source["PAPER"],
        title=f"{Path(values.config).stem}: {form}",
        about={"config": values.config, "quick": values.quick},
    )
    out = Path(values.out).expanduser().resolve()
    table, failures = run_comparison(comparison, out)
    print(markdown(table))
    print(f"table: {out / 'table.html'} (also .md, .csv, .json)")
    if failures:
        raise UserError(
            f"{len(failures)} of {len(systems)} systems failed: {', '.join(failures)}",
            "see the table for the causes; the same command tries them again and keeps the rest",
            exit_code=EXIT_FINDINGS,
        )
    return table
