"""Several configs trained, evaluated and tabulated: the one engine of ``compare`` and ``study``.

A finished run is a small file (``evaluation/stored_run.py``), and every table is made of these
alone, anew after every run. The same call, repeated, does what is missing and takes in further rows
and seeds; several processes share the runs of a folder, each run under a lock.
"""

import contextlib
import dataclasses
import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np

from mvo_jax.data.splits import dataset_line, load_split, phantom_spec, split_bytes
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
from mvo_jax.evaluation.pages.study import PAGE, Page
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.stored_run import (
    StoredRun,
    check_config,
    read_stored_run,
    run_file,
    run_name,
    same_machine,
    take_over,
    write_stored_run,
)
from mvo_jax.files import cannot_write
from mvo_jax.one_run import cost, do_run
from mvo_jax.runs.folder import RunFolder, config_changes, provenance, read_json, write_json
from mvo_jax.training.setup import set_up

log = logging.getLogger(__name__)

# What rows may differ in. The rest (data, augmentation, batch, thresholds) is shared.
OWN_PARTS = ("model", "optimizer", "loss", "seed")
OWN_STEPS = "total_steps"  # of config.train; the table says so where they differ
SWEEP_PARTS = (*OWN_PARTS, "data", "train", "augment")
STUDY_PARTS = (*OWN_PARTS, "data", "train")  # the rows of a study also in data and steps
MARKER = "comparison.json"
_LOCKS = "locks"


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        configs: resolved configs by row and by seed.
        split: cases that the rows are compared on.
        reference: row that the others are tested against.
        paper: printed figures by row, in percent and millions.
        title: of the table; the numbers of steps and clips follow it.
        about: what else must be the same when more rows or seeds come to the same folder.
        own_parts: parts of the config that rows may differ in.
        keep_runs: keep the folders of finished runs, with checkpoints and reports.
        study: what the page of a study says beside its rows, kept in the file ``page.about`` of the
            folder; None makes the table of ``compare``.
        features: rows that are logistic models of features of the simulator, and no networks.
        same_as: rows that another study has too: its folder, beside that of this one, and the row.
        shuffled: rows whose labels, with their masks, are shuffled among the cases of the training
            and of the validation split.
        named: keep the names of cases and patients in the files of the runs.
    """

    configs: Mapping[str, Mapping[int, Any]]
    split: str
    reference: str
    paper: Mapping[str, Mapping[str, float]]
    title: str
    about: Mapping[str, Any]
    own_parts: tuple[str, ...] = OWN_PARTS
    keep_runs: bool = True
    study: Mapping[str, Any] | None = None
    page: Page = PAGE
    features: Mapping[str, Sequence[str]] = field(default_factory=dict)
    same_as: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    shuffled: frozenset[str] = frozenset()
    named: bool = False

    def first_configs(self) -> dict[str, Any]:
        """The config of each row's first seed."""
        return {name: next(iter(by_seed.values())) for name, by_seed in self.configs.items()}

    def work(self) -> list[tuple[int, str]]:
        """(seed, row) of every run, seed by seed, so that an interrupted table has every row."""
        seeds = dict.fromkeys(seed for by_seed in self.configs.values() for seed in by_seed)
        return [
            (seed, name) for seed in seeds for name in self.configs if seed in self.configs[name]
        ]


def run_comparison(
    comparison: Comparison, out: Path, *, opened: Callable[[], object] = lambda: None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Run what is missing, seed by seed and row by row, and write the table after each.

    Args:
        out: folder of the comparison; made where it is missing.
        opened: called once everything is checked and the folder is there: further processes may
            start on it then.

    Returns:
        The table and, by row, why it failed. A row that fails stops no other. Runs that another
        process is at are left to it.

    Raises:
        UserError: before anything is written: rows that differ in more than they may, a config or
            data that cannot work, or a folder that holds something else.
    """
    folder = _opened(comparison, out)
    opened()
    failures: dict[str, str] = {}
    table: dict[str, Any] = {}
    work = comparison.work()
    for number, (seed, name) in enumerate(work, 1):
        if name in failures:
            continue
        log.info(f"[{number}/{len(work)}] {name}, seed {seed}")
        try:
            with folder.claimed(name, seed) as claimed:
                if not claimed:
                    log.info(f"another process is at {name}, seed {seed}")
                elif not folder.is_done(name, seed):
                    run = folder.stored_elsewhere(name, seed)
                    run = run or folder.do(name, seed, out / run_name(name, seed))
                    write_stored_run(run_file(out, name, seed), run)
                    if not comparison.keep_runs:
                        shutil.rmtree(out / run_name(name, seed), ignore_errors=True)
        except (UserError, jax.errors.JaxRuntimeError) as error:
            failures[name] = f"seed {seed}: {_one_line(error)}"
            log.warning(f"{name} failed: {failures[name]}")
        jax.clear_caches()  # the programs of this network are not needed again
        if comparison.study is not None:
            table = comparison.page.write(out)
        else:
            seeds = list(dict.fromkeys(seed for seed, _ in work[:number]))
            table = folder.tabulate(seeds, failures)
    return table, failures


def missing_runs(comparison: Comparison, out: Path) -> list[str]:
    """Names of the runs that are not done yet, or are under way in another process."""
    return [
        run_name(name, seed)
        for seed, name in comparison.work()
        if not run_file(out, name, seed).exists()
    ]


def verify_runs(comparison: Comparison, out: Path, count: int) -> list[dict[str, Any]]:
    """Train ``count`` stored runs again, drawn at random, and compare their probabilities.

    Returns:
        For each: 'run', 'difference' (largest, of the scored split and validation), 'allowed' (0 on
        the same machine with the same versions, else 1e-5) and 'agrees'.

    Raises:
        UserError: nothing is stored, or a run cannot be repeated.
    """
    opened = _opened(comparison, out)
    stored = [
        (seed, name) for seed, name in comparison.work() if run_file(out, name, seed).exists()
    ]
    if not stored:
        raise UserError(f"{out} holds no finished run", "train some first, without --verify")
    results = []
    for seed, name in random.sample(stored, min(count, len(stored))):
        log.info(f"training {name}, seed {seed}, again")
        path, run = run_file(out, name, seed), run_name(name, seed)
        before = read_stored_run(path)
        check_config(before, comparison.configs[name][seed], path)
        folder = out / "verify" / run
        shutil.rmtree(folder, ignore_errors=True)
        again = opened.do(name, seed, folder)
        shutil.rmtree(folder, ignore_errors=True)
        jax.clear_caches()
        pairs = ((before.scored, again.scored), (before.validation, again.validation))
        if any(a.cases != b.cases for a, b in pairs):
            raise UserError(
                f"{run} was scored on other cases than these",
                "the data of the study have changed; start again in another --out",
            )
        difference = max(float(np.abs(a.probability - b.probability).max()) for a, b in pairs)
        allowed = 0.0 if same_machine(before.provenance, again.provenance) else 1e-5
        agrees = difference <= allowed
        results.append({"run": run, "difference": difference, "allowed": allowed, "agrees": agrees})
    return results


def _check(comparison: Comparison) -> dict[str, tuple[int, float]]:
    """Find what cannot work before a folder is made or anything is trained; the rows' costs."""
    configs = comparison.first_configs()
    first, *others = configs
    for name in others:
        wanted, given = (_shared(configs[one], comparison.own_parts) for one in (first, name))
        for part, value in wanted.items():
            if given[part] != value:
                raise UserError(
                    f"config.{part} of {name!r} differs from that of {first!r}",
                    f"rows of one table may differ in {', '.join(comparison.own_parts)} and "
                    f"train.{OWN_STEPS} only",
                )
    _check_same_cases(comparison, configs)
    costs: dict[str, tuple[int, float]] = {}
    known: dict[str, tuple[int, float]] = {}
    for name, config in configs.items():
        for split in ("train", "validation", comparison.split):
            split_bytes(config.data, split)
        if name in comparison.features:
            continue
        key = json.dumps([config.model.to_dict(), config.data.frames, config.data.image_size])
        if key not in known:
            known[key] = cost(config)
        else:
            set_up(config, devices=parallel.devices(1))
        costs[name] = known[key]
    return costs


def _check_same_cases(comparison: Comparison, configs: Mapping[str, Any]) -> None:
    """Check that rows which are tested against each other are scored on the same cases."""
    references = (comparison.study or {}).get("references", {})
    pairs = [(row, against) for row in references for against in references[row]]
    for name, other in pairs:
        if name not in configs or other not in configs:
            continue
        ours, theirs = (_scored(configs[one].data, comparison.split) for one in (name, other))
        if changed := [key for key, value in ours.items() if theirs.get(key) != value]:
            key = changed[0]
            raise UserError(
                f"{name!r} is tested against {other!r}, and data.{key} differs ({ours[key]!r}, "
                f"{theirs.get(key)!r}): they are scored on different cases",
                "test rows against each other that have the same cases, or leave that test out",
            )


def _scored(data: Any, split: str) -> dict[str, Any]:
    """What decides which cases a row is scored on."""
    if data.name == "cohort":
        keys = ("dir", "fold", "folds")
        return {"name": data.name, **{key: data.get(key, 0) for key in keys}}
    spec = dataclasses.asdict(phantom_spec(data).holding(split))
    for key in ("frames", "image_size", "misregistration_mm"):  # the same patients all the same
        del spec[key]
    return {"name": data.name, **spec}


def _shared(config: Any, own_parts: Sequence[str]) -> dict[str, Any]:
    """What all rows of a table have in common."""
    parts = {part: value for part, value in config.to_dict().items() if part not in own_parts}
    if "train" in parts:
        parts["train"] = {k: v for k, v in parts["train"].items() if k != OWN_STEPS}
    return parts


def _opened(comparison: Comparison, out: Path) -> "_Opened":
    """Create the folder, or check that it holds this comparison; more rows and seeds may come."""
    costs = _check(comparison)
    shared = _shared(next(iter(comparison.first_configs().values())), comparison.own_parts)
    about = json.loads(json.dumps({**comparison.about, "split": comparison.split}))
    if (out / MARKER).exists():
        old = read_json(out / MARKER)
        changed = [
            f"{key} {old.get(key)!r} -> {value!r}"
            for key, value in about.items()
            if old.get(key) != value
        ]
        changed += config_changes({part: old[part] for part in shared if part in old}, shared)
        if changed:
            what = "; ".join(changed)
            raise UserError(
                f"{out} holds another comparison ({what})",
                "choose another --out, or repeat the command of that comparison",
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not the folder of a comparison", "choose another --out")
    else:
        write_json(out / MARKER, {**about, **shared})
    if comparison.study is not None:
        write_json(out / comparison.page.about, {**comparison.study, "paper": comparison.paper})
    return _Opened(comparison, out, costs)


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


def _area_change(config: Any, test: Predictions, split: str) -> System | None:
    """The row of area change alone; None where the cohort does not know it."""
    test_features = load_split(config.data, split).features
    if BASELINE_FEATURE not in test_features:
        return None
    validation = load_split(config.data, "validation")
    known = {"label": validation.label, "area_change": validation.features[BASELINE_FEATURE]}
    return area_change_system(known, test, test_features[BASELINE_FEATURE])


@dataclass(frozen=True)
class _Opened:
    """A comparison in its folder, with the costs of its rows."""

    comparison: Comparison
    out: Path
    costs: Mapping[str, tuple[int, float]]

    @contextlib.contextmanager
    def claimed(self, name: str, seed: int) -> Iterator[bool]:
        """Whether this process may do a run; no other may meanwhile. The kernel ends the lock."""
        path = self.out / _LOCKS / f"{run_name(name, seed)}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False)
            lock.acquire(blocking=False)
        except filelock.Timeout:
            yield False
            return
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            yield True
        finally:
            lock.release()

    def is_done(self, name: str, seed: int) -> bool:
        """Whether a run is finished, and of this config."""
        path, split = run_file(self.out, name, seed), self.comparison.split
        if not path.exists():
            return False
        check_config(read_stored_run(path), self.comparison.configs[name][seed], path)
        if not self.comparison.keep_runs or name in self.comparison.features:
            return True
        # The last file that an evaluation writes.
        suffix = "" if split == "test" else f"_{split}"
        return (self.out / run_name(name, seed) / f"report{suffix}.html").exists()

    def stored_elsewhere(self, name: str, seed: int) -> StoredRun | None:
        if name not in self.comparison.same_as or self.comparison.keep_runs:
            return None
        study, row = self.comparison.same_as[name]
        path = run_file(self.out.parent / study, row, seed)
        return take_over(path, name, self.comparison.configs[name][seed], self.comparison.split)

    def do(self, name: str, seed: int, folder: Path) -> StoredRun:
        return do_run(
            self.comparison.configs[name][seed],
            RunFolder(folder),
            name=name,
            split=self.comparison.split,
            cost=self.costs.get(name),
            features=self.comparison.features.get(name, ()),
            shuffled=name in self.comparison.shuffled,
            named=self.comparison.named,
        )

    def tabulate(self, seeds: Sequence[int], failures: Mapping[str, str]) -> dict[str, Any]:
        """Write the table of what is there so far and return it."""
        comparison, out = self.comparison, self.out
        configs, split = comparison.first_configs(), comparison.split
        config = next(iter(configs.values()))
        rows: list[System] = []
        for name in configs:
            failed = failures.get(name)
            stored = [run_file(out, name, seed) for seed in seeds]
            runs = [read_stored_run(path) for path in stored if path.exists() and not failed]
            scored = [ScoredRun(run.scored.predictions(split), run.threshold) for run in runs]
            speeds = [run.seconds_per_step for run in runs if run.seconds_per_step is not None]
            speed = float(np.median(speeds)) if speeds else None
            failed = failed or (None if scored else "not run yet")
            rows.append(System(name, tuple(scored), *self.costs[name], speed, failed))
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
