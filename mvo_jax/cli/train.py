"""``python train.py --config FILE.py --workdir FOLDER``: train, or go on with, one run."""

import dataclasses
import hashlib
import sys
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
    load_split,
    split_bytes,
)
from mvo_jax.evaluation.metrics import brier_score, roc_auc
from mvo_jax.evaluation.predict import Predictor
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.interop.convert import initial_variables
from mvo_jax.interop.weight_files import read_variables
from mvo_jax.training import distributed
from mvo_jax.training.loop import train
from mvo_jax.training.run_folder import RunFolder, write_json
from mvo_jax.training.setup import Experiment, set_up

GEOMETRY = "geometry.json"
SOURCE = Path(__file__).resolve().parents[2]


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values, required=True)
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


def _identity(split: AnySplit) -> str:
    """SHA-256 of which cases a split has, and where they are in memory of their images."""
    digest = hashlib.sha256("\n".join(split.case_id).encode() + split.label.tobytes())
    if not isinstance(split, StreamedSplit):
        digest.update(np.ascontiguousarray(split.video).data)
        digest.update(np.ascontiguousarray(split.lge_mask).data)
    return digest.hexdigest()


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


def main(arguments: list[str]) -> dict[str, Any]:
    """Train the run that the command line describes and return its summary."""
    values = parse(arguments, _define, with_config=True)
    with joined(values):
        return _train(values)


def _train(values: flags.FlagValues) -> dict[str, Any]:
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
    folder.open_for_training(config.to_dict(), SOURCE, about=about)
    # One process generates a simulated cohort.
    training = distributed.first_then_others(lambda: load_split(config.data, "train"))
    # Images that are predicted later must be made as these were, wherever the cohort is then.
    if distributed.is_first():
        write_json(folder.path / GEOMETRY, dataclasses.asdict(geometry_of(config.data)))
    validation = distributed.first_then_others(lambda: load_split(config.data, "validation"))
    check_patients_disjoint(training, validation)
    for split in (training, validation):
        distributed.check_same(
            {f"split {split.name!r}": _identity(split)}, "give all processes the same data"
        )
        if distributed.is_first():
            print(describe(split), file=sys.stderr)
    predict = Predictor(experiment, validation, batch_size=config.eval.batch_size, with_mask=True)
    summary = train(
        config,
        experiment,
        folder,
        training,
        validate=lambda variables: validation_metrics(predict(variables)),
        initial=initial,
    )
    if distributed.is_first():
        print(
            f"trained to step {summary['step']} in {summary['seconds']:.0f} s; best validation AUC "
            f"{summary['best_auc']:.4f} at step {summary['best_step']}; run folder {folder.path}"
        )
    return summary
