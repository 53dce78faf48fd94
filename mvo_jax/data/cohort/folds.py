"""A prepared cohort divided anew into folds, by patient, whatever it was divided into before."""

from collections import defaultdict

from mvo_jax.data.cohort.partition import Partition, divide, parts_of_fold
from mvo_jax.data.cohort.storage import CohortFolder
from mvo_jax.errors import UserError


def split_of_fold(cohort: CohortFolder, name: str, *, fold: int, folds: int) -> frozenset[str]:
    """The cases of a split where one fold is tested on.

    The folds are those of ``prepare --folds`` with the same number and the cohort's seed; cases
    without label belong to none.

    Raises:
        UserError: no such split or fold, too few folds or patients, or a fold that has one class.
    """
    parts = parts_of_fold(fold, folds)
    rows = [row for row in cohort.manifest().values() if row["label"] != ""]
    of_patient: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        of_patient[row["patient_id"]].append(int(row["label"]))
    if not of_patient:
        raise UserError(
            f"the cohort {cohort.path} has no labelled case",
            "training needs LGE masks; prepare with them, or use this cohort for prediction only",
        )
    divided = divide(of_patient, Partition(folds=folds, seed=cohort.settings["seed"]))
    cases: list[dict[str, str]] = [
        {row["case_id"]: row["label"] for row in rows if divided[row["patient_id"]] == f"fold_{i}"}
        for i in range(folds)
    ]
    for number, labels in enumerate(cases):
        if len(set(labels.values())) < 2:
            what = "all with MVO" if "1" in labels.values() else "none with MVO"
            raise UserError(
                f"fold {number} of {folds} has one class: {len(labels)} cases, {what}",
                "use fewer folds, or add patients of the class that it lacks",
            )
    if name not in parts:
        raise UserError(
            f"there is no split {name!r} where data.folds is {folds}",
            f"choose from {', '.join(parts)}",
        )
    return frozenset(case for number in parts[name] for case in cases[number])
