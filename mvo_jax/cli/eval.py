"""``python eval.py --workdir FOLDER``: predictions, metrics and report of a trained run."""

import sys
import warnings
from pathlib import Path
from typing import Any

from absl import flags

from mvo_jax.cli.flags import config_from_json, parse
from mvo_jax.cli.train import SOURCE, describe
from mvo_jax.data.splits import Split, check_patients_disjoint, load_split
from mvo_jax.errors import UserError
from mvo_jax.evaluation.figures import CaseRecord, pick_cases
from mvo_jax.evaluation.metrics import OneClassWarning, choose_threshold
from mvo_jax.evaluation.predict import Predictor
from mvo_jax.evaluation.predictions import Predictions, write_predictions
from mvo_jax.evaluation.report import summarise, write_report, write_summary
from mvo_jax.training import parallel
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


def _threshold(rule: str, predictions: Predictions) -> tuple[float, str]:
    try:
        chosen = choose_threshold(predictions.label, predictions.probability, rule=rule)
    except ValueError as error:
        raise UserError(f"config.eval.threshold_rule: {error}", "set one of those") from error
    return chosen.value, chosen.origin


def _gallery(split: Split, predictions: Predictions, threshold: float) -> list[CaseRecord]:
    masks, targets = predictions.coarse_mask, predictions.coarse_target
    return [
        CaseRecord(
            case_id=split.case_id[i],
            video=split.video[i, ..., 0],
            label=int(split.label[i]),
            probability=float(predictions.probability[i]),
            lge_mask=split.lge_mask[i],
            coarse_target=None if targets is None else targets[i],
            coarse_mask=None if masks is None else masks[i],
            role=role,
        )
        for i, role in pick_cases(predictions, threshold)
    ]


def evaluate(
    folder: RunFolder, *, split: str = "test", checkpoint: str = "best", data_dir: str | None = None
) -> dict[str, Any]:
    """Evaluate one checkpoint of a run on one split and write everything beside it.

    The threshold is chosen on the validation split; the evaluated split is scored once. Writes
    ``predictions_SPLIT.csv``, ``metrics.json`` and ``report.html`` for the test split, and
    ``metrics_SPLIT.json`` and ``report_SPLIT.html`` for others.

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
    # Inference needs no divisible batch and gains little from many devices.
    experiment = set_up(config, devices=parallel.devices(1))
    checkpoints = Checkpoints(folder.path, create=False)
    variables, step = checkpoints.restore_variables(experiment.state_shapes(), checkpoint)

    evaluated = load_split(config.data, split)
    chosen_on = evaluated if split == "validation" else load_split(config.data, "validation")
    if split != "validation":
        check_patients_disjoint(chosen_on, evaluated)
    print(describe(evaluated), file=sys.stderr)

    def predict(on: Split) -> Predictions:
        run = Predictor(experiment, on, batch_size=config.eval.batch_size, with_mask=True)
        return run(variables)

    with warnings.catch_warnings():
        # Said once, by the summary of the evaluated split.
        warnings.simplefilter("ignore", OneClassWarning)
        threshold, origin = _threshold(config.eval.threshold_rule, predict(chosen_on))
    predictions = predict(evaluated)
    history = folder.history()
    summary = summarise(
        predictions,
        threshold=threshold,
        threshold_origin=origin,
        features=evaluated.features or None,
        training_history=history,
    )
    summary["checkpoint"] = {"which": checkpoint, "step": step}

    suffix = "" if split == "test" else f"_{split}"
    write_predictions(folder.path / f"predictions_{split}.csv", predictions, threshold)
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
    if data.name != "phantom":
        return str(data.name)
    return f"simulated cohort, preset {data.preset!r}, seed {data.seed}, size {data.size!r}"


def main(arguments: list[str]) -> dict[str, Any]:
    """Evaluate the run that the command line names; print the headline and the report's path."""
    values = parse(arguments, _define)
    folder = RunFolder(values.workdir)
    summary = evaluate(
        folder, split=values.split, checkpoint=values.checkpoint, data_dir=values.data_dir
    )
    auc = summary["metrics"]["auc"]
    suffix = "" if values.split == "test" else f"_{values.split}"
    print(f"report: {Path(folder.path) / f'report{suffix}.html'}")
    if auc["value"] is None:
        print(f"{values.split} AUC is not defined: the split has one class")
    else:
        print(
            f"{values.split} AUC {auc['value']:.4f} "
            f"(95 % interval {auc['low']:.4f} to {auc['high']:.4f})"
        )
    return summary
