"""``python -m mvo_jax compare --config configs/baselines.py --out FOLDER``: systems in one table.

Every row of the config file is trained and evaluated as ``train.py`` and ``eval.py`` do it, each in
a run folder of its own below FOLDER.
"""

import difflib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from mvo_jax.cli.flags import parse
from mvo_jax.config_files import load_module
from mvo_jax.data.splits import dataset_line, load_split, split_bytes
from mvo_jax.devices import parallel
from mvo_jax.devices.cluster import find_cluster
from mvo_jax.errors import EXIT_FINDINGS, UserError
from mvo_jax.evaluation.pages.comparison import (
    AREA_CHANGE,
    ScoredRun,
    System,
    area_change_system,
    compare,
    markdown,
    write_comparison,
)
from mvo_jax.evaluation.pages.report import BASELINE_FEATURE
from mvo_jax.evaluation.predictions import Predictions, read_predictions
from mvo_jax.models.cost import forward_flops, parameter_count
from mvo_jax.models.registry import dense_model
from mvo_jax.run import SOURCE, train_and_evaluate
from mvo_jax.runs.folder import RunFolder, provenance, read_json, write_json
from mvo_jax.training.setup import set_up

# What rows may differ in. The rest (data, augmentation, batch, thresholds) is shared.
OWN_PARTS = ("model", "optimizer", "loss", "seed")
OWN_STEPS = "total_steps"  # of config.train; the table says so where they differ
MARKER = "comparison.json"


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "config",
        None,
        "Config file with rows, configs/baselines.py; --config.KEY=VALUE applies to all rows.",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_string("out", None, "Folder of the comparison.", flag_values=values, required=True)
    flags.DEFINE_list("systems", ["all"], "Rows: all, or names with commas.", flag_values=values)
    flags.DEFINE_list("seeds", ["0"], "Seeds; one run for each.", flag_values=values)
    flags.DEFINE_bool("quick", False, "The reduced forms (NAME-quick).", flag_values=values)
    flags.DEFINE_string("split", "test", "Split to compare on.", flag_values=values)


def _separate(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(own flags, ``--config.KEY=VALUE`` overrides); a value may be a word of its own."""
    own, overrides = [], []
    words = iter(arguments)
    for word in words:
        if not word.startswith("--config."):
            own.append(word)
        elif "=" in word:
            overrides.append(word)
        else:
            overrides.append(f"{word}={next(words, '')}")
    return own, overrides


def _rows(path: str) -> tuple[tuple[str, ...], str, Mapping[str, Mapping[str, float]]]:
    """(names, reference, printed figures) of a config file that has rows."""
    source = vars(load_module(path))
    missing = [name for name in ("ROWS", "REFERENCE", "PAPER") if name not in source]
    if missing:
        raise UserError(
            f"{path} has no rows to compare ({', '.join(missing)} not defined)",
            "use configs/baselines.py (Table 1) or configs/ablations.py (Tables 2 to 4)",
        )
    return tuple(source["ROWS"]), source["REFERENCE"], source["PAPER"]


def _chosen(asked: Sequence[str], names: Sequence[str]) -> list[str]:
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


def _seeds(asked: Sequence[str]) -> list[int]:
    try:
        seeds = sorted({int(seed) for seed in asked})
        if seeds and seeds[0] >= 0:
            return seeds
    except ValueError:
        pass
    raise UserError(f"--seeds is {','.join(asked)!r}", "give whole numbers from 0, as in 0,1,2")


def _config(flags_of_row: Sequence[str]) -> Any:
    return parse(list(flags_of_row), with_config=True).config


def _check_shared(configs: Mapping[str, Any]) -> None:
    first, *others = configs
    for name in others:
        for part, value in _shared(configs[first]).items():
            if _shared(configs[name])[part] != value:
                raise UserError(
                    f"config.{part} of {name!r} differs from that of {first!r}",
                    f"rows of one table may differ in {', '.join(OWN_PARTS)} and "
                    f"train.{OWN_STEPS} only",
                )


def _shared(config: Any) -> dict[str, Any]:
    """What all rows of a table have in common."""
    parts = {part: value for part, value in config.to_dict().items() if part not in OWN_PARTS}
    return parts | {"train": {k: v for k, v in parts["train"].items() if k != OWN_STEPS}}


def _steps(configs: Mapping[str, Any]) -> str:
    """How many steps the rows take."""
    names: dict[int, list[str]] = {}
    for name, config in configs.items():
        names.setdefault(config.train.total_steps, []).append(name)
    if len(names) == 1:
        return f"{next(iter(names))} steps"
    return "; ".join(f"{steps} steps: {', '.join(names[steps])}" for steps in sorted(names))


def _open(out: Path, about: Mapping[str, Any]) -> None:
    """Create the folder, or check that it holds this comparison; more rows and seeds may come."""
    if (out / MARKER).exists():
        old = read_json(out / MARKER)
        changed = [key for key in about if old.get(key) != about[key]]
        if changed:
            what = "; ".join(f"{key} {old.get(key)!r} -> {about[key]!r}" for key in changed)
            raise UserError(
                f"{out} holds another comparison ({what})",
                "choose another --out, or repeat the command of that comparison",
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not the folder of a comparison", "choose another --out")
    write_json(out / MARKER, about)


def _run(config: Any, folder: RunFolder, split: str) -> None:
    """Train and evaluate one run, as far as that is not done."""
    suffix = "" if split == "test" else f"_{split}"
    if (folder.path / f"report{suffix}.html").exists():
        # The last file that is written; whether it is of this config is checked as in training.
        folder.check_config(config.to_dict())
        return
    train_and_evaluate(config, folder.path, evaluate_on=split)


def _one_line(error: Exception) -> str:
    text = error.cause if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


def _seconds_per_step(folders: Sequence[RunFolder], batch_size: int) -> float | None:
    """Median over the logged windows, without the first of each run, which includes compilation."""
    speeds: list[float] = []
    for folder in folders:
        rows = [row for row in folder.history() if row["split"] == "train"]
        speeds += [row["clips_per_second"] for row in rows[1:]]
    return batch_size / float(np.median(speeds)) if speeds else None


def _cost(config: Any) -> tuple[int, float]:
    """(parameters, forward GFLOP of a clip at inference)."""
    experiment = set_up(config, devices=parallel.devices(1))
    parameters = parameter_count(experiment.state_shapes().params)
    flops = forward_flops(dense_model(config.model), experiment.clip_shape, train=False)
    return parameters, flops / 1e9


def _area_change(config: Any, test: Predictions, split: str) -> System | None:
    """The row of area change alone; None where the cohort does not know it."""
    test_features = load_split(config.data, split).features
    if BASELINE_FEATURE not in test_features:
        return None
    validation = load_split(config.data, "validation")
    known = {"label": validation.label, "area_change": validation.features[BASELINE_FEATURE]}
    return area_change_system(known, test, test_features[BASELINE_FEATURE])


def main(arguments: list[str]) -> dict[str, Any]:
    """Run what is missing, row by row, and write the table anew after each.

    Raises:
        UserError: a mistake in the command; or, at the end and after the table is written, with
            exit code 4, systems that failed.
    """
    own, overrides = _separate(arguments)
    values = parse(own, _define)
    if found := find_cluster(os.environ):
        raise UserError(
            f"compare runs in one process, and {found.found_by} has started several",
            "start it in one (srun --ntasks=1), or train its rows with train.py",
        )
    names, reference, paper = _rows(values.config)
    systems, seeds = _chosen(values.systems, names), _seeds(values.seeds)
    out = Path(values.out).expanduser().resolve()

    def flags_of(name: str, seed: int) -> list[str]:
        row = f"{name}-quick" if values.quick else name
        return [f"--config={values.config}:{row}", *overrides, f"--config.seed={seed}"]

    configs = {name: _config(flags_of(name, seeds[0])) for name in systems}
    _check_shared(configs)
    costs = {}
    # Also finds what cannot work before a folder is made or anything is trained.
    for name, config in configs.items():
        costs[name] = _cost(config)
    shared = next(iter(configs.values()))
    for split in ("train", "validation", values.split):
        split_bytes(shared.data, split)
    about = {
        "config": values.config,
        "quick": values.quick,
        "split": values.split,
        **_shared(shared),
    }
    _open(out, json.loads(json.dumps(about)))

    failures: dict[str, str] = {}
    table: dict[str, Any] = {}
    # Seed by seed, so that an interrupted table has every system.
    work = [(seed, name) for seed in seeds for name in systems]
    for number, (seed, name) in enumerate(work, 1):
        print(f"[{number}/{len(work)}] {name}, seed {seed}", file=sys.stderr)
        if name in failures:
            continue
        folder = RunFolder(out / f"{name}-seed{seed}")
        try:
            _run(_config(flags_of(name, seed)), folder, values.split)
        except (UserError, jax.errors.JaxRuntimeError) as error:
            failures[name] = f"seed {seed}: {_one_line(error)}"
            print(f"{name} failed: {failures[name]}", file=sys.stderr)
        jax.clear_caches()  # the programs of this network are not needed again
        table = _tabulate(
            out,
            values,
            systems,
            seeds[: seeds.index(seed) + 1],
            configs,
            costs,
            failures,
            reference,
            paper,
        )
    print(markdown(table))
    print(f"table: {out / 'table.html'} (also .md, .csv, .json)")
    if failures:
        raise UserError(
            f"{len(failures)} of {len(systems)} systems failed: {', '.join(failures)}",
            "see the table for the causes; the same command tries them again and keeps the rest",
            exit_code=EXIT_FINDINGS,
        )
    return table


def _tabulate(
    out: Path,
    values: Any,
    systems: Sequence[str],
    seeds: Sequence[int],
    configs: Mapping[str, Any],
    costs: Mapping[str, tuple[int, float]],
    failures: Mapping[str, str],
    reference: str,
    paper: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Write the table of what is there so far and return it."""
    rows: list[System] = []
    config = next(iter(configs.values()))
    for name in systems:
        folders = [RunFolder(out / f"{name}-seed{seed}") for seed in seeds]
        scored = [
            ScoredRun(*read_predictions(path, split=values.split))
            for folder in folders
            if (path := folder.path / f"predictions_{values.split}.csv").exists()
        ]
        parameters, gflop = costs[name]
        failed = failures.get(name)
        rows.append(
            System(
                name,
                () if failed else tuple(scored),
                parameters,
                gflop,
                _seconds_per_step(folders, config.train.batch_size),
                failed or (None if scored else "not run yet"),
            )
        )
    notes = [
        "Thresholds are chosen on the validation split; the best checkpoint by validation AUC.",
        "p: paired DeLong test, two-sided; Holm: adjusted for all rows of the table.",
        "Parameters include parts that are used in training only.",
    ]
    done = [system for system in rows if system.runs]
    if done:
        area_change = _area_change(config, done[0].runs[0].predictions, values.split)
        if area_change is None:
            notes.append(
                f"The cohort does not know the {AREA_CHANGE.removesuffix(' alone')}, so "
                "there is no row for it."
            )
        else:
            rows.append(area_change)
            notes.append("Area change comes from the simulator, without measurement error.")
    table = compare(rows, reference=reference, paper=paper)
    kind = "reduced forms" if values.quick else "published sizes"
    steps = f"{_steps(configs)}, of {config.train.batch_size} clips"
    seeds_text = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    write_comparison(
        out,
        table,
        title=f"{Path(values.config).stem}: {kind}, {steps}",
        dataset=f"{dataset_line(config.data)}, split {values.split}, {seeds_text}",
        simulated=config.data.name == "phantom",
        notes=notes,
        provenance=provenance(SOURCE),
    )
    return table
