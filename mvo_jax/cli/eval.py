"""``python eval.py --workdir FOLDER``: predictions, metrics and report of a trained run."""

import dataclasses
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from mvo_jax.cli.flags import config_from_json, define_process_flags, joined, parse
from mvo_jax.cli.train import SOURCE, describe
from mvo_jax.data.splits import AnySplit, check_patients_disjoint, load_split
from mvo_jax.errors import UserError
from mvo_jax.evaluation.figures import CaseRecord, pick_cases
from mvo_jax.evaluation.metrics import OneClassWarning, choose_threshold
from mvo_jax.evaluation.predict import Predictor
from mvo_jax.evaluation.predictions import (
    Predictions,
    write_patient_predictions,
    write_predictions,
)
from mvo_jax.evaluation.report import PatientLevel, summarise, write_report, write_summary
from mvo_jax.evaluation.statistics import PATIENT_RULES, by_patient
from mvo_jax.training import distributed, parallel
from mvo_jax.training.checkpoint import Checkpoints
from mvo_jax.training.run_folder import RunFolder, provenance
from mvo_jax.training.setup import set_up


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values, required=True)
    flags.DEFINE_string(
        "split",
        "test",
        "Split to evaluate: test, test_large, validation, train.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "checkpoint", "best", ["best", "latest"], "Which checkpoint.", flag_values=values
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Where the data lie now, if not where the run had them.",
        flag_values=values,
    )
    define_process_flags(values)


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """What was chosen on the validation split: for slices, and for patients."""

    value: float
    origin: str
    patients: PatientLevel


def choose_thresholds(config: Any, validation: Predictions) -> Thresholds:
    """Choose the decision thresholds of a run.

    Args:
        config: of the run.
        validation: predictions of the validation split.

    Raises:
        UserError: ``config.eval`` names a rule that does not exist.
    """
    aggregation = config.eval.patient_aggregation
    if aggregation not in PATIENT_RULES:
        raise UserError(
            f"config.eval.patient_aggregation is {aggregation!r}, which does not exist",
            f"choose from {', '.join(PATIENT_RULES)}",
        )
    rule = config.eval.threshold_rule
    patients = by_patient(validation, aggregation)
    with warnings.catch_warnings():
        # Said once, by the summary of the evaluated split.
        warnings.simplefilter("ignore", OneClassWarning)
        try:
            one = choose_threshold(validation.label, validation.probability, rule=rule)
            other = choose_threshold(patients.label, patients.probability, rule=rule)
        except ValueError as error:
            raise UserError(f"config.eval.threshold_rule: {error}", "set one of those") from error
    slices = len(validation) / len(patients)
    patient_level = PatientLevel(
        rule=aggregation,
        threshold=other.value,
        threshold_origin=f"{other.origin}, by patient ({aggregation} of {slices:.3g} slices each)",
    )
    return Thresholds(one.value, one.origin, patient_level)


def _gallery(split: AnySplit, predictions: Predictions, threshold: float) -> list[CaseRecord]:
    masks, targets = predictions.coarse_mask, predictions.coarse_target
    picked = pick_cases(predictions, threshold)
    clips = split.read([i for i, _ in picked])
    return [
        CaseRecord(
            case_id=split.case_id[i],
            video=clips["video"][row, ..., 0],
            label=int(split.label[i]),
            probability=float(predictions.probability[i]),
            lge_mask=clips["lge_mask"][row],
            coarse_target=None if targets is None else targets[i],
            coarse_mask=None if masks is None else masks[i],
            role=role,
        )
        for row, (i, role) in enumerate(picked)
    ]


def evaluate(
    folder: RunFolder, *, split: str = "test", checkpoint: str = "best", data_dir: str | None = None
) -> dict[str, Any]:
    """Evaluate one checkpoint of a run on one split and write everything beside it.

    The thresholds are chosen on the validation split; the evaluated split is scored once. Several
    processes share the cases, and the first one writes
    ``predictions_SPLIT.csv``, ``metrics.json`` and ``report.html`` for the test split, and
    ``metrics_SPLIT.json`` and ``report_SPLIT.html`` for others; where a patient has several slices
    ``predictions_patients_SPLIT.csv`` too.

    Args:
        folder: a trained run.
        split: split to evaluate.
        checkpoint: 'best' (validation AUC) or 'latest'.
        data_dir: replaces ``config.data.dir``.

    Returns:
        The content of ``metrics.json``.

    Raises:
        UserError: no run, no checkpoint, or data that cannot be read.
    """
    config = config_from_json(folder.config())
    if data_dir is not None:
        config.data.dir = data_dir
    # Inference gains little from many devices; of several processes each takes a share.
    experiment = set_up(config, devices=parallel.devices(distributed.count()), train=False)
    checkpoints = Checkpoints(folder.path, create=False)
    variables, step = checkpoints.restore_variables(experiment.state_shapes(), checkpoint)

    def load(name: str) -> AnySplit:
        return distributed.first_then_others(lambda: load_split(config.data, name))

    evaluated = load(split)
    chosen_on = evaluated if split == "validation" else load("validation")
    if split != "validation":
        check_patients_disjoint(chosen_on, evaluated)
    if distributed.is_first():
        print(describe(evaluated), file=sys.stderr)

    def predict(on: AnySplit) -> Predictions:
        run = Predictor(experiment, on, batch_size=config.eval.batch_size, with_mask=True)
        return run(variables)

    chosen = choose_thresholds(config, predict(chosen_on))
    threshold = chosen.value
    predictions = predict(evaluated)
    history = folder.history()
    summary = summarise(
        predictions,
        threshold=threshold,
        threshold_origin=chosen.origin,
        features=evaluated.features or None,
        training_history=history,
        patients=chosen.patients,
    )
    summary["checkpoint"] = {"which": checkpoint, "step": step}
    if not distributed.is_first():
        return summary  # all processes have the same; one writes it

    suffix = "" if split == "test" else f"_{split}"
    write_predictions(folder.path / f"predictions_{split}.csv", predictions, threshold)
    if summary["patient_level"] is not None:
        write_patient_predictions(
            folder.path / f"predictions_patients_{split}.csv",
            by_patient(predictions, chosen.patients.rule),
            predictions,
            chosen.patients.threshold,
        )
    write_summary(folder.path / f"metrics{suffix}.json", summary)
    simulated = config.data.name == "phantom"
    write_report(
        folder.path / f"report{suffix}.html",
        summary=summary,
        predictions=predictions,
        cases=_gallery(evaluated, predictions, threshold),
        history=history,
        config_text=str(config),
        provenance={"checkpoint": f"{checkpoint}, step {step}", **provenance(SOURCE)},
        dataset=dataset_line(config.data),
        simulated=simulated,
    )
    return summary


def dataset_line(data: Any) -> str:
    """One line on the cohort that a config names."""
    if data.name == "cohort":
        from mvo_jax.data.cohort.storage import open_cohort  # imports TFDS

        folds = open_cohort(data.dir).folds
        fold = f", test fold {data.fold} of 0 to {folds - 1}" if folds else ""
        return f"prepared cohort {Path(data.dir).name!r}{fold}"
    return f"simulated cohort, preset {data.preset!r}, seed {data.seed}, size {data.size!r}"


def main(arguments: list[str]) -> dict[str, Any]:
    """Evaluate the run that the command line names; print the headline and the report's path."""
    values = parse(arguments, _define)
    with joined(values):
        return _evaluate(values)


def _evaluate(values: flags.FlagValues) -> dict[str, Any]:
    folder = RunFolder(values.workdir)
    summary = evaluate(
        folder, split=values.split, checkpoint=values.checkpoint, data_dir=values.data_dir
    )
    if not distributed.is_first():
        return summary
    suffix = "" if values.split == "test" else f"_{values.split}"
    print(f"report: {Path(folder.path) / f'report{suffix}.html'}")
    _print_auc(f"{values.split} AUC", summary["metrics"]["auc"])
    if summary["patient_level"] is not None:
        _print_auc(f"{values.split} AUC by patient", summary["patient_level"]["metrics"]["auc"])
    elif summary["patients"] == summary["cases"]:
        print("every patient has one slice: results by patient are the same")
    return summary


def _print_auc(name: str, auc: Mapping[str, Any]) -> None:
    if auc["value"] is None:
        print(f"{name} is not defined: the split has one class")
    elif auc["low"] is None:
        print(f"{name} {auc['value']:.4f} (no interval: a class has one case)")
    else:
        print(f"{name} {auc['value']:.4f} (95 % interval {auc['low']:.4f} to {auc['high']:.4f})")
