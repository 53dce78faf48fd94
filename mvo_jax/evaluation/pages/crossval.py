"""Cross-validation: predictions out of fold, pooled, from the small files of its runs alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.config_files import config_from_json
from mvo_jax.errors import UserError
from mvo_jax.evaluation.metrics import average_precision, brier_score, roc_auc
from mvo_jax.evaluation.pages.render import plain, render_text
from mvo_jax.evaluation.pages.study import Page, read_study, write_pages
from mvo_jax.evaluation.readers import mean_auc, readers, seed_variances
from mvo_jax.evaluation.statistics import by_patient, delong_interval, wilson_interval
from mvo_jax.evaluation.stored_run import StoredRun
from mvo_jax.evaluation.thresholds import choose_thresholds
from mvo_jax.files import write_csv

ABOUT = "crossval.json"
_CASES = ("seed", "fold", "case_id", "patient_id", "label", "probability", "decision", "threshold")
_PATIENTS = tuple(column for column in _CASES if column != "case_id")


def write_crossval(out: Path) -> dict[str, Any]:
    """Write ``predictions.csv``, ``predictions_patients.csv`` and the tables of what is there.

    ``table.json``, ``table.md`` and ``table.html`` say nothing that depends on when or how often a
    run was started: a cross-validation that was killed and repeated ends in the same bytes.

    Returns:
        ``crossval_table`` of the files of a folder.

    Raises:
        UserError: no cross-validation there, a run's file is damaged, or a patient is in two folds.
    """
    about, runs = read_study(out, ABOUT)
    cases, patients = _rows(runs)
    table = crossval_table(about, runs, cases, patients)
    write_csv(out / "predictions.csv", _CASES, cases)
    write_csv(out / "predictions_patients.csv", _PATIENTS, patients)
    lines: dict[str, list[Any]] = {}
    for run in runs:
        if run.curve:
            lines.setdefault(run.name, []).append(run.curve)
    text = [table["data"], markdown(table)]
    write_pages(out, "crossval.html.j2", about, table, runs, text=text, lines=lines)
    return table


PAGE = Page(ABOUT, write_crossval)


def _rows(runs: Sequence[StoredRun]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the two tables: every case and every patient once a seed, in the order of names."""
    cases: list[dict[str, Any]] = []
    patients: list[dict[str, Any]] = []
    for run in runs:
        fold, validation = run.config["data"]["fold"], run.validation.predictions("validation")
        chosen = choose_thresholds(config_from_json(run.config), validation)
        slices = run.scored.predictions("test")
        whole = by_patient(slices, chosen.patient_rule or "max")
        for rows, one, threshold in (
            (cases, slices, chosen.value),
            (patients, whole, chosen.patient_value),
        ):
            values = (one.case_id, one.patient_id, one.label.tolist(), one.probability.tolist())
            for case in zip(*values, strict=True):
                decision = int(case[-1] >= threshold)
                given = (run.seed, fold, *case, decision, float(threshold))
                rows.append(dict(zip(_CASES, given, strict=True)))
    for rows, key in ((cases, "case_id"), (patients, "patient_id")):
        rows.sort(key=lambda row: (row["seed"], row[key]))
    seen: dict[tuple[int, str], int] = {}
    for row in patients:
        first = seen.setdefault((row["seed"], row["patient_id"]), row["fold"])
        if first != row["fold"]:
            raise UserError(
                f"patient {row['patient_id']} is scored in folds {first} and {row['fold']}",
                "these are runs of other data; delete the files of the runs and repeat the command",
            )
    return cases, patients


def crossval_table(
    about: Mapping[str, Any],
    runs: Sequence[StoredRun],
    cases: Sequence[Mapping[str, Any]],
    patients: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """All figures as plain JSON types; what is not defined is None.

    The interval of the AUC is over patients, each scored once by a network that never saw them;
    with several seeds it holds their variance too. ``about`` has 'title', 'folds', 'seeds', 'cases'
    and 'patients' (of the whole cohort), ``cases`` and ``patients`` the rows of the runs so far.
    """
    by_seed = {
        seed: [row for row in patients if row["seed"] == seed]
        for seed in dict.fromkeys(run.seed for run in runs)
    }
    whole = {seed: rows for seed, rows in by_seed.items() if len(rows) == about["patients"]}
    missing = [
        f"fold {fold}, seed {seed}"
        for seed in about["seeds"]
        for fold in range(about["folds"])
        if not any(run.seed == seed and run.config["data"]["fold"] == fold for run in runs)
    ]
    notes = [
        f"{about['folds']} folds, divided by patient: of each network one fold is the test split, "
        "the next one validation (it chooses checkpoint and thresholds), the others train.",
        "Every patient is scored once, by the network whose test fold holds it; a patient's "
        f"probability is the {about['rule']} over the slices.",
        "The networks of the folds are pooled as if they were one. Each has its own scale of "
        "probability, which costs the pooled AUC a little; their own are in the table of folds.",
        *([f"Not done yet: {'; '.join(missing)}."] if missing else []),
    ]
    first = next(iter(whole.values()), None)
    data = f"{about['dataset']}: {about['cases']} cases of {about['patients']} patients"
    return plain(
        {
            "data": data,
            "folds": about["folds"],
            "complete": not missing,
            "cases": about["cases"],
            "patients": about["patients"],
            "positive": None if first is None else sum(row["label"] for row in first),
            "auc": _pooled_auc(whole),
            "by_seed": [{"seed": seed, **_of_seed(rows)} for seed, rows in whole.items()],
            "by_fold": [_of_fold(run, cases, patients) for run in runs],
            "notes": notes,
        }
    )


def _arrays(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    label = np.array([row["label"] for row in rows])
    return label, np.array([row["probability"] for row in rows])


def _pooled_auc(whole: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, Any] | None:
    """AUC of the patients with its one interval; None before a seed has all folds."""
    if not whole:
        return None
    pairs = [_arrays(rows) for rows in whole.values()]
    label = pairs[0][0]
    if len(pairs) == 1:
        return asdict(delong_interval(*pairs[0]))
    row = readers(label, [probability for _, probability in pairs])
    return asdict(mean_auc(row, seed_variances({"": row})[""]))


def _of_seed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of one seed's patients; decisions at the threshold of each fold."""
    label, probability = _arrays(rows)
    decision = np.array([row["decision"] for row in rows])
    shares = {
        name: wilson_interval(
            int(np.sum(decision[label == value] == value)), int(np.sum(label == value))
        )
        for name, value in (("recall", 1), ("specificity", 0))
    }
    return {
        "auc": roc_auc(label, probability),
        "average_precision": average_precision(label, probability),
        "brier": brier_score(label, probability),
        **{name: asdict(estimate) for name, estimate in shares.items()},
    }


def _of_fold(
    run: StoredRun, cases: Sequence[Mapping[str, Any]], patients: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    def own(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        fold = run.config["data"]["fold"]
        return [row for row in rows if (row["seed"], row["fold"]) == (run.seed, fold)]

    of_fold = own(patients)
    label, probability = _arrays(of_fold)
    return {
        "fold": run.config["data"]["fold"],
        "seed": run.seed,
        "cases": len(own(cases)),
        "patients": len(of_fold),
        "positive": int(label.sum()),
        "auc": roc_auc(label, probability),
        "threshold": of_fold[0]["threshold"],
        "best_step": run.best_step,
    }


def markdown(table: Mapping[str, Any]) -> str:
    """The tables for a terminal or a text document, figures in percent."""
    return render_text("crossval.md.j2", t=table)
