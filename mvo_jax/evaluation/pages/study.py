"""A study's tables and page, from the small files of its runs alone: no training, no images."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np

from mvo_jax.errors import UserError
from mvo_jax.evaluation.beyond import FOLDS, joined, rank_correlation
from mvo_jax.evaluation.figures import curves
from mvo_jax.evaluation.pages.render import plain, render_page, render_text
from mvo_jax.evaluation.readers import (
    FIXED,
    Readers,
    SeedVariance,
    difference,
    mean_auc,
    mean_difference,
    readers,
    seed_variances,
)
from mvo_jax.evaluation.statistics import holm_adjusted
from mvo_jax.evaluation.stored_run import StoredRun, read_stored_run
from mvo_jax.files import replace_file, write_csv

ABOUT = "study.json"


@dataclass(frozen=True)
class Page:
    """A kind of study: ``write`` writes the tables of a folder and returns them.

    ``about`` is the folder's file of what its tables say beside its runs.
    """

    about: str
    write: Callable[[Path], dict[str, Any]]


# Figures of the localisation that the tables show, and their titles.
SHOWN = {
    "pointing_hit_rate": "highest block",
    "hit_rate_5_best": "5 best blocks",
    "block_auc": "block AUC",
    "block_average_precision": "block AP",
}
MAPS = {"map": "predicted", "mean_training_map": "mean training map", "chance": "chance"}
# A true difference that is found in 80 % of such studies is so many half-widths of an interval.
_NORMAL_95 = 1.96
_POWER_80 = 1 + 0.8416 / _NORMAL_95


def write_study(out: Path) -> dict[str, Any]:
    """Write ``table.json``, ``table.csv``, ``tests.csv``, ``table.md`` and ``table.html``.

    Returns ``study_table`` of the files of a folder; UserError for no study there, or a damaged
    file.
    """
    about, runs = read_study(out)
    table = study_table(about, runs)
    columns = ("row", "seeds", "auc", "auc_low", "auc_high", "auc_by_seed", "seed_sd")
    maps = [f"{which}_{figure}" for which in MAPS for figure in SHOWN]
    write_csv(out / "table.csv", [*columns, *maps, "best_steps"], map(_csv_row, table["rows"]))
    tests = ("row", "reference", "difference", "low", "high", "p", "p_holm")
    write_csv(out / "tests.csv", tests, table["tests"])
    lines: dict[str, list[Any]] = {row["name"]: [] for row in table["rows"]}  # in that order
    for run in runs:
        lines[run.name] += [run.curve] if run.curve else []
    text = [about["question"], table["data"], markdown(table)]
    options = {"shown": SHOWN, "maps": MAPS}
    write_pages(out, "study.html.j2", about, table, runs, text=text, lines=lines, **options)
    return table


def write_pages(
    out: Path,
    template: str,
    about: Mapping[str, Any],
    table: Mapping[str, Any],
    runs: Sequence[StoredRun],
    *,
    text: Sequence[str],
    lines: Mapping[str, Sequence[Any]],
    **values: Any,
) -> None:
    """Write ``table.json``, ``table.md`` and ``table.html``.

    ``text`` stands between title and notes of the second, ``lines`` are the curves of each row.
    """
    replace_file(out / "table.json", json.dumps(table, indent=1, allow_nan=False) + "\n")
    parts = [f"# {about['title']}", *text, *(f"- {note}" for note in table["notes"])]
    replace_file(out / "table.md", "\n\n".join(parts) + "\n")
    figure = curves.validation_figure({name: of for name, of in lines.items() if of})
    page = render_page(
        template,
        about=about,
        t=table,
        # Safe to mark: drawn here; names of rows are escaped by the drawing itself.
        curves=figure and markupsafe.Markup(curves.to_svg(figure, salt="curves")),
        provenance=origins(runs),
        simulated=all(run.config["data"]["name"] == "phantom" for run in runs),
        **values,
    )
    replace_file(out / "table.html", page)


PAGE = Page(ABOUT, write_study)


def read_study(out: Path, about: str = ABOUT) -> tuple[dict[str, Any], list[StoredRun]]:
    """What a folder holds: what its file says, and its finished runs by name; UserError without."""
    try:
        content = json.loads((out / about).read_text())
    except (OSError, ValueError) as error:
        kind = "study" if about == ABOUT else about.removesuffix(".json")
        raise UserError(
            f"{out} is not the folder of a {kind}: {about} cannot be read",
            "give the folder as --out, and the config to run what is missing",
        ) from error
    runs = [read_stored_run(path) for path in sorted(out.glob("*-seed*.json"))]
    return content, runs


def study_table(about: Mapping[str, Any], runs: Sequence[StoredRun]) -> dict[str, Any]:
    """All figures of a study as plain JSON types; what is not defined is None.

    ``about`` has 'title', 'question', 'rows' (names in order), 'seeds' (those planned),
    'references' (row -> rows that it is tested against), 'notes' and 'paper'; ``runs`` is what is
    there so far.
    """
    by_row = {
        name: sorted((run for run in runs if run.name == name), key=lambda run: run.seed)
        for name in dict.fromkeys([*about["rows"], *(run.name for run in runs)])
    }
    by_row = {name: of_row for name, of_row in by_row.items() if of_row}
    as_readers = {name: _readers(of_row) for name, of_row in by_row.items()}
    networks = {name: as_readers[name] for name, of_row in by_row.items() if not of_row[0].features}
    variances = dict.fromkeys(by_row, FIXED) | seed_variances(networks)
    tests = _tests(about["references"], by_row, as_readers, variances)
    rows = [
        _row(about, of_row, as_readers[name], variances[name]) for name, of_row in by_row.items()
    ]
    pooled = next((one for one in variances.values() if one.pooled), None)
    notes = [
        "AUC: mean over seeds; the 95 % interval holds the variance of cases and of seeds (seeds "
        "as readers). Differences likewise; Holm: adjusted for all tests of this page.",
        *([_power(tests)] if tests else []),
        f"The variance between seeds is that of all rows together ({pooled.degrees:g} degrees of "
        f"freedom; standard deviation {100 * math.sqrt(pooled.value):.1f} points)."
        if pooled
        else "The variance between seeds is that of each row.",
        *_short_of_seeds(about, by_row),
        *about["notes"],
    ]
    first = runs[0] if runs else None
    data = "no run yet" if first is None else f"{first.split}: {len(first.scored.label)} cases, "
    if first is not None:
        data += f"{int(first.scored.label.sum())} with MVO; {len(runs)} runs"
    beyond = _beyond(by_row)
    return plain({"data": data, "rows": rows, "tests": tests, "beyond": beyond, "notes": notes})


def _readers(of_row: Sequence[StoredRun]) -> Readers:
    first = of_row[0]
    if other := next((run for run in of_row if run.scored.cases != first.scored.cases), None):
        raise UserError(
            f"{other.name}: seeds {first.seed} and {other.seed} were scored on different cases",
            "delete the file of one of them: the same command does that run again",
        )
    return readers(first.scored.label, [run.scored.probability for run in of_row])


def _row(
    about: Mapping[str, Any], of_row: Sequence[StoredRun], row: Readers, seeds: SeedVariance
) -> dict[str, Any]:
    name = of_row[0].name
    return {
        "name": name,
        "seeds": [run.seed for run in of_row],
        "features": list(of_row[0].features),
        "auc": asdict(mean_auc(row, seeds)),
        "auc_by_seed": row.auc.tolist(),
        "seed_sd": float(row.auc.std(ddof=1)) if row.count > 1 else None,
        "localisation": _localisation(of_row),
        "map_minus_mean_map": _map_minus_mean_map(of_row),
        "best_steps": [run.best_step for run in of_row],
        "steps": None if of_row[0].features else of_row[0].config["train"]["total_steps"],
        "seconds": [run.seconds for run in of_row],
        "paper": about["paper"].get(name),
    }


def _localisation(of_row: Sequence[StoredRun]) -> dict[str, dict[str, float]] | None:
    """Means over seeds of the figures of each map."""
    found = [run.localisation for run in of_row if run.localisation]
    if not found:
        return None
    return {
        which: {
            figure: float(np.mean([one[which][figure]["value"] for one in found]))
            for figure in SHOWN
        }
        for which in MAPS
        if all(one.get(which) and one["cases"] for one in found)
    }


def _map_minus_mean_map(of_row: Sequence[StoredRun]) -> dict[str, dict[str, float]] | None:
    """How much better the map points than the mean training map, paired by case, over seeds."""
    found = [run.localisation["map_minus_mean_map"] for run in of_row if run.localisation]
    found = [one for one in found if one]
    if not found:
        return None
    out = {}
    for figure in SHOWN:
        each = [one[figure] for one in found]
        errors = [(one["high"] - one["low"]) / (2 * _NORMAL_95) for one in each]
        out[figure] = asdict(mean_difference([one["value"] for one in each], errors))
    return out


def _tests(
    references: Mapping[str, Sequence[str]],
    by_row: Mapping[str, Sequence[StoredRun]],
    as_readers: Mapping[str, Readers],
    variances: Mapping[str, SeedVariance],
) -> list[dict[str, Any]]:
    tests = []
    for name, against in references.items():
        for other in against:
            if name not in by_row or other not in by_row:
                continue
            # Rows of other cohorts may be scored on other cases.
            if by_row[name][0].scored.cases != by_row[other][0].scored.cases:
                continue
            found = difference(
                as_readers[name], as_readers[other], variances[name], variances[other]
            )
            values = {"difference": found.value, "low": found.low, "high": found.high}
            tests.append({"row": name, "reference": other, **values, "p": found.p})
    adjusted = holm_adjusted([test["p"] for test in tests])
    return [{**test, "p_holm": p} for test, p in zip(tests, adjusted, strict=True)]


def _beyond(by_row: Mapping[str, Sequence[StoredRun]]) -> dict[str, Any] | None:
    """What the networks of a page hold beyond its first row without a network."""
    known = {name: runs[0].scored for name, runs in by_row.items() if runs[0].features}
    if not known:
        return None
    first, base = next(iter(known.items()))
    if min(np.bincount(base.label, minlength=2)) < FOLDS:  # of a class
        return None
    known = {name: scores for name, scores in known.items() if scores.cases == base.cases}
    seeds = {
        name: [run.scored.probability for run in runs]
        for name, runs in by_row.items()
        if not runs[0].features and runs[0].scored.cases == base.cases
    }
    if not seeds:
        return None
    alone = readers(base.label, [joined(base.label, base.probability)])
    both = {
        name: readers(base.label, [joined(base.label, one, base.probability) for one in found])
        for name, found in seeds.items()
    }
    variances = seed_variances(both)

    def correlations(found: Sequence[np.ndarray]) -> dict[str, float]:
        return {name: rank_correlation(found, scores.probability) for name, scores in known.items()}

    rows = [
        {
            "row": name,
            "correlation": correlations(found),
            "auc": both[name].mean,
            "more": asdict(difference(both[name], alone, variances[name], FIXED)),
        }
        for name, found in seeds.items()
    ]
    adjusted = holm_adjusted([row["more"]["p"] for row in rows])
    rows = [{**row, "p_holm": p} for row, p in zip(rows, adjusted, strict=True)]
    return {"feature": first, "apart": correlations([base.probability]), "rows": rows}


def _power(tests: Sequence[Mapping[str, Any]]) -> str:
    reach = [(test["high"] - test["low"]) / 2 for test in tests if not math.isnan(test["low"])]
    if not reach:
        return "With one seed a row no difference can be tested."
    seen = 100 * _POWER_80 * float(np.median(reach))
    return f"Power: a true difference of {seen:.1f} points is found by 80 % of such studies."


def _short_of_seeds(about: Mapping[str, Any], by_row: Mapping[str, Sequence[StoredRun]]) -> list:
    """Says which rows have fewer seeds than planned, and which have none."""
    planned = len(about["seeds"])
    short = [
        f"{name} {len(of_row)}"
        for name, of_row in by_row.items()
        if not of_row[0].features and len(of_row) < planned
    ]
    missing = [name for name in about["rows"] if name not in by_row]
    text = f"Planned were {planned} seeds a row; so far: {', '.join(short)}." if short else ""
    rest = f"Not run yet: {', '.join(missing)}." if missing else ""
    return [sentence for sentence in (text, rest) if sentence]


def _csv_row(row: Mapping[str, Any]) -> dict[str, Any]:
    found = row["localisation"] or {}
    return {
        "row": row["name"],
        "seeds": len(row["seeds"]),
        "auc": row["auc"]["value"],
        "auc_low": row["auc"]["low"],
        "auc_high": row["auc"]["high"],
        "auc_by_seed": " ".join(f"{value:.6f}" for value in row["auc_by_seed"]),
        "seed_sd": row["seed_sd"],
        **{
            f"{which}_{figure}": found.get(which, {}).get(figure)
            for which in MAPS
            for figure in SHOWN
        },
        "best_steps": " ".join(str(step) for step in row["best_steps"] if step is not None),
    }


def markdown(table: Mapping[str, Any]) -> str:
    """The tables for a terminal or a text document; AUC in percent, differences in points."""
    return render_text("study.md.j2", t=table, shown=SHOWN)


def origins(runs: Sequence[StoredRun]) -> dict[str, str]:
    """What the runs name of their origin, each value once."""

    def values(key: str) -> str:
        found = dict.fromkeys(str(run.provenance.get(key, "unknown")) for run in runs)
        return "; ".join(found) or "no run yet"

    names = ("git_revision", "backend", "processor", "python", "versions")
    return {name.replace("git_revision", "revision"): values(name) for name in names}
