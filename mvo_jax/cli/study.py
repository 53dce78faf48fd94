"""``python -m mvo_jax study --config configs/studies/NAME.py --out FOLDER``: rows x seeds.

Every run ends as one small file in FOLDER, and every table is made of these files alone. Repeated,
the command does what is missing; several processes may work in one folder.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mvo_jax import sweep
from mvo_jax.cli.compare import chosen, read_seeds, separate
from mvo_jax.cli.flags import Flags, config_of, parse
from mvo_jax.config_files import load_module
from mvo_jax.devices.cluster import find_cluster
from mvo_jax.errors import EXIT_COMPARISON, EXIT_FINDINGS, UserError

_NEEDED = ("ROWS", "REFERENCES", "SEEDS", "SPLIT", "TITLE", "QUESTION")


def _define(values: Flags) -> None:
    values.string(
        "config",
        None,
        "File of a study, configs/studies/NAME.py, or config with a grid, configs/sweep.py; "
        "--config.KEY=VALUE applies to all rows.",
    )
    values.string("out", None, "Folder of the study.", required=True)
    names = "Rows: all, or names with commas; a name that has a comma in quotes, '\"a, b\",c'."
    values.list("rows", ["all"], names)
    values.list("seeds", [], "Seeds; those of the file if empty.")
    define_work_flags(values, keep_runs=False)


def define_work_flags(values: Flags, *, keep_runs: bool) -> None:
    """Flags on how the runs of a study are done, and the default of one; ``crossval`` has them."""
    values.integer("jobs", 1, "Processes that share the runs.", lower_bound=1)
    values.bool("keep_runs", keep_runs, "Keep the folders of finished runs (checkpoints).")
    values.bool("tables", False, "Only write the tables of what is stored.")
    again = "Train so many stored runs, drawn at random, again and compare their probabilities."
    values.integer("verify", 0, again, lower_bound=0)


def _source(path: str | None) -> dict[str, Any]:
    """What the file of a study defines."""
    if path is None:
        raise UserError("--config is missing", "give configs/studies/NAME.py, or --tables")
    source = vars(load_module(path.partition(":")[0]))
    if "get_hyper" in source:
        return _of_sweep(path, source)
    if missing := [name for name in _NEEDED if name not in source]:
        raise UserError(
            f"{path} is not a study ({', '.join(missing)} not defined)",
            "use a file of configs/studies, or `compare` for a config that has rows",
        )
    return source


def _of_sweep(path: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """The study of a config file with a grid, see ``mvo_jax.sweep``."""
    try:
        rows = sweep.rows(source["get_hyper"](sweep))
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"get_hyper of {path} failed: {error}", "see mvo_jax/sweep.py") from error
    return {
        "ROWS": rows,
        "REFERENCES": {},
        "SEEDS": source.get("SEEDS", (0,)),
        # What a test split has chosen it cannot measure any more.
        "SPLIT": source.get("SPLIT", "validation"),
        "TITLE": source.get("TITLE", f"Sweep {Path(path).stem}"),
        "QUESTION": source.get("QUESTION", "Which setting of the grid is best?"),
        "NOTES": (
            "The highest of several figures is too high: score the setting that is chosen on a "
            "split that did not choose it.",
            *source.get("NOTES", ()),
        ),
        "SWEEP": rows,
    }


def _comparison(values: Flags, overrides: Sequence[str]) -> Any:
    """The rows and seeds that are asked for."""
    from mvo_jax.comparison import STUDY_PARTS, SWEEP_PARTS, Comparison

    source = _source(values.config)
    grid: Mapping[str, Mapping[str, Any]] = source.get("SWEEP", {})
    swept = {key for setting in grid.values() for key in setting}
    for word in overrides:
        if word.partition("=")[0].removeprefix("--config.") in swept:
            raise UserError(f"{word} sets what the grid sweeps", "leave it out, or change the grid")
    rows = chosen(values.rows, list(source["ROWS"]))
    seeds = read_seeds(values.seeds) if values.seeds else list(source["SEEDS"])
    features: Mapping[str, Any] = source.get("FEATURES", {})

    def config(name: str, seed: int) -> Any:
        spec, setting = (values.config, grid[name]) if grid else (f"{values.config}:{name}", {})
        words = [f"--config={spec}", *sweep.flags(setting), *overrides]
        return config_of(*words, f"--config.seed={seed}")

    # What no seed changes is done once.
    of_row = {name: seeds[:1] if name in features else seeds for name in rows}
    return Comparison(
        configs={name: {seed: config(name, seed) for seed in of_row[name]} for name in rows},
        split=source["SPLIT"],
        reference="",
        paper=source.get("PAPER", {}),
        title=source["TITLE"],
        about={"study": Path(values.config).stem},
        own_parts=SWEEP_PARTS if grid else STUDY_PARTS,
        keep_runs=values.keep_runs,
        study={
            "title": source["TITLE"],
            "question": source["QUESTION"],
            "rows": list(source["ROWS"]),
            "seeds": list(source["SEEDS"]),
            "references": source["REFERENCES"],
            "notes": list(source.get("NOTES", ())),
        },
        features=features,
        shuffled=frozenset(source.get("SHUFFLED", ())),
        same_as=source.get("SAME_AS", {}),
    )


def _verify(comparison: Any, out: Path, count: int) -> None:
    """Train stored runs again and print how far their probabilities differ."""
    from mvo_jax.comparison import verify_runs

    results = verify_runs(comparison, out, count)
    for one in results:
        print(f"{one['run']}: largest difference {one['difference']:.2g} of {one['allowed']:g}")
    if wrong := [one["run"] for one in results if not one["agrees"]]:
        raise UserError(
            f"{len(wrong)} of {len(results)} runs came out otherwise: {', '.join(wrong)}",
            "compare the revisions and the versions that their files name",
            exit_code=EXIT_COMPARISON,
        )


def run_study(
    verb: str,
    arguments: list[str],
    define: Callable[[Flags], None],
    comparison_of: Callable[[Flags, Sequence[str]], Any],
) -> dict[str, Any]:
    """Do what ``study`` and ``crossval`` are asked for: tables, verification, or what is missing.

    Args:
        verb: of the two; its tables are a module of ``evaluation.pages`` of that name.
        arguments: the command line after it.
        define: its flags, those of ``define_work_flags`` among them.
        comparison_of: what is to be there, by flags and overrides of the config.

    Returns:
        The table; nothing where runs were verified.

    Raises:
        UserError: a mistake in the command, see ``run_comparison``; at the end, after the tables
            are written, with exit code 4, rows that failed and runs that are not done yet; with
            exit code 1, a run that --verify could not repeat.
    """
    own, overrides = separate(arguments)
    values = parse(own, define)
    tables: Any = importlib.import_module(f"mvo_jax.evaluation.pages.{verb}")
    out = Path(values.out).expanduser().resolve()
    if values.tables:
        table = tables.PAGE.write(out)
        print(tables.markdown(table))
        return table
    if found := find_cluster(os.environ):
        raise UserError(
            f"{verb} runs in single processes, and {found.found_by} has started several as one",
            "start it in one (srun --ntasks=1) with --jobs",
        )
    comparison = comparison_of(values, overrides)
    if values.verify:
        _verify(comparison, out, values.verify)
        return {}
    table, failures = _do_all(comparison, out, (verb, *arguments), values.jobs)
    print(tables.markdown(table))
    print(f"tables: {out / 'table.html'} (also .md, .csv, .json)")
    if failures:
        raise UserError(
            f"{len(failures)} of {len(comparison.configs)} rows failed: "
            + "; ".join(f"{name}, {cause}" for name, cause in failures.items()),
            "see the causes; the same command tries them again and keeps the rest",
            exit_code=EXIT_FINDINGS,
        )
    from mvo_jax.comparison import missing_runs

    if missing := missing_runs(comparison, out):
        raise UserError(
            f"{len(missing)} of {len(comparison.work())} runs are not done: {', '.join(missing)}",
            "another process is at them; else the same command does them",
            exit_code=EXIT_FINDINGS,
        )
    return table


def _do_all(
    comparison: Any, out: Path, command: Sequence[str], jobs: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Do the runs that are missing in several processes; the table, and why rows failed."""
    from mvo_jax.comparison import run_comparison

    helpers: list[subprocess.Popen] = []

    def start_helpers() -> None:
        # The last --jobs counts.
        words = [sys.executable, "-m", "mvo_jax", *command, "--jobs=1"]
        helpers.extend(subprocess.Popen(words, stdout=subprocess.DEVNULL) for _ in range(jobs - 1))

    try:
        _, failures = run_comparison(comparison, out, opened=start_helpers)
        for helper in helpers:
            helper.wait()
    finally:
        for helper in helpers:
            helper.terminate()  # it saves and ends; without effect on one that has ended
    return comparison.page.write(out), failures


def main(arguments: list[str]) -> dict[str, Any]:
    """Do the runs that are missing, write the tables, and print them: see ``run_study``."""
    return run_study("study", arguments, _define, _comparison)
