"""What an evaluation leaves behind: the content of ``metrics.json`` and the HTML report."""

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np

from mvo_jax.evaluation import metrics
from mvo_jax.evaluation.figures import pictures as figures
from mvo_jax.evaluation.figures.pictures import CaseRecord
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.statistics import (
    BOOTSTRAP_REPLICATES,
    Estimate,
    bootstrap_intervals,
    by_patient,
    delong_interval,
    hanley_mcneil_interval,
    paired_delong_test,
    wilson_interval,
)
from mvo_jax.evaluation.thresholds import PatientLevel
from mvo_jax.files import replace_file

SCHEMA_VERSION = 2  # 2: patient_rule; patient_level at a threshold of its own
FIXED_THRESHOLDS = (0.5, 0.44)  # the usual one, and that of the authors' code
BASELINE_FEATURE = "fractional_area_change"

# Table 1 of the paper, its own row: printed AUC, and the counts behind the other columns
# (130 test cases, 44 with MVO; the only integers that give 75.58 / 56.82 / 55.56).
PAPER_AUC = 0.7270
PAPER_CONFUSION = metrics.Confusion(
    true_positive=25, false_positive=21, true_negative=65, false_negative=19
)

_HEADLINE = (
    ("auc", "AUC", True),
    ("specificity", "Specificity", True),
    ("recall", "Recall (sensitivity)", True),
    ("f1", "F1 score", True),
    ("precision", "Precision (PPV)", False),
    ("negative_predictive_value", "Negative predictive value", False),
    ("balanced_accuracy", "Balanced accuracy", False),
)


def summarise(
    test: Predictions,
    *,
    threshold: float,
    threshold_origin: str,
    features: Mapping[str, Any] | None = None,
    training_history: Sequence[Mapping[str, Any]] | None = None,
    replicates: int = BOOTSTRAP_REPLICATES,
    seed: int = 0,
    confidence: float = 0.95,
    patients: PatientLevel | None = None,
) -> dict[str, Any]:
    """All figures of one split as plain JSON types; what is not defined is null, never NaN.

    Args:
        test: the split to describe.
        threshold: decision threshold in [0, 1], chosen elsewhere (on validation data).
        threshold_origin: one sentence on how it was chosen.
        features: oracle features by name, each [N] in the order of ``test``. With
            ``fractional_area_change`` its AUC alone (lower means MVO) is compared with the
            model's by a paired DeLong test.
        training_history: rows of the metrics log; gives the best validation AUC and its step.
        replicates: bootstrap samples.
        seed: of the bootstrap.
        confidence: of every interval.
        patients: how to score patients; None leaves them out. They are left out too where every
            patient has one slice, because the figures would be the same.

    Returns:
        The content of ``metrics.json``. If the split lacks a class, one ``OneClassWarning`` is
        issued and what needs both classes is null.

    Raises:
        ValueError: threshold outside [0, 1], or a feature that does not fit or is not finite.
    """
    threshold = float(threshold)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold {threshold} is not in [0, 1]")
    metrics.has_one_class(test.label, test.split)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", metrics.OneClassWarning)  # said once, above
        summary = {
            "schema": SCHEMA_VERSION,
            "split": test.split,
            "confidence": confidence,
            "threshold": {
                "value": threshold,
                "origin": threshold_origin,
                "rule": "called MVO where probability >= threshold",
            },
            "bootstrap": {"replicates": replicates, "seed": seed, "unit": "patient"},
            **_describe(test, threshold, replicates, seed, confidence),
            "fixed_thresholds": [_at_threshold(test, value) for value in FIXED_THRESHOLDS],
            "patient_rule": None if patients is None else asdict(patients),
            "patient_level": None,
            "coarse_map": None,
            "baseline": None,
            "training": _training(training_history or ()),
        }
        if patients is not None and summary["patients"] < len(test):
            whole = by_patient(test, patients.rule)
            summary["patient_level"] = {
                **_describe(whole, patients.threshold, replicates, seed, confidence),
            }
        if test.coarse_mask is not None and test.coarse_target is not None:
            summary["coarse_map"] = metrics.coarse_map_metrics(
                test.coarse_mask, test.coarse_target, test.label, split=test.split
            )
        if features is not None and BASELINE_FEATURE in features:
            summary["baseline"] = _baseline(test, features[BASELINE_FEATURE], confidence)
    return _plain(summary)


def _describe(
    predictions: Predictions, threshold: float, replicates: int, seed: int, confidence: float
) -> dict[str, Any]:
    label, probability, split = predictions.label, predictions.probability, predictions.split
    counts = metrics.confusion(label, probability, threshold)
    drawn = bootstrap_intervals(
        predictions, threshold=threshold, replicates=replicates, seed=seed, confidence=confidence
    )
    called = counts.true_positive + counts.false_positive
    proportions = {
        "specificity": (counts.true_negative, counts.negative),
        "recall": (counts.true_positive, counts.positive),
        "precision": (counts.true_positive, called),
        "negative_predictive_value": (counts.true_negative, label.size - called),
        "accuracy": (counts.true_positive + counts.true_negative, label.size),
    }
    slope, intercept = metrics.calibration_slope_intercept(label, probability, split=split)
    return {
        "cases": label.size,
        "patients": len(set(predictions.patient_id)),
        "positive": counts.positive,
        "negative": counts.negative,
        "prevalence": counts.positive / label.size,
        "confusion": asdict(counts),
        "metrics": {
            "auc": delong_interval(label, probability, confidence=confidence, split=split),
            "auc_bootstrap": drawn["auc"],
            **{
                name: wilson_interval(part, whole, confidence=confidence)
                for name, (part, whole) in proportions.items()
            },
            "f1": drawn["f1"],
            "balanced_accuracy": drawn["balanced_accuracy"],
            "average_precision": drawn["average_precision"],
            "brier": drawn["brier"],
        },
        "calibration": {
            "expected_calibration_error": metrics.expected_calibration_error(label, probability),
            "bins": metrics.CALIBRATION_BINS,
            "slope": slope,
            "intercept": intercept,
        },
    }


def _at_threshold(predictions: Predictions, threshold: float) -> dict[str, Any]:
    counts = metrics.confusion(predictions.label, predictions.probability, threshold)
    return {
        "threshold": threshold,
        **asdict(counts),
        "specificity": counts.specificity,
        "recall": counts.recall,
        "f1": counts.f1,
    }


def _baseline(test: Predictions, feature: Any, confidence: float) -> dict[str, Any]:
    value = np.asarray(feature, np.float64)
    if value.shape != test.label.shape or not np.isfinite(value).all():
        raise ValueError(
            f"feature '{BASELINE_FEATURE}' must be {len(test)} finite values, one for each case "
            f"of split '{test.split}'; got shape {value.shape}"
        )
    paired = paired_delong_test(
        test.label, test.probability, -value, confidence=confidence, split=test.split
    )
    return {
        "feature": BASELINE_FEATURE,
        "direction": "lower means MVO",
        "auc": delong_interval(test.label, -value, confidence=confidence, split=test.split),
        "model_minus_baseline": {
            "value": paired.difference,
            "low": paired.low,
            "high": paired.high,
            "z": paired.z,
            "p": paired.p,
            "method": "paired DeLong",
        },
    }


def _training(history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    logged = [int(row["step"]) for row in history if "step" in row]
    if not logged:
        return None
    steps, aucs = figures.history_series(history, "validation", "auc")
    best = int(np.argmax(aucs)) if aucs else None
    return {
        "last_step": max(logged),
        "best_validation_auc": None if best is None else aucs[best],
        "best_validation_step": None if best is None else steps[best],
    }


def _plain(value: Any) -> Any:
    """Plain JSON types: estimates as objects, numpy numbers as Python's, non-finite as None."""
    if isinstance(value, Estimate):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_summary(path: str | os.PathLike, summary: Mapping[str, Any]) -> None:
    """Writes ``metrics.json``, replaced as a whole.

    Args:
        path: the file.
        summary: what ``summarise`` returned, with anything the caller added.

    Raises:
        ValueError: a value that JSON cannot hold, NaN and infinity included.
        UserError: the file cannot be written.
    """
    replace_file(path, json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_report(
    path: str | os.PathLike,
    *,
    summary: Mapping[str, Any],
    predictions: Predictions,
    cases: Sequence[CaseRecord],
    history: Sequence[Mapping[str, Any]],
    config_text: str,
    provenance: Mapping[str, Any],
    dataset: str,
    simulated: bool,
) -> None:
    """Writes one HTML file that needs nothing else: no network, no script, no other file.

    Args:
        path: the file, replaced as a whole.
        summary: what ``summarise`` returned for ``predictions``.
        predictions: the split the report is about.
        cases: gallery, in order (see ``figures.pick_cases``); may be empty.
        history: rows of the metrics log; may be empty.
        config_text: the resolved config.
        provenance: what to print at the end, e.g. checkpoint, versions, git revision.
        dataset: one line naming the data, e.g. "phantom 'paper', seed 0".
        simulated: True puts "method check only, no clinical claim" on top.

    Raises:
        UserError: the file cannot be written.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", metrics.OneClassWarning)  # the summary has said it
        drawings = _drawings(predictions, summary, history)
    text = render_page(
        "report.html.j2",
        s=summary,
        rows=_headline_rows(summary),
        paper=PAPER_CONFUSION,
        drawings=drawings,
        cards=case_cards(cases, summary["threshold"]["value"]),
        config_text=config_text,
        provenance={str(key): str(value) for key, value in provenance.items()},
        dataset=dataset,
        simulated=simulated,
        level=f"{100 * summary['confidence']:g}%",
        lge_colours=figures.LGE_COLOURS,
    )
    replace_file(path, text)


def render_page(template: str, **values: Any) -> str:
    """Fill in one of this room's templates; every value is escaped.

    Args:
        template: file name.
        **values: what the template names.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, span=_span, number=_number, p_value=_p_value)
    environment.filters["p_short"] = _p_short
    return environment.get_template(template).render(**values)


def _drawings(
    predictions: Predictions, summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> dict[str, markupsafe.Markup | None]:
    drawn = {
        "roc": figures.roc_figure(predictions, summary),
        "precision_recall": figures.precision_recall_figure(predictions, summary),
        "reliability": figures.reliability_figure(predictions, summary),
        "distribution": figures.distribution_figure(predictions, summary),
        "confusion": figures.confusion_figure(summary),
        "training": figures.training_figure(history),
    }
    # Safe to mark: drawn here from numbers, no string of the data gets into a figure.
    return {
        name: None if figure is None else markupsafe.Markup(figures.to_svg(figure, salt=name))
        for name, figure in drawn.items()
    }


def _headline_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    paper_auc = hanley_mcneil_interval(
        PAPER_AUC, PAPER_CONFUSION.positive, PAPER_CONFUSION.negative
    ).value
    rows = []
    for key, title, printed in _HEADLINE:
        paper = paper_auc if key == "auc" else getattr(PAPER_CONFUSION, key)
        rows.append(
            {"key": key, "title": title, "ours": summary["metrics"][key], "paper": paper}
            | {"printed": printed}
        )
    return rows


def case_cards(cases: Sequence[CaseRecord], threshold: float) -> list[dict[str, Any]]:
    """What the macro ``case_card`` draws of each case.

    Args:
        cases: in order.
        threshold: called MVO where probability >= threshold.
    """
    maps = [record.coarse_mask for record in cases if record.coarse_mask is not None]
    maximum = figures.map_maximum(maps)
    cards = []
    for record in cases:
        called = bool(record.probability >= threshold)
        verdict = {
            (1, True): "correct: MVO found",
            (0, False): "correct: no MVO",
            (1, False): "missed MVO",
            (0, True): "false alarm",
            (None, True): "MVO suspected",
            (None, False): "no MVO suspected",
        }[record.label, called]
        frames, height, width = record.video.shape
        cards.append(
            {
                "case_id": record.case_id,
                "role": record.role,
                "probability": float(record.probability),
                "verdict": verdict,
                "right": None if record.label is None else bool(record.label) == called,
                "truth": {1: "truth: MVO", 0: "truth: no MVO", None: "truth unknown"}[record.label],
                "frames": frames,
                "shape": f"{width} / {height}",
                "film": figures.film_strip_uri(record.video),
                "picture": figures.to_png_uri(figures.case_figure(record, map_maximum=maximum)),
                "map_maximum": maximum if record.coarse_mask is not None else None,
                "lge": record.lge_mask is not None,
            }
        )
    return cards


def _percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"  # noqa: RUF001


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "–"  # noqa: RUF001
    return f"{value:.{digits}f}".replace("-", "−")  # noqa: RUF001


def _span(estimate: Mapping[str, Any], digits: int = 1, scale: float = 100) -> str:
    """Limits as 'low to high', in percent unless scaled otherwise."""
    if estimate["low"] is None or estimate["high"] is None:
        return "–"  # noqa: RUF001
    low, high = (_number(scale * estimate[limit], digits) for limit in ("low", "high"))
    return f"{low} to {high}"


def _p_value(value: float | None) -> str:
    if value is None:
        return "not defined"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _p_short(value: float | None) -> str:
    """For a column that is headed 'p'."""
    if value is None:
        return "–"  # noqa: RUF001
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
