"""Several configs trained, evaluated and tabulated: rows and seeds, each run in its own folder.

The same call, repeated, keeps what is finished, goes on with what is not and takes in further rows
and seeds. The table is written anew after every run, so that an interrupted comparison has one.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mvo_jax.data.splits import dataset_line, load_split, split_bytes
from mvo_jax.devices import parallel
from mvo_jax.errors import UserError
from mvo_jax.evaluation.pages.comparison import (
    AREA_CHANGE,
    ScoredRun,
    System,
    area_change_system,
    compare,
    write_comparison,
)
from mvo_jax.evaluation.pages.report import BASELINE_FEATURE
from mvo_jax.evaluation.predictions import Predictions, read_predictions
from mvo_jax.models.cost import forward_flops, parameter_count
from mvo_jax.models.registry import dense_model
from mvo_jax.run import train_and_evaluate
from mvo_jax.runs.folder import RunFolder, provenance, read_json, write_json
from mvo_jax.training.setup import set_up

log = logging.getLogger(__name__)

# What rows may differ in. The rest (data, augmentation, batch, thresholds) is shared.
OWN_PARTS = ("model", "optimizer", "loss", "seed")
OWN_STEPS = "total_steps"  # of config.train; the table says so where they differ
MARKER = "comparison.json"


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        configs: resolved configs by row and by seed; every row has the same seeds.
        split: cases that the rows are compared on.
        reference: row that the others are tested against.
        paper: printed figures by row, in percent and millions.
        title: of the table; the numbers of steps and clips follow it.
        about: what else must be the same when more rows or seeds come to the same folder.
    """

    configs: Mapping[str, Mapping[int, Any]]
    split: str
    reference: str
    paper: Mapping[str, Mapping[str, float]]
    title: str
    about: Mapping[str, Any]

    def first_configs(self) -> dict[str, Any]:
        """The config of each row's first seed."""
        return {name: next(iter(by_seed.values())) for name, by_seed in self.configs.items()}


def run_comparison(comparison: Comparison, out: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Run what is missing, seed by seed and row by row, and write the table after each.

    Args:
        comparison: what to compare.
        out: folder of the comparison; made where it is missing.

    Returns:
        The table (see ``evaluation.pages.comparison.compare``) and, by row, why it failed. A row
        that fails stops no other.

    Raises:
        UserError: before anything is written: rows that differ in more than they may, a config or
            data that cannot work, or a folder that holds something else.
    """
    configs = comparison.first_configs()
    _check_shared(configs)
    # Also finds what cannot work before a folder is made or anything is trained.
    costs = {name: _cost(config) for name, config in configs.items()}
    shared = next(iter(configs.values()))
    for split in ("train", "validation", comparison.split):
        split_bytes(shared.data, split)
    about = {**comparison.about, "split": comparison.split, **_shared(shared)}
    _open(out, json.loads(json.dumps(about)))

    failures: dict[str, str] = {}
    table: dict[str, Any] = {}
    seeds = list(next(iter(comparison.configs.values())))
    # Seed by seed, so that an interrupted table has every system.
    work = [(seed, name) for seed in seeds for name in comparison.configs]
    for number, (seed, name) in enumerate(work, 1):
        log.info(f"[{number}/{len(work)}] {name}, seed {seed}")
        if name in failures:
            continue
        config = comparison.configs[name][seed]
        try:
            _run(config, RunFolder(_folder(out, name, seed)), comparison.split)
        except (UserError, jax.errors.JaxRuntimeError) as error:
            failures[name] = f"seed {seed}: {_one_line(error)}"
            log.warning(f"{name} failed: {failures[name]}")
        jax.clear_caches()  # the programs of this network are not needed again
        table = _tabulate(comparison, out, seeds[: seeds.index(seed) + 1], costs, failures)
    return table, failures


def _folder(out: Path, name: str, seed: int) -> Path:
    return out / f"{name}-seed{seed}"


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


def _steps(configs: Mapping[str, Any]) -> str:
    """How many steps the rows take."""
    names: dict[int, list[str]] = {}
    for name, config in configs.items():
        names.setdefault(config.train.total_steps, []).append(name)
    if len(names) == 1:
        return f"{next(iter(names))} steps"
    return "; ".join(f"{steps} steps: {', '.join(names[steps])}" for steps in sorted(names))


def _seconds_per_step(folders: Sequence[RunFolder], batch_size: int) -> float | None:
    """Median over the logged windows, without the first of each run, which includes compilation."""
    speeds: list[float] = []
    for folder in folders:
        rows = [row for row in folder.history() if row["kind"] == "train"]
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


def _tabulate(
    comparison: Comparison,
    out: Path,
    seeds: Sequence[int],
    costs: Mapping[str, tuple[int, float]],
    failures: Mapping[str, str],
) -> dict[str, Any]:
    """Write the table of what is there so far and return it."""
    configs, split = comparison.first_configs(), comparison.split
    config = next(iter(configs.values()))
    rows: list[System] = []
    for name in configs:
        folders = [RunFolder(_folder(out, name, seed)) for seed in seeds]
        tables = [folder.path / f"predictions_{split}.csv" for folder in folders]
        failed = failures.get(name)
        scored = [
            ScoredRun(*read_predictions(path, split=split))
            for path in tables
            if path.exists() and not failed
        ]
        speed = _seconds_per_step(folders, config.train.batch_size)
        failed = failed or (None if scored else "not run yet")
        rows.append(System(name, tuple(scored), *costs[name], speed, failed))
    notes = [
        "Thresholds are chosen on the validation split; the best checkpoint by validation AUC.",
        "p: paired DeLong test, two-sided; Holm: adjusted for all rows of the table.",
        "Parameters include parts that are used in training only.",
    ]
    done = [system for system in rows if system.runs]
    if done:
        area_change = _area_change(config, done[0].runs[0].predictions, split)
        if area_change is None:
            feature = AREA_CHANGE.removesuffix(" alone")
            notes.append(f"The cohort does not know the {feature}, so there is no row for it.")
        else:
            rows.append(area_change)
            notes.append("Area change comes from the simulator, without measurement error.")
    table = compare(rows, reference=comparison.reference, paper=comparison.paper)
    seeds_text = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    write_comparison(
        out,
        table,
        title=f"{comparison.title}, {_steps(configs)}, of {config.train.batch_size} clips",
        dataset=f"{dataset_line(config.data)}, split {split}, {seeds_text}",
        simulated=config.data.name == "phantom",
        notes=notes,
        provenance=provenance(),
    )
    return table
