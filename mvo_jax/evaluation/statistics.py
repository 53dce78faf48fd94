"""How sure: DeLong, Wilson and bootstrap intervals, the paired DeLong test, patient level.

DeLong and Wilson intervals take cases as independent. With several cases a patient they are too
narrow; the bootstrap draws whole patients and is the one to quote then.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from mvo_jax.evaluation.metrics import (
    average_precision,
    brier_score,
    check_probabilities,
    check_scores,
    confusion,
    has_one_class,
    roc_auc,
)
from mvo_jax.evaluation.predictions import Predictions

BOOTSTRAP_REPLICATES = 2000
_CHUNK_VALUES = 1_000_000  # bootstrap weights held at a time: 8 MB as float64


@dataclass(frozen=True)
class Estimate:
    """A value with a two-sided interval [low, high] and the name of the interval's method."""

    value: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class PairedDeLong:
    """Difference of two AUCs on the same cases, ``auc_a - auc_b``, two-sided test."""

    auc_a: float
    auc_b: float
    difference: float
    low: float
    high: float
    z: float
    p: float


class RocBand(NamedTuple):
    """Pointwise bootstrap band of the true positive rate on a grid of false positive rates."""

    false_positive_rate: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    return float(special.ndtri(0.5 + confidence / 2))


def _placements(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's structural components: of each positive the share of negatives it beats (ties
    half), and of each negative the share of positives that beat it. O(N log N).
    """
    positive, negative = np.sort(score[label == 1]), np.sort(score[label == 0])
    own_positive, own_negative = score[label == 1], score[label == 0]
    beaten = np.searchsorted(negative, own_positive, "left") + np.searchsorted(
        negative, own_positive, "right"
    )
    lost = np.searchsorted(positive, own_negative, "left") + np.searchsorted(
        positive, own_negative, "right"
    )
    return beaten / (2 * negative.size), 1 - lost / (2 * positive.size)


def _component_variance(by_positive: np.ndarray, by_negative: np.ndarray) -> float:
    if by_positive.size < 2 or by_negative.size < 2:
        return math.nan  # a sample variance needs two values
    return float(
        np.var(by_positive, ddof=1) / by_positive.size
        + np.var(by_negative, ddof=1) / by_negative.size
    )


def delong_variance(label: Any, score: Any, *, split: str = "unnamed") -> float:
    """Variance of the AUC after DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44:837).

    Returns:
        The variance; nan if a class has fewer than two cases (none: with a warning).

    Raises:
        ValueError: see ``metrics.check_scores``.
    """
    label, score = check_scores(label, score)
    if has_one_class(label, split):
        return math.nan
    return _component_variance(*_placements(label, score))


def delong_interval(
    label: Any,
    score: Any,
    *,
    confidence: float = 0.95,
    form: str = "wald",
    split: str = "unnamed",
) -> Estimate:
    """AUC with its DeLong interval.

    ``wald``, the default and the classic form: AUC +- z * standard error, clipped to [0, 1].
    ``logit``: symmetric on the logit scale, never leaves (0, 1); its coverage is better near 1.
    With complete separation (AUC exactly 0 or 1) the estimated variance is 0 and either form has
    no width. The exact binomial (Clopper-Pearson) interval of "all of k right", k the size of the
    smaller class, is given instead, which is conservative; ``method`` says so.

    Args:
        label: [N] of 0 and 1.
        score: [N] finite.
        confidence: e.g. 0.95.
        form: ``wald`` or ``logit``.
        split: name used in warnings.

    Returns:
        Estimate; value and limits nan if a class is missing (with a warning), limits nan if a
        class has a single case.

    Raises:
        ValueError: unknown form, or see ``metrics.check_scores``.
    """
    if form not in ("wald", "logit"):
        raise ValueError(f"unknown form '{form}'; known: wald, logit")
    quantile = _normal_quantile(confidence)
    label, score = check_scores(label, score)
    method = "DeLong, Wald, clipped to [0, 1]" if form == "wald" else "DeLong, logit"
    if has_one_class(label, split):
        return Estimate(math.nan, math.nan, math.nan, method)
    auc = roc_auc(label, score, split=split)
    if auc in (0.0, 1.0):
        smaller = int(min(label.sum(), label.size - label.sum()))
        reach = ((1 - confidence) / 2) ** (1 / smaller)
        method = "exact binomial of the smaller class (complete separation)"
        return Estimate(auc, *((reach, 1.0) if auc == 1.0 else (0.0, 1 - reach)), method)
    error = math.sqrt(_component_variance(*_placements(label, score)))
    if form == "wald":
        low, high = auc - quantile * error, auc + quantile * error
        if math.isnan(error):
            return Estimate(auc, math.nan, math.nan, method)
        return Estimate(auc, max(0.0, low), min(1.0, high), method)
    centre, reach = math.log(auc / (1 - auc)), quantile * error / (auc * (1 - auc))
    return Estimate(
        auc, float(special.expit(centre - reach)), float(special.expit(centre + reach)), method
    )


def paired_delong_test(
    label: Any,
    score_a: Any,
    score_b: Any,
    *,
    confidence: float = 0.95,
    split: str = "unnamed",
) -> PairedDeLong:
    """Tests whether two scores of the same cases have the same AUC (DeLong et al. 1988).

    The variance is taken of the difference of the structural components, which equals
    Var(a) + Var(b) - 2 Cov(a, b) and is exactly 0 for two scores that rank alike: then z = 0 and
    p = 1.

    Returns:
        PairedDeLong. All nan if a class is missing (with a warning); z, p and limits nan if a
        class has a single case, or if the AUCs differ but the variance is 0 (both scores
        degenerate: the normal approximation has nothing to say).

    Raises:
        ValueError: see ``metrics.check_scores``, for either score.
    """
    quantile = _normal_quantile(confidence)
    label, score_a = check_scores(label, score_a)
    label, score_b = check_scores(label, score_b)
    if has_one_class(label, split):
        return PairedDeLong(*(math.nan,) * 7)
    auc_a, auc_b = roc_auc(label, score_a), roc_auc(label, score_b)
    difference = auc_a - auc_b
    placed_a, placed_b = _placements(label, score_a), _placements(label, score_b)
    error = math.sqrt(_component_variance(placed_a[0] - placed_b[0], placed_a[1] - placed_b[1]))
    if error == 0 and difference == 0:
        return PairedDeLong(auc_a, auc_b, 0.0, 0.0, 0.0, 0.0, 1.0)
    if error == 0 or math.isnan(error):
        return PairedDeLong(auc_a, auc_b, difference, *(math.nan,) * 4)
    z = difference / error
    p = 2 * float(special.ndtr(-abs(z)))
    low, high = difference - quantile * error, difference + quantile * error
    return PairedDeLong(auc_a, auc_b, difference, max(-1.0, low), min(1.0, high), z, p)


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing several hypotheses (Holm, Scand J Stat 1979, 6:65).

    Args:
        p_values: of one family, in any order; nan where a test is not defined.

    Returns:
        Adjusted values in the same order, at most 1. A nan stays nan and does not count.
    """
    order = sorted(
        (i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i]
    )
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def hanley_mcneil_interval(
    auc: float, positive: int, negative: int, *, confidence: float = 0.95
) -> Estimate:
    """Interval of a **published** AUC from the class sizes alone (Radiology 1982, 143:29).

    For papers that give no scores; exponential-score approximation of the variance.

    Raises:
        ValueError: auc outside [0, 1] or an empty class.
    """
    if not 0 <= auc <= 1 or positive < 1 or negative < 1:
        raise ValueError(f"need auc in [0, 1] and cases of both classes, got {auc}")
    both_beat = auc / (2 - auc)
    beats_both = 2 * auc**2 / (1 + auc)
    variance = (
        auc * (1 - auc)
        + (positive - 1) * (both_beat - auc**2)
        + (negative - 1) * (beats_both - auc**2)
    ) / (positive * negative)
    reach = _normal_quantile(confidence) * math.sqrt(variance)
    return Estimate(auc, max(0.0, auc - reach), min(1.0, auc + reach), "Hanley-McNeil")


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> Estimate:
    """Score interval of a proportion (Wilson 1927); nan for 0 trials.

    Raises:
        ValueError: not 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"need 0 <= successes <= trials, got {successes} of {trials}")
    quantile = _normal_quantile(confidence)
    if trials == 0:
        return Estimate(math.nan, math.nan, math.nan, "Wilson")
    share, square = successes / trials, quantile**2
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    reach = quantile * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    reach /= 1 + square / trials
    # At the ends one limit is exact in theory and off by rounding in practice.
    low = 0.0 if successes == 0 else max(0.0, centre - reach)
    high = 1.0 if successes == trials else min(1.0, centre + reach)
    return Estimate(share, low, high, "Wilson")


def bootstrap_weights(
    label: np.ndarray, patient_id: tuple[str, ...], *, replicates: int, seed: int
) -> Iterator[np.ndarray]:
    """How often each case is in each bootstrap sample; whole patients, stratified.

    Patients with any positive case and patients without are drawn with replacement separately,
    so every sample has as many of either as the data. Philox: the same draws on every machine.

    Args:
        label: [N] of 0 and 1.
        patient_id: N names.
        replicates: number of samples.
        seed: of the draws.

    Yields:
        float64 [chunk, N] blocks, ``replicates`` rows in all.
    """
    patients, index = np.unique(np.asarray(patient_id), return_inverse=True)
    positive = np.bincount(index, weights=label, minlength=patients.size) > 0
    # A stream for each stratum: the draws do not depend on how many rows are made at a time.
    streams = np.random.SeedSequence(seed).spawn(2)
    strata = [
        (group, np.random.Generator(np.random.Philox(stream)))
        for group, stream in zip(
            (np.flatnonzero(positive), np.flatnonzero(~positive)), streams, strict=True
        )
        if group.size
    ]
    chunk = max(1, _CHUNK_VALUES // label.size)
    for start in range(0, replicates, chunk):
        rows = min(chunk, replicates - start)
        times = np.zeros((rows, patients.size))
        for group, generator in strata:
            drawn = generator.integers(group.size, size=(rows, group.size))
            flat = drawn + np.arange(rows)[:, None] * group.size
            counts = np.bincount(flat.ravel(), minlength=rows * group.size)
            times[:, group] = counts.reshape(rows, group.size)
        yield times[:, index]


def _sums_by_score(
    label: np.ndarray, score: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of positive and negative cases at each distinct score, ascending: [rows, scores]."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.nan))  # nan: the first one counts
    truth, weights = label[order], weights[:, order]
    return (
        np.add.reduceat(weights * truth, starts, axis=1),
        np.add.reduceat(weights * (1 - truth), starts, axis=1),
    )


def _weighted_statistics(
    label: np.ndarray, probability: np.ndarray, weights: np.ndarray, threshold: float
) -> dict[str, np.ndarray]:
    positive, negative = _sums_by_score(label, probability, weights)
    total_positive, total_negative = positive.sum(axis=1), negative.sum(axis=1)
    below = np.cumsum(negative, axis=1) - negative
    wins = np.sum(positive * (below + negative / 2), axis=1)
    # From the highest score down: precision at each distinct score, weighted by its positives.
    found = np.cumsum(positive[:, ::-1], axis=1)
    called = found + np.cumsum(negative[:, ::-1], axis=1)
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    decided = (probability >= threshold).astype(np.float64)
    true_positive = weights @ (decided * label)
    false_positive = weights @ (decided * (1 - label))
    with np.errstate(invalid="ignore", divide="ignore"):  # a sample without a class gives nan
        recall = true_positive / total_positive
        specificity = 1 - false_positive / total_negative
        return {
            "auc": wins / (total_positive * total_negative),
            "average_precision": np.sum(positive[:, ::-1] * precision, axis=1) / total_positive,
            "f1": 2 * true_positive / (true_positive + false_positive + total_positive),
            "recall": recall,
            "specificity": specificity,
            "balanced_accuracy": (recall + specificity) / 2,
            "brier": weights @ (probability - label) ** 2 / weights.sum(axis=1),
        }


def bootstrap_intervals(
    predictions: Predictions,
    *,
    threshold: float,
    replicates: int = BOOTSTRAP_REPLICATES,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Percentile intervals from a stratified bootstrap over patients.

    Args:
        predictions: the split.
        threshold: for the decisions, ``probability >= threshold``; held fixed over samples.
        replicates: number of samples.
        seed: of the draws.
        confidence: e.g. 0.95.

    Returns:
        Estimates of auc, average_precision, f1, recall, specificity, balanced_accuracy, brier;
        nan where not defined (a missing class warns). Limits are nan too where the value is
        exactly 0 or 1: no sample can differ from it, so the bootstrap cannot tell.

    Raises:
        ValueError: fewer than 2 replicates.
    """
    if replicates < 2:
        raise ValueError(f"need at least 2 replicates, got {replicates}")
    _normal_quantile(confidence)  # refuses a confidence outside (0, 1)
    label, probability = check_probabilities(predictions.label, predictions.probability)
    counts = confusion(label, probability, threshold)
    values = {
        "auc": roc_auc(label, probability, split=predictions.split),
        "average_precision": average_precision(label, probability, split=predictions.split),
        "f1": counts.f1,
        "recall": counts.recall,
        "specificity": counts.specificity,
        "balanced_accuracy": counts.balanced_accuracy,
        "brier": brier_score(label, probability),
    }
    blocks = [
        _weighted_statistics(label, probability, weights, threshold)
        for weights in bootstrap_weights(
            label, predictions.patient_id, replicates=replicates, seed=seed
        )
    ]
    method = f"stratified patient bootstrap, {replicates} samples"
    tail = (1 - confidence) / 2
    estimates = {}
    for name, value in values.items():
        sample = np.concatenate([block[name] for block in blocks])
        sample = sample[np.isfinite(sample)]
        low = high = math.nan
        # At 0 or 1 every sample repeats the value: no spread, which is not certainty.
        if 0 < value < 1 and sample.size:
            low, high = (float(limit) for limit in np.quantile(sample, (tail, 1 - tail)))
        estimates[name] = Estimate(value, low, high, method)
    return estimates


def bootstrap_roc_band(
    predictions: Predictions,
    *,
    replicates: int = 500,
    seed: int = 0,
    confidence: float = 0.95,
    points: int = 101,
) -> RocBand | None:
    """Pointwise band of the ROC curve from the bootstrap over patients, for drawing.

    Returns:
        The band, or None if a class is missing (with a warning).
    """
    label, probability = check_probabilities(predictions.label, predictions.probability)
    if has_one_class(label, predictions.split):
        return None
    grid = np.linspace(0, 1, points)
    curves = []
    for weights in bootstrap_weights(
        label, predictions.patient_id, replicates=replicates, seed=seed
    ):
        positive, negative = (
            np.cumsum(part[:, ::-1], axis=1) for part in _sums_by_score(label, probability, weights)
        )
        for hits, alarms in zip(positive, negative, strict=True):
            if hits[-1] > 0 and alarms[-1] > 0:
                rate = np.concatenate(([0.0], alarms / alarms[-1]))
                curves.append(np.interp(grid, rate, np.concatenate(([0.0], hits / hits[-1]))))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.stack(curves), (tail, 1 - tail), axis=0)
    return RocBand(grid, low, high)


PATIENT_RULES = ("max", "mean")


def by_patient(predictions: Predictions, rule: str = "max") -> Predictions:
    """One row a patient: label 1 if any slice is positive, probability from those of the slices.

    ``max`` follows the label: a patient has MVO if any slice has. It grows with the number of
    slices, so its threshold must be chosen at patient level too. ``mean`` does not grow, but one
    positive slice among many negative ones is lost in it.

    Patients are sorted by name; ``case_id`` becomes the patient's name; coarse maps are dropped.

    Args:
        predictions: slices.
        rule: ``max`` or ``mean`` of the slices' probabilities.

    Raises:
        ValueError: another rule.
    """
    if rule not in PATIENT_RULES:
        raise ValueError(f"unknown patient rule '{rule}'; known: {', '.join(PATIENT_RULES)}")
    patients, index = np.unique(np.asarray(predictions.patient_id), return_inverse=True)
    positive = np.bincount(index, weights=predictions.label) > 0
    if rule == "max":
        probability = np.zeros(len(patients))
        np.maximum.at(probability, index, predictions.probability)
    else:
        total = np.bincount(index, weights=predictions.probability)
        # A mean of ones may round to just above 1.
        probability = np.clip(total / np.bincount(index), 0, 1)
    names = tuple(str(name) for name in patients)
    return Predictions(
        split=f"{predictions.split} (patients)",
        case_id=names,
        patient_id=names,
        label=positive.astype(np.int32),
        probability=probability,
    )
