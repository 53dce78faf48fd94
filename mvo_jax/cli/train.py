"""``python train.py --config FILE.py --workdir FOLDER``: train, or go on with, one run."""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from mvo_jax.cli.flags import define_process_flags, joined, parse
from mvo_jax.data.clips import geometry_of
from mvo_jax.data.splits import (
    AnySplit,
    StreamedSplit,
    check_patients_disjoint,
    content_hash,
    load_split,
    split_bytes,
)
from mvo_jax.evaluation.metrics import brier_score, roc_auc
from mvo_jax.evaluation.predict import Predictor
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.interop.convert import initial_variables
from mvo_jax.interop.weight_files import read_variables
from mvo_jax.training import distributed
from mvo_jax.training.goodput import Clock
from mvo_jax.training.interruption import Interruption
from mvo_jax.training.loop import train
from mvo_jax.training.run_folder import RunFolder, write_json
from mvo_jax.training.run_lock import RunLock
from mvo_jax.training.setup import Experiment, set_up
from mvo_jax.training.watchdog import Watchdog

GEOMETRY = "geometry.json"
SOURCE = Path(__file__).resolve().parents[2]


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values, required=True)
    flags.DEFINE_integer(
        "profile",
        0,
        "Steps to trace into WORKDIR/profile, for TensorBoard or XProf.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_bool(
        "allow_config_change", False, "Go on with a run under another config.", flag_values=values
    )
    flags.DEFINE_bool(
        "allow_data_change", False, "Go on with a run on other data.", flag_values=values
    )
    define_process_flags(values)


def describe(split: AnySplit) -> str:
    """One line on a split: cases, patients, positives, memory and where the images are."""
    streamed = ", read from disk" if isinstance(split, StreamedSplit) else ""
    return (
        f"{split.name}: {len(split.label)} cases of {len(set(split.patient_id))} patients, "
        f"{int(np.sum(split.label))} with MVO, {split.size_bytes / 1e6:.1f} MB{streamed}"
    )


def validation_metrics(predictions: Predictions) -> Mapping[str, float]:
    """What is logged of the validation split: AUC, Brier score, coarse-mask error."""
    metrics = {
        "auc": roc_auc(predictions.label, predictions.probability, split=predictions.split),
        "brier": brier_score(predictions.label, predictions.probability),
    }
    if predictions.coarse_mask is not None and predictions.coarse_target is not None:
        error = predictions.coarse_mask - predictions.coarse_target
        metrics["mask_mse"] = float(np.mean(np.square(error)))
    return metrics


def _initial(path: str, experiment: Experiment) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables that ``config.init_from`` names, and what the run folder keeps about them."""
    file = read_variables(Path(path).expanduser())
    state = experiment.state_shapes()
    variables, parts, rest = initial_variables(file, state.eval_variables(), source=path)
    from_seed = f"; from the seed: {', '.join(rest)}" if rest else ""
    if distributed.is_first():
        print(f"starting from {path}: {', '.join(parts)}{from_seed}", file=sys.stderr)
    about = {"sha256": file.sha256, "parts": parts, **file.provenance}
    return variables, {"init_from": about}


def _process_age() -> float:
    """Seconds since this process began: imports belong to what a start costs."""
    try:
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):  # not Linux
        return 0.0


def main(arguments: list[str], *, own_process: bool = True) -> dict[str, Any]:
    """Train the run that the command line describes and return its summary.

    Args:
        arguments: command line after the verb.
        own_process: the process was started for this run, so its age is part of the run's time.

    Raises:
        UserError: see ``training.loop.train``; also a mistake in the command or the data, and a run
            folder that another process trains in.
        RunInterrupted: a signal asked the run to stop, and it has saved.
    """
    clock = Clock(before=_process_age() if own_process else 0.0)
    with Interruption() as interruption:
        values = parse(arguments, _define, with_config=True)
        with joined(values):
            return _train(values, clock, interruption)


def _train(values: Any, clock: Clock, interruption: Interruption) -> dict[str, Any]:
    config, folder = values.config, RunFolder(values.workdir)
    experiment = set_up(config)
    for name in ("train", "validation"):
        split_bytes(config.data, name)  # a cohort that cannot be must not leave a folder behind
    distributed.check_same(
        {"config": config.to_dict(), "versions": distributed.versions()},
        "start all processes with one command and one installation",
    )
    initial, about = None, {}
    if config.init_from and not folder.has_checkpoint():
        initial, about = _initial(config.init_from, experiment)
    distributed.first_then_others(folder.create)
    with contextlib.ExitStack() as held:
        # The first of several processes holds the folder for all.
        lock = None
        if distributed.is_first():
            lock = held.enter_context(RunLock(folder.path))
        held.enter_context(
            Watchdog(
                clock,
                folder.path,
                seconds=config.train.watchdog_seconds,
                leave=config.train.watchdog_leaves,
                record=lock.record if lock else lambda row: None,
            )
        )
        folder.open_for_training(
            config.to_dict(),
            SOURCE,
            about=about,
            allow_config_change=values.allow_config_change,
        )
        # One process generates a simulated cohort.
        training = distributed.first_then_others(lambda: load_split(config.data, "train"))
        # Images predicted later must be made as these were, wherever the cohort is then.
        if distributed.is_first():
            write_json(folder.path / GEOMETRY, dataclasses.asdict(geometry_of(config.data)))
        validation = distributed.first_then_others(lambda: load_split(config.data, "validation"))
        check_patients_disjoint(training, validation)
        data = {split.name: content_hash(split) for split in (training, validation)}
        distributed.check_same({"content of data": data}, "give all processes the same data")
        folder.note({"data": data})
        if distributed.is_first():
            for split in (training, validation):
                print(describe(split), file=sys.stderr)
        predict = Predictor(
            experiment, validation, batch_size=config.eval.batch_size, with_mask=True
        )
        summary = train(
            config,
            experiment,
            folder,
            training,
            validate=lambda variables: validation_metrics(predict(variables)),
            initial=initial,
            profile_steps=values.profile,
            data=data,
            allow_config_change=values.allow_config_change,
            allow_data_change=values.allow_data_change,
            interruption=interruption,
            clock=clock,
            lock=lock,
        )
    if distributed.is_first():
        print(
            f"trained to step {summary['step']} in {summary['seconds']:.0f} s; best validation AUC "
            f"{summary['best_auc']:.4f} at step {summary['best_step']}; run folder {folder.path}"
        )
    return summary
