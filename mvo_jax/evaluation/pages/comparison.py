"""Several systems on the same cases: one table like the paper's Table 1, as CSV, Markdown, HTML."""

import csv
import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.errors import UserError
from mvo_jax.evaluation import metrics
from mvo_jax.evaluation.pages.report import render_page
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.statistics import delong_interval, holm_adjusted, paired_delong_test
from mvo_jax.files import replace_file

AREA_CHANGE = "fractional area change alone"
SCORES = ("specificity", "recall", "f1")
COLUMNS = (
    "system",
    "runs",
    "auc",
    "auc_low",
    "auc_high",
    "auc_by_seed",
    *SCORES,
    "parameters",
    "forward_gflop",
    "seconds_per_step",
    "reference_minus_system",
    "difference_low",
    "difference_high",
    "p",
    "p_holm",
    "paper_auc",
    "paper_specificity",
    "paper_recall",
    "paper_f1",
    "paper_millions",
    "failure",
)


@dataclass(frozen=True, eq=False)
class ScoredRun:
    """One run of a system: its predictions and the threshold chosen on validation data.

    Attributes:
        predictions: of the compared split.
        threshold: called MVO where probability >= threshold.
    """

    predictions: Predictions
    threshold: float


@dataclass(frozen=True, eq=False)
class System:
    """What there is to say of one row.

    Attributes:
        name: of the row.
        runs: one for each seed; empty if the system failed.
        parameters: trained parameters; None where the row is no network.
        forward_gflop: of one clip at inference.
        seconds_per_step: of training, median; None where it was not logged.
        failure: why it has no runs, in one line.
    """

    name: str
    runs: tuple[ScoredRun, ...]
    parameters: int | None = None
    forward_gflop: float | None = None
    seconds_per_step: float | None = None
    failure: str | None = None


def mean_predictions(runs: Sequence[Predictions]) -> Predictions:
    """Probability of each case averaged over runs.

    Raises:
        UserError: the runs are of different cases.
    """
    first = runs[0]
    for other in runs[1:]:
        _check_same_cases(first, other)
    return Predictions(
        split=first.split,
        case_id=first.case_id,
        patient_id=first.patient_id,
        label=first.label,
        probability=np.clip(np.mean([run.probability for run in runs], axis=0), 0, 1),
    )


def _check_same_cases(first: Predictions, other: Predictions) -> None:
    if first.case_id != other.case_id or not np.array_equal(first.label, other.label):
        raise UserError(
            f"two runs of one comparison were scored on different cases of {first.split!r}",
            "compare runs of one cohort; start again in another --out",
        )


def area_change_system(
    validation: Mapping[str, Any], test: Predictions, area_change: Any
) -> System:
    """Fractional area change as the only predictor (lower means MVO).

    Args:
        validation: 'label' and 'area_change' of the validation split, for the threshold.
        test: any predictions of the compared split, for its cases.
        area_change: ``[N]`` of the compared split.
    """
    values = np.concatenate([validation["area_change"], area_change]).astype(np.float64)
    low, high = values.min(), values.max()

    def score(value: Any) -> np.ndarray:
        # To [0, 1] and upside down; the order of the cases, all that counts, stays.
        return (high - np.asarray(value, np.float64)) / max(high - low, 1e-12)

    threshold = metrics.choose_threshold(validation["label"], score(validation["area_change"]))
    predictions = Predictions(
        split=test.split,
        case_id=test.case_id,
        patient_id=test.patient_id,
        label=test.label,
        probability=score(area_change),
    )
    return System(AREA_CHANGE, (ScoredRun(predictions, threshold.value),))


def compare(
    systems: Sequence[System],
    *,
    reference: str,
    paper: Mapping[str, Mapping[str, float]],
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Figures of all rows as plain JSON types; what is not defined is None.

    With several runs a system's AUC is that of its mean probability, and specificity, recall and F1
    are means over the runs, each at its own threshold.

    Args:
        systems: the rows, in order.
        reference: the row that the others are tested against by paired DeLong tests, adjusted
            together after Holm. Without it there are no tests.
        paper: printed figures by row, in percent and millions.
        confidence: of every interval.

    Raises:
        UserError: rows of different cases.
    """
    means = {s.name: mean_predictions([r.predictions for r in s.runs]) for s in systems if s.runs}
    for mean in means.values():
        _check_same_cases(next(iter(means.values())), mean)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", metrics.OneClassWarning)  # each run's report says it
        for system in systems:
            row = {**asdict(system), "runs": len(system.runs), "auc": None, "against": None}
            row |= {"paper": dict(paper[system.name]) if system.name in paper else None}
            row |= dict.fromkeys(SCORES) | {"auc_by_seed": []}
            if system.runs:
                row |= _scores(system, means[system.name], confidence)
            rows.append(row)
        tested = [row for row in rows if row["name"] in means and row["name"] != reference]
        if reference in means:
            against = [
                paired_delong_test(
                    means[reference].label,
                    means[reference].probability,
                    means[row["name"]].probability,
                    confidence=confidence,
                )
                for row in tested
            ]
            holm = holm_adjusted([test.p for test in against])
            for row, test, adjusted in zip(tested, against, holm, strict=True):
                row["against"] = {
                    "value": test.difference,
                    "low": test.low,
                    "high": test.high,
                    "p": test.p,
                    "p_holm": adjusted,
                }
    first = next(iter(means.values()), None)
    return _plain(
        {
            "reference": reference,
            "confidence": confidence,
            "cases": 0 if first is None else len(first),
            "positive": 0 if first is None else int(first.label.sum()),
            "rows": rows,
        }
    )


def _scores(system: System, mean: Predictions, confidence: float) -> dict[str, Any]:
    interval = delong_interval(mean.label, mean.probability, confidence=confidence)
    counts = [
        metrics.confusion(run.predictions.label, run.predictions.probability, run.threshold)
        for run in system.runs
    ]
    return {
        "auc": asdict(interval),
        "auc_by_seed": [
            metrics.roc_auc(run.predictions.label, run.predictions.probability)
            for run in system.runs
        ],
        **{name: float(np.mean([getattr(c, name) for c in counts])) for name in SCORES},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_comparison(
    folder: Path,
    table: Mapping[str, Any],
    *,
    title: str,
    dataset: str,
    simulated: bool,
    notes: Sequence[str],
    provenance: Mapping[str, Any],
) -> None:
    """Writes ``table.json``, ``table.csv``, ``table.md`` and ``table.html`` (one offline page).

    Args:
        folder: where to.
        table: from ``compare``.
        title: of the page.
        dataset: one line naming split and data.
        simulated: True puts 'method check only, no clinical claim' on top.
        notes: sentences below the table.
        provenance: what to print at the end.
    """
    replace_file(folder / "table.json", json.dumps(table, indent=1, allow_nan=False) + "\n")
    replace_file(folder / "table.csv", _csv(table))
    text = "\n\n".join([f"# {title}", dataset, markdown(table), *notes]) + "\n"
    replace_file(folder / "table.md", text)
    page = render_page(
        "comparison.html.j2",
        t=table,
        title=title,
        dataset=dataset,
        simulated=simulated,
        notes=notes,
        provenance={key: str(value) for key, value in provenance.items()},
        level=f"{100 * table['confidence']:g}%",
    )
    replace_file(folder / "table.html", page)


def _csv(table: Mapping[str, Any]) -> str:
    text = io.StringIO(newline="")
    writer: Any = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in table["rows"]:
        auc, against, paper = row["auc"] or {}, row["against"] or {}, row["paper"] or {}
        writer.writerow(
            {
                "system": row["name"],
                "auc": auc.get("value"),
                "auc_low": auc.get("low"),
                "auc_high": auc.get("high"),
                "auc_by_seed": " ".join(f"{value:.6f}" for value in row["auc_by_seed"]),
                "reference_minus_system": against.get("value"),
                "difference_low": against.get("low"),
                "difference_high": against.get("high"),
                "p": against.get("p"),
                "p_holm": against.get("p_holm"),
                **{f"paper_{key}": value for key, value in paper.items()},
                **{
                    key: row[key]
                    for key in ("runs", "parameters", "forward_gflop", "seconds_per_step")
                },
                **{key: row[key] for key in (*SCORES, "failure")},
            }
        )
    return text.getvalue()


def markdown(table: Mapping[str, Any]) -> str:
    """The table for a terminal or a text document; AUC and scores in percent."""
    several = any(row["runs"] > 1 for row in table["rows"])
    head = ["system", "AUC (95 %)" if table["confidence"] == 0.95 else "AUC (interval)"]
    head += ["AUC by seed"] if several else []
    head += ["specificity", "recall", "F1", "parameters", "GFLOP a clip", "s a step"]
    head += [f"{table['reference']} minus it", "p", "p (Holm)", "paper: AUC, spec., recall, F1, M"]
    lines = [head, ["---"] * len(head)]
    for row in table["rows"]:
        if row["failure"] is not None:
            cells = [row["name"], f"failed: {row['failure']}", *[""] * (len(head) - 3)]
        else:
            auc, against = row["auc"], row["against"]
            cells = [row["name"], f"{_percent(auc['value'])} ({_span(auc)})"]
            if several:
                cells.append(", ".join(_percent(value) for value in row["auc_by_seed"]))
            cells += [_percent(row[name]) for name in SCORES]
            cells.append("-" if row["parameters"] is None else f"{row['parameters']:,}")
            cells += [_number(row[name]) for name in ("forward_gflop", "seconds_per_step")]
            if against is None:
                cells += ["-", "-", "-"]
            else:
                cells.append(f"{_percent(against['value'])} ({_span(against)})")
                cells += [_p(against["p"]), _p(against["p_holm"])]
        cells.append(_paper(row["paper"]))
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _span(estimate: Mapping[str, Any]) -> str:
    return f"{_percent(estimate['low'])} to {_percent(estimate['high'])}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _paper(printed: Mapping[str, float] | None) -> str:
    if printed is None:
        return "-"
    keys = ("auc", *SCORES, "millions")
    return ", ".join(f"{printed[key]:.2f}" for key in keys if key in printed)
