"""``mvo-jax crossval --config NAME --folds K --out FOLDER``: every patient scored out of fold.

A study whose rows are the folds of a prepared cohort: see ``mvo_jax.cli.study``.
"""

from collections.abc import Sequence
from typing import Any

from mvo_jax.cli.compare import read_seeds
from mvo_jax.cli.flags import Flags, config_of
from mvo_jax.cli.study import define_work_flags, run_study
from mvo_jax.errors import UserError


def _define(values: Flags) -> None:
    about = "Experiment: NAME or FILE.py; --config.data.name=cohort --config.data.dir=COHORT."
    values.string("config", None, about)
    values.string("out", None, "Folder of the cross-validation.", required=True)
    values.integer("folds", 5, "Folds, by patient.", lower_bound=3)
    values.list("seeds", ["0"], "Seeds; each trains all folds.")
    define_work_flags(values, keep_runs=True)


def _comparison(values: Flags, overrides: Sequence[str]) -> Any:
    """One row a fold."""
    from mvo_jax.comparison import Comparison
    from mvo_jax.data.cohort.storage import MANIFEST, open_cohort
    from mvo_jax.data.splits import dataset_line
    from mvo_jax.evaluation.pages.crossval import PAGE

    if values.config is None:
        raise UserError("--config is missing", "give the name or the file of an experiment")
    seeds, folds = read_seeds(values.seeds), values.folds

    def config(fold: int, seed: int) -> Any:
        words = [f"--config={values.config}", *overrides, f"--config.data.folds={folds}"]
        return config_of(*words, f"--config.data.fold={fold}", f"--config.seed={seed}")

    first = config(0, seeds[0])
    if first.data.name != "cohort":
        raise UserError(
            f"crossval divides a prepared cohort, and data.name is {first.data.name!r}",
            "add --config.data.name=cohort --config.data.dir=COHORT; a simulated cohort has test "
            "cases of its own",
        )
    cohort = open_cohort(first.data.dir)
    labelled = [row for row in cohort.manifest().values() if row["label"] != ""]
    return Comparison(
        configs={
            f"fold {fold}": {seed: config(fold, seed) for seed in seeds} for fold in range(folds)
        },
        split="test",
        reference="",
        paper={},
        title="",
        # Runs of another division or of a cohort that was prepared again do not mix with these.
        about={"crossval": folds, "cohort": cohort.files[MANIFEST]["sha256"]},
        own_parts=("seed", "data"),
        keep_runs=values.keep_runs,
        study={
            "title": f"Cross-validation in {folds} folds",
            "dataset": dataset_line(first.data).partition(",")[0],
            "folds": folds,
            "seeds": seeds,
            "rule": {"max": "maximum", "mean": "mean"}.get(first.eval.patient_aggregation, ""),
            "cases": len(labelled),
            "patients": len({row["patient_id"] for row in labelled}),
        },
        page=PAGE,
        named=True,
    )


def main(arguments: list[str]) -> dict[str, Any]:
    """Train the folds that are missing, pool their predictions, and print the result.

    Raises:
        UserError: a cohort that is not prepared, a fold that has one class, or as ``run_study``.
    """
    return run_study("crossval", arguments, _define, _comparison)
