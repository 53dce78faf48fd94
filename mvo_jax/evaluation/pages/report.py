"""What an evaluation leaves behind: the content of ``metrics.json`` and the HTML report."""

import json
import os
import warnings
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
    training_history: Sequence[Mapping[str, Any]] | None = None,
    replicates: int = BOOTSTRAP_REPLICATES,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """All figures of one split as plain JSON types; what is not defined is null, never NaN.

    Args:
        test: the split to describe.
        threshold: values in [0, 1], chosen elsewhere (on validation data). Without a rule for
            patients these are left out. They are left out too where every patient has one slice,
            because the figures would be the same.
        features: oracle features by name, each [N] in the order of ``test``. With
            ``fractional_area_change`` its AUC alone (lower means MVO) is compared with the
            model's by a paired DeLong test.
        training_map: [H, W], ``localisation.mean_mvo`` of the training split: the map that a
            predicted one has to beat.
        sectors: of the infarct of each case; adds to the localisation.
        temperature: fitted on validation cases: adds calibration after scaling, and the decision
            curve of the scaled probabilities.
        attributes: of the cases, ``data.attributes``: gives the subgroups.
        training_history: rows of the metrics log; gives the best validation AUC and its step.
        replicates: bootstrap samples.
        seed: of the bootstrap.
        confidence: of every interval.

    Returns:
        The content of ``metrics.json``; 'metrics' holds every one of ``table.METRICS``. If the
        split lacks a class, one ``OneClassWarning`` is issued and what needs both classes is null.

    Raises:
        ValueError: threshold outside [0, 1], or a feature that does not fit or is not finite.
    """
    if not 0 <= threshold.value <= 1:
        raise ValueError(f"threshold {threshold.value} is not in [0, 1]")
    metrics.has_one_class(test.label, test.split)
    drawn = {"confidence": confidence, "replicates": replicates, "seed": seed}
    summary = {
        "schema": SCHEMA_VERSION,
        "split": test.split,
        "confidence": confidence,
        "threshold": {
            "value": float(threshold.value),
            "origin": threshold.origin,
            "rule": "called MVO where probability >= threshold",
        },
        "bootstrap": {"replicates": replicates, "seed": seed, "unit": "patient"},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", metrics.OneClassWarning)  # said once, above
        summary |= _describe(test, threshold.value, **drawn)
        summary["fixed_thresholds"] = [_at_threshold(test, value) for value in FIXED_THRESHOLDS]
        summary |= dict.fromkeys(("patient_rule", "patient_level", "coarse_map", "baseline"))
        summary["localisation"] = None
        if threshold.patient_rule is not None:
            summary["patient_rule"] = {
                "rule": threshold.patient_rule,
                "threshold": threshold.patient_value,
                "threshold_origin": threshold.patient_origin,
            }
            if summary["patients"] < len(test):
                whole = by_patient(test, threshold.patient_rule)
                summary["patient_level"] = _describe(whole, threshold.patient_value, **drawn)
        if test.coarse_mask is not None and test.coarse_target is not None:
            summary["coarse_map"] = coarse_map_metrics(
                test.coarse_mask, test.coarse_target, test.label, split=test.split
            )
            size = test.coarse_target.shape[1]
            mean_map = None if training_map is None else coarse_mean(training_map, size)
            summary["localisation"] = localise(
                test.coarse_mask,
                test.coarse_target,
                test.patient_id,
                mean_map,
                None if sectors is None else sectors.blocks(size),
            )
        if features is not None and BASELINE_FEATURE in features:
            summary["baseline"] = _baseline(test, features[BASELINE_FEATURE], confidence)
        summary["training"] = _training(training_history or ())
        fitted = temperature is not None and temperature.value is not None
        after = scaled(test, temperature) if temperature and fitted else None
        summary["temperature"] = temperature and {
            **asdict(temperature),
            "after": describe_calibration(after) if after else None,
        }
        summary["decision_curve"] = decision_curve(
            test, scaled=after, seed=seed, confidence=confidence
        )
        summary["subgroups"] = subgroups(
            test, attributes or {}, threshold.value, seed=seed, confidence=confidence
        )
    return plain(summary)


def _describe(predictions: Predictions, threshold: float, **drawn: Any) -> dict[str, Any]:
    label, probability = predictions.label, predictions.probability
    counts = metrics.confusion(label, probability, threshold)
    found = estimates(predictions, threshold, **drawn)
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


def _baseline(test: Predictions, feature: Any, confidence: float) -> dict[str, Any]:
    value = np.asarray(feature, np.float64)
    if value.shape != test.label.shape or not np.isfinite(value).all():
        raise ValueError(
            f"feature '{BASELINE_FEATURE}' must be {len(test)} finite values, one for each case "
            f"of split '{test.split}'; got shape {value.shape}"
        )
    options: dict[str, Any] = {"confidence": confidence, "split": test.split}
    paired = asdict(paired_delong_test(test.label, test.probability, -value, **options))
    return {
        "feature": BASELINE_FEATURE,
        "direction": "lower means MVO",
        "auc": asdict(delong_interval(test.label, -value, **options)),
        "model_minus_baseline": {
            "value": paired["difference"],
            **{key: paired[key] for key in ("low", "high", "z", "p")},
            "method": "paired DeLong",
        },
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
    claim: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes one HTML file that needs nothing else: no network, no script, no other file.

    Args:
        path: the file, replaced as a whole.
        summary: what ``summarise`` returned for ``predictions``.
        predictions: the split the report is about.
        cases: gallery, in order (see ``pictures.pick_cases``); may be empty.
        history: rows of the metrics log; may be empty.
        config_text: the resolved config.
        provenance: what to print at the end, e.g. checkpoint, versions, git revision.
        dataset: one line naming the data, e.g. "phantom 'paper', seed 0".
        simulated: True puts "method check only, no clinical claim" on top.
        claim: the CLAIM checklist, ``claim.fill``; left out where it is empty.

    Raises:
        UserError: the file cannot be written.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", metrics.OneClassWarning)  # the summary has said it
        drawings = {
            "roc": curves.roc_figure(predictions, summary),
            "precision_recall": curves.precision_recall_figure(predictions, summary),
            "reliability": curves.reliability_figure(predictions, summary),
            "reliability_after": _after_scaling(predictions, summary),
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
        config_text=config_text,
        provenance=provenance,
        dataset=dataset,
        simulated=simulated,
        level=f"{100 * summary['confidence']:g}%",
        lge_colours=pictures.LGE_COLOURS,
        figures=FIGURE_TITLES,
        maps=MAP_TITLES,
        small=SMALL,
        claim=claim,
        claim_source=CLAIM_SOURCE,
    )
    replace_file(path, text)


def _after_scaling(predictions: Predictions, summary: Mapping[str, Any]) -> Any:
    """The reliability figure of the scaled probabilities; None where there is no temperature."""
    found = summary["temperature"]
    if found is None or found["value"] is None:
        return None
    after = scaled(predictions, Temperature(found["value"], found["origin"]))
    return curves.reliability_figure(after, summary)
