"""``mvo-jax eval --workdir FOLDER``: predictions, metrics and report of a trained run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvo_jax.cli.flags import Flags, define_process_flags, joined, parse
from mvo_jax.errors import UserError


def _define(values: Flags) -> None:
    values.string("workdir", None, "Folder of the run.", required=True)
    values.string("split", "test", "Split to evaluate: test, test_large, validation, train.")
    values.enum("checkpoint", "best", ["best", "latest"], "Which checkpoint.")
    values.string("data_dir", None, "Where the data lie now, if not where the run had them.")
    size = "Clips a batch, in place of config.eval.batch_size."
    values.integer("batch_size", None, size, lower_bound=1)
    values.string("out", None, "Folder for the files, in place of the run's own.")
    define_process_flags(values)


def main(arguments: list[str]) -> dict[str, Any]:
    """Evaluate the run that the command line names; print the headline and the report's path."""
    values = parse(arguments, _define)
    if values.data_dir is not None and not Path(values.data_dir).is_dir():
        # A simulated cohort would otherwise be made anew in a folder that was misspelt.
        raise UserError(
            f"--data_dir names {values.data_dir}, which is no folder",
            "give the folder that holds the data of the run",
        )
    from mvo_jax.devices import distributed
    from mvo_jax.run import evaluate

    with joined(values):
        summary = evaluate(
            values.workdir,
            split=values.split,
            checkpoint=values.checkpoint,
            data_dir=values.data_dir,
            batch_size=values.batch_size,
            out=values.out,
        )
        if distributed.is_first():
            _print(values, summary)
    return summary


def _print(values: Flags, summary: Mapping[str, Any]) -> None:
    from mvo_jax.run import report_suffix

    suffix = report_suffix(values.split, values.checkpoint)
    folder = Path(values.workdir if values.out is None else values.out).resolve()
    print(f"report: {folder / f'report{suffix}.html'}")
    _print_auc(f"{values.split} AUC", summary["metrics"]["auc"])
    if summary["patient_level"] is not None:
        _print_auc(f"{values.split} AUC by patient", summary["patient_level"]["metrics"]["auc"])
    elif summary["patients"] == summary["cases"]:
        print("every patient has one slice: results by patient are the same")


def _print_auc(name: str, auc: Mapping[str, Any]) -> None:
    if auc["value"] is None:
        print(f"{name} is not defined: the split has one class")
    elif auc["low"] is None:
        print(f"{name} {auc['value']:.4f} (no interval: a class has one case)")
    else:
        print(f"{name} {auc['value']:.4f} (95 % interval {auc['low']:.4f} to {auc['high']:.4f})")
