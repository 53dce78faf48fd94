"""What an evaluation leaves behind: the content of ``metrics.json`` and the HTML report."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import markupsafe
import numpy as np

from mvo_jax.evaluation import metrics
from mvo_jax.evaluation.calibration import Temperature, describe_calibration, scaled
from mvo_jax.evaluation.claim import SOURCE as CLAIM_SOURCE
from mvo_jax.evaluation.decision_curve import decision_curve
from mvo_jax.evaluation.figures import curves, pictures
from mvo_jax.evaluation.figures.pictures import CaseRecord
from mvo_jax.evaluation.localisation import (
    SECTOR_FIGURE,
    coarse_map_metrics,
    coarse_mean,
    localise,
)
from mvo_jax.evaluation.pages.cards import embedded_cards
from mvo_jax.evaluation.pages.render import plain, render_page
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.sectors import InfarctSectors
from mvo_jax.evaluation.statistics import (
    BOOTSTRAP_REPLICATES,
    BOOTSTRAP_SEED,
    CONFIDENCE,
    by_patient,
    delong_interval,
    paired_delong_test,
)
from mvo_jax.evaluation.subgroups import SMALL, subgroups
from mvo_jax.evaluation.table import METRICS, estimates
from mvo_jax.evaluation.thresholds import Threshold
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
# Figures of the localisation and its maps, as the report calls them.
FIGURE_TITLES = {
    "pointing_hit_rate": "Highest block",
    "hit_rate_3_best": "3 best blocks",
    "hit_rate_5_best": "5 best blocks",
    "block_auc": "Block AUC",
    "block_average_precision": "Block AP",
    SECTOR_FIGURE: "Infarct's sector",
}
MAP_TITLES = {
    "map": "Predicted map",
    "mean_training_map": "Mean training map",
    "chance": "Chance",
    "map_minus_mean_map": "Predicted less mean map",
}
_PRINTED = ("auc", "specificity", "recall", "f1")


def summarise(
    test: Predictions,
    threshold: Threshold,
    *,
    features: Mapping[str, Any] | None = None,
    training_map: np.ndarray | None = None,
    sectors: InfarctSectors | None = None,
    temperature: Temperature | None = None,
    attributes: Mapping[str, Sequence[float] | Sequence[str]] | None = None,
    training_history: Sequence[Mapping[str, Any]] = (),
    replicates: int = BOOTSTRAP_REPLICATES,
) -> dict[str, Any]:
    """All figures of one split as plain JSON types; what is not defined is null, never NaN.

    Args:
        threshold: values in [0, 1], chosen elsewhere (on validation data). Without a rule for
            patients these are left out, and where every patient has one slice: the figures would be
            the same.
        features: oracle features by name, each [N] in the order of ``test``. With
            ``fractional_area_change`` its AUC alone (lower means MVO) is compared with the model's
            by a paired DeLong test.
        training_map: [H, W], ``localisation.mean_mvo`` of the training split: the map that a
            predicted one has to beat.
        sectors: of the infarct of each case; adds to the localisation.
        temperature: fitted on validation cases: adds calibration after scaling, and the decision
            curve of the scaled probabilities.
        attributes: of the cases, ``data.attributes``: gives the subgroups.
        training_history: rows of the metrics log; gives the best validation AUC and its step.

    Returns:
        The content of ``metrics.json``; 'metrics' holds every one of ``table.METRICS``. If the
        split lacks a class, one ``OneClassWarning`` is issued and what needs both classes is null.

    Raises:
        ValueError: threshold outside [0, 1], or a feature that does not fit or is not finite.
    """
    if not 0 <= threshold.value <= 1:
        raise ValueError(f"threshold {threshold.value} is not in [0, 1]")
    metrics.warn_of_one_class(test.label, test.split)
    coarse_map = localisation = baseline = patient_rule = patient_level = None
    described = _describe(test, threshold.value, replicates)
    if threshold.patient_rule is not None:
        patient_rule = {
            "rule": threshold.patient_rule,
            "threshold": threshold.patient_value,
            "threshold_origin": threshold.patient_origin,
        }
        if described["patients"] < len(test):
            whole = by_patient(test, threshold.patient_rule)
            patient_level = _describe(whole, threshold.patient_value, replicates)
    if test.coarse_mask is not None and test.coarse_target is not None:
        coarse_map = coarse_map_metrics(test.coarse_mask, test.coarse_target, test.label)
        size = test.coarse_target.shape[1]
        localisation = localise(
            test.coarse_mask,
            test.coarse_target,
            test.patient_id,
            None if training_map is None else coarse_mean(training_map, size),
            None if sectors is None else sectors.blocks(size),
        )
    if features is not None and BASELINE_FEATURE in features:
        baseline = _baseline(test, features[BASELINE_FEATURE])
    fitted = temperature is not None and temperature.value is not None
    after = scaled(test, temperature) if temperature and fitted else None
    return plain(
        {
            "schema": SCHEMA_VERSION,
            "split": test.split,
            "confidence": CONFIDENCE,
            "threshold": {
                "value": float(threshold.value),
                "origin": threshold.origin,
                "rule": "called MVO where probability >= threshold",
            },
            "bootstrap": {"replicates": replicates, "seed": BOOTSTRAP_SEED, "unit": "patient"},
            **described,
            "fixed_thresholds": [_at_threshold(test, value) for value in FIXED_THRESHOLDS],
            "patient_rule": patient_rule,
            "patient_level": patient_level,
            "coarse_map": coarse_map,
            "baseline": baseline,
            "localisation": localisation,
            "training": _training(training_history),
            "temperature": temperature
            and {**asdict(temperature), "after": after and describe_calibration(after)},
            "decision_curve": decision_curve(test, after),
            "subgroups": subgroups(test, attributes or {}, threshold.value),
        }
    )


def _describe(predictions: Predictions, threshold: float, replicates: int) -> dict[str, Any]:
    label, probability = predictions.label, predictions.probability
    counts = metrics.confusion(label, probability, threshold)
    found = estimates(predictions, threshold, replicates=replicates)
    return {
        "cases": label.size,
        "patients": len(set(predictions.patient_id)),
        "positive": counts.positive,
        "negative": counts.negative,
        "prevalence": counts.positive / label.size,
        "confusion": asdict(counts),
        "metrics": {name: asdict(estimate) for name, estimate in found.items()},
        "calibration": describe_calibration(predictions),
    }


def _at_threshold(predictions: Predictions, threshold: float) -> dict[str, Any]:
    counts = metrics.confusion(predictions.label, predictions.probability, threshold)
    ratios = {name: getattr(counts, name) for name in ("specificity", "recall", "f1")}
    return {"threshold": threshold, **asdict(counts), **ratios}


def _baseline(test: Predictions, feature: Any) -> dict[str, Any]:
    value = np.asarray(feature, np.float64)
    if value.shape != test.label.shape or not np.isfinite(value).all():
        raise ValueError(
            f"feature '{BASELINE_FEATURE}' must be {len(test)} finite values, one for each case "
            f"of split '{test.split}'; got shape {value.shape}"
        )
    paired = paired_delong_test(test.label, test.probability, -value)
    return {
        "feature": BASELINE_FEATURE,
        "direction": "lower means MVO",
        "auc": asdict(delong_interval(test.label, -value)),
        "model_minus_baseline": {**asdict(paired), "method": "paired DeLong"},
    }


def _training(history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    logged = [int(row["step"]) for row in history if "step" in row]
    if not logged:
        return None
    steps, aucs = curves.history_series(history, "validation", "auc")
    best = int(np.argmax(aucs)) if aucs else None
    return {
        "last_step": max(logged),
        "best_validation_auc": None if best is None else aucs[best],
        "best_validation_step": None if best is None else steps[best],
    }


def write_summary(path: str | os.PathLike, summary: Mapping[str, Any]) -> None:
    """Writes ``metrics.json``; ValueError for NaN and infinity, UserError if it cannot."""
    replace_file(path, json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_report(
    path: str | os.PathLike,
    *,
    summary: Mapping[str, Any],
    predictions: Predictions,
    cases: Sequence[CaseRecord],
    history: Sequence[Mapping[str, Any]],
    claim: Sequence[Mapping[str, Any]] = (),
    **values: Any,
) -> None:
    """Writes one HTML file that needs nothing else: no network, no script, no other file.

    Args:
        summary: what ``summarise`` returned for ``predictions``.
        cases: gallery, in order (see ``pictures.pick_cases``); may be empty.
        history: rows of the metrics log; may be empty.
        claim: the CLAIM checklist, ``claim.fill``; left out where it is empty.
        values: config_text, provenance (printed at the end), dataset (one line, e.g. "phantom
            'paper', seed 0") and simulated, which puts "method check only, no clinical claim" on
            top.
    """
    fitted: Any = summary["temperature"] or {"value": None}
    after = None
    if fitted["value"] is not None:
        after = scaled(predictions, Temperature(fitted["value"], fitted["origin"]))
    drawings = {
        "roc": curves.roc_figure(predictions, summary),
        "precision_recall": curves.precision_recall_figure(predictions, summary),
        "reliability": curves.reliability_figure(predictions),
        "reliability_after": after and curves.reliability_figure(after),
        "distribution": curves.distribution_figure(predictions, summary),
        "confusion": curves.confusion_figure(summary),
        "decision": curves.decision_figure(summary),
        "training": curves.training_figure(history),
    }
    rows = [
        {
            "key": key,
            "title": metric.title,
            "format": metric.format,
            "ours": summary["metrics"][key],
            "paper": PAPER_AUC if key == "auc" else getattr(PAPER_CONFUSION, key, None),
            "printed": key in _PRINTED,
        }
        for key, metric in METRICS.items()
        if "report" in metric.pages
    ]
    text = render_page(
        "report.html.j2",
        s=summary,
        rows=rows,
        paper=PAPER_CONFUSION,
        # Safe to mark: drawn here from numbers, no string of the data gets into a figure.
        drawings={
            name: figure and markupsafe.Markup(curves.to_svg(figure, salt=name))
            for name, figure in drawings.items()
        },
        cards=embedded_cards(cases, summary["threshold"]["value"]),
        level=f"{100 * summary['confidence']:g}%",
        lge_colours=pictures.LGE_COLOURS,
        figures=FIGURE_TITLES,
        maps=MAP_TITLES,
        small=SMALL,
        claim=claim,
        claim_source=CLAIM_SOURCE,
        **values,
    )
    replace_file(path, text)
