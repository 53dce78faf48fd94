"""Several systems on the same cases: one table like the paper's Table 1, as CSV, Markdown, HTML."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.errors import UserError
from mvo_jax.evaluation import metrics
from mvo_jax.evaluation.pages.render import number, p_short, percent, plain, render_page, span
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.statistics import (
    CONFIDENCE,
    delong_interval,
    holm_adjusted,
    paired_delong_test,
)
from mvo_jax.evaluation.table import METRICS, Metric
from mvo_jax.evaluation.thresholds import choose_threshold
from mvo_jax.files import replace_file, write_csv

AREA_CHANGE = "fractional area change alone"
_PAPER = ("auc", "specificity", "recall", "f1", "millions")


def scores() -> dict[str, Metric]:
    """The columns beside the AUC: what the table of metrics has for a comparison."""
    found = {key: one for key, one in METRICS.items() if "comparison" in one.pages}
    found.pop("auc", None)
    return found


@dataclass(frozen=True, eq=False)
class ScoredRun:
    """One run of a system: predictions of the compared split, threshold of validation data."""

    predictions: Predictions
    threshold: float


@dataclass(frozen=True, eq=False)
class System:
    """What there is to say of one row.

    Attributes:
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
    """Probability of each case averaged over runs; UserError for runs of different cases."""
    first = runs[0]
    for other in runs[1:]:
        _check_same_cases(first, other)
    mean = np.clip(np.mean([run.probability for run in runs], axis=0), 0, 1)
    return Predictions(first.split, first.case_id, first.patient_id, first.label, mean)


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

    threshold = choose_threshold(validation["label"], score(validation["area_change"]))
    predictions = Predictions(
        test.split, test.case_id, test.patient_id, test.label, score(area_change)
    )
    return System(AREA_CHANGE, (ScoredRun(predictions, threshold.value),))


def compare(
    systems: Sequence[System],
    *,
    reference: str,
    paper: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Figures of all rows as plain JSON types; what is not defined is None.

    With several runs a system's AUC is that of its mean probability; the other metrics are means
    over the runs, each at its own threshold.

    Args:
        reference: the row that the others are tested against by paired DeLong tests, adjusted
            together after Holm. Without it there are no tests.
        paper: printed figures by row, in percent and millions.

    Raises:
        UserError: rows of different cases.
    """
    means = {s.name: mean_predictions([r.predictions for r in s.runs]) for s in systems if s.runs}
    for mean in means.values():
        _check_same_cases(next(iter(means.values())), mean)
    rows = []
    for system in systems:
        row = {**asdict(system), "runs": len(system.runs), "auc": None, "against": None}
        row |= {"paper": dict(paper[system.name]) if system.name in paper else None}
        row |= dict.fromkeys(scores()) | {"auc_by_seed": []}
        if system.runs:
            row |= _scores(system, means[system.name])
        rows.append(row)
    if reference in means:
        tested = [row for row in rows if row["name"] in means and row["name"] != reference]
        ours = means[reference]
        against = [
            paired_delong_test(ours.label, ours.probability, means[row["name"]].probability)
            for row in tested
        ]
        holm = holm_adjusted([test.p for test in against])
        for row, test, adjusted in zip(tested, against, holm, strict=True):
            row["against"] = {**asdict(test), "p_holm": adjusted}
            del row["against"]["z"]
    first = next(iter(means.values()), None)
    return plain(
        {
            "reference": reference,
            "confidence": CONFIDENCE,
            "cases": 0 if first is None else len(first),
            "positive": 0 if first is None else int(first.label.sum()),
            "rows": rows,
        }
    )


def _scores(system: System, mean: Predictions) -> dict[str, Any]:
    runs = [(r.predictions.label, r.predictions.probability, r.threshold) for r in system.runs]
    return {
        "auc": asdict(delong_interval(mean.label, mean.probability)),
        "auc_by_seed": [metrics.roc_auc(label, probability) for label, probability, _ in runs],
        **{key: float(np.mean([one(*run) for run in runs])) for key, one in scores().items()},
    }


def write_comparison(
    folder: Path,
    table: Mapping[str, Any],
    *,
    title: str,
    dataset: str,
    notes: Sequence[str],
    **values: Any,
) -> None:
    """Writes ``table.json``, ``table.csv``, ``table.md`` and ``table.html`` (one offline page).

    Args:
        table: from ``compare``.
        dataset: one line naming split and data.
        notes: sentences below the table.
        values: simulated, which puts 'method check only, no clinical claim' on top, and provenance,
            printed at the end.
    """
    replace_file(folder / "table.json", json.dumps(table, indent=1, allow_nan=False) + "\n")
    _write_csv(folder / "table.csv", table)
    text = "\n\n".join([f"# {title}", dataset, markdown(table), *notes]) + "\n"
    replace_file(folder / "table.md", text)
    page = render_page(
        "comparison.html.j2",
        t=table,
        scores=[
            {"key": key, "title": one.short or one.title, "format": one.format}
            for key, one in scores().items()
        ],
        title=title,
        dataset=dataset,
        notes=notes,
        level=f"{100 * CONFIDENCE:g}%",
        **values,
    )
    replace_file(folder / "table.html", page)


def _write_csv(path: Path, table: Mapping[str, Any]) -> None:
    ends, tested = ("value", "low", "high"), ("value", "low", "high", "p", "p_holm")
    auc = ("auc", "auc_low", "auc_high")
    against = ("reference_minus_system", "difference_low", "difference_high", "p", "p_holm")
    paper = tuple(f"paper_{key}" for key in _PAPER)
    cost = ("parameters", "forward_gflop", "seconds_per_step")
    columns = ("system", "runs", *auc, "auc_by_seed", *scores(), *cost, *against, *paper, "failure")
    rows = [
        {
            **row,
            "system": row["name"],
            "auc_by_seed": " ".join(f"{value:.6f}" for value in row["auc_by_seed"]),
            **{name: (row["auc"] or {}).get(key) for name, key in zip(auc, ends, strict=True)},
            **{
                name: (row["against"] or {}).get(k) for name, k in zip(against, tested, strict=True)
            },
            **{f"paper_{key}": (row["paper"] or {}).get(key) for key in _PAPER},
        }
        for row in table["rows"]
    ]
    write_csv(path, columns, rows)


def markdown(table: Mapping[str, Any]) -> str:
    """The table for a terminal or a text document; AUC and scores in percent."""
    several = any(row["runs"] > 1 for row in table["rows"])
    shown = scores()
    titles = [one.short or one.title for one in shown.values()]
    head = ["system", "AUC (95 %)"]
    head += ["AUC by seed"] if several else []
    head += [title if title.isupper() else title[:1].lower() + title[1:] for title in titles]
    head += ["parameters", "GFLOP a clip", "s a step"]
    head += [f"{table['reference']} minus it", "p", "p (Holm)", "paper: AUC, spec., recall, F1, M"]
    lines = [head, ["---"] * len(head)]
    for row in table["rows"]:
        if row["failure"] is not None:
            cells = [f"failed: {row['failure']}", *[""] * (len(head) - 3)]
        else:
            auc, against = row["auc"], row["against"]
            cells = [f"{percent(auc['value'], 1)} ({span(auc)})"]
            cells += [", ".join(percent(value, 1) for value in row["auc_by_seed"])] * several
            cells += [
                percent(row[key], 1) if one.format == "percent" else number(row[key])
                for key, one in shown.items()
            ]
            cells += ["-" if row["parameters"] is None else f"{row['parameters']:,}"]
            cost = (row["forward_gflop"], row["seconds_per_step"])
            cells += ["-" if value is None else f"{value:.3g}" for value in cost]
            if against is None:
                cells += ["-", "-", "-"]
            else:
                cells += [f"{percent(against['value'], 1)} ({span(against)})"]
                cells += [p_short(against["p"]), p_short(against["p_holm"])]
            # A page has typographic dashes and minus signs, a text plain ones.
            cells = [cell.replace("–", "-").replace("−", "-") for cell in cells]  # noqa: RUF001
        paper = row["paper"] or {}
        cells += [", ".join(f"{paper[key]:.2f}" for key in _PAPER if key in paper) or "-"]
        lines.append([row["name"], *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
