"""How sure: DeLong, Wilson and bootstrap intervals, the paired DeLong test, patient level.

DeLong and Wilson intervals take cases as independent; with several a patient, quote the bootstrap.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mvo_jax.evaluation.metrics import check_probabilities, check_scores, has_one_class, roc_auc
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.settings import PATIENT_RULES

CONFIDENCE = 0.95  # of every interval
TAILS = ((1 - CONFIDENCE) / 2, 1 - (1 - CONFIDENCE) / 2)
BOOTSTRAP_REPLICATES = 2000
BOOTSTRAP_SEED = 0
_BAND_REPLICATES = 500  # for drawing
_NORMAL = 1.959963984540054  # quantile of the upper tail
_CHUNK_VALUES = 1_000_000  # bootstrap weights held at a time: 8 MB as float64


@dataclass(frozen=True)
class Estimate:
    """A value with a two-sided 95 % interval [low, high] and the name of the interval's method."""

    value: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class PairedDeLong:
    """Difference of two AUCs on the same cases, a - b, with a two-sided test."""

    value: float
    low: float
    high: float
    z: float
    p: float


def placements(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's structural components: of each positive the share of negatives it beats (ties
    half), and of each negative the share of positives that beat it. O(N log N).
    """
    positive, negative = score[label == 1], score[label == 0]

    def twice_beaten(own: np.ndarray, others: np.ndarray) -> np.ndarray:
        others = np.sort(others)
        return np.searchsorted(others, own, "left") + np.searchsorted(others, own, "right")

    lost = twice_beaten(negative, positive)
    return twice_beaten(positive, negative) / (2 * negative.size), 1 - lost / (2 * positive.size)


def _component_variance(by_positive: np.ndarray, by_negative: np.ndarray) -> float:
    if by_positive.size < 2 or by_negative.size < 2:
        return math.nan  # a sample variance needs two values
    return float(
        np.var(by_positive, ddof=1) / by_positive.size
        + np.var(by_negative, ddof=1) / by_negative.size
    )


def delong_interval(label: Any, score: Any) -> Estimate:
    """AUC with its interval after DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44:837).

    AUC +- z * standard error, clipped to [0, 1]. With complete separation (AUC exactly 0 or 1) the
    estimated variance is 0. The exact binomial (Clopper-Pearson) interval of "all of k right", k
    the size of the smaller class, is given instead, which is conservative; ``method`` says so. All
    is nan if a class is missing, limits if one has a single case. See ``metrics.check_scores``.
    """
    label, score = check_scores(label, score)
    method = "DeLong, Wald, clipped to [0, 1]"
    if has_one_class(label):
        return Estimate(math.nan, math.nan, math.nan, method)
    auc = roc_auc(label, score)
    if auc in (0.0, 1.0):
        smaller = int(min(label.sum(), label.size - label.sum()))
        reach = TAILS[0] ** (1 / smaller)
        method = "exact binomial of the smaller class (complete separation)"
        return Estimate(auc, *((reach, 1.0) if auc == 1.0 else (0.0, 1 - reach)), method)
    reach = _NORMAL * math.sqrt(_component_variance(*placements(label, score)))
    low, high = np.clip((auc - reach, auc + reach), 0, 1)  # nan stays
    return Estimate(auc, float(low), float(high), method)


def paired_delong_test(label: Any, score_a: Any, score_b: Any) -> PairedDeLong:
    """Tests whether two scores of the same cases have the same AUC (DeLong et al. 1988).

    The variance is that of the difference of the structural components, exactly 0 for two scores
    that rank alike: then z = 0 and p = 1. All is nan if a class is missing; z, p and limits are nan
    if a class has a single case, or if the AUCs differ but the variance is 0. See
    ``metrics.check_scores``.
    """
    label, score_a = check_scores(label, score_a)
    label, score_b = check_scores(label, score_b)
    if has_one_class(label):
        return PairedDeLong(*(math.nan,) * 5)
    difference = roc_auc(label, score_a) - roc_auc(label, score_b)
    placed_a, placed_b = placements(label, score_a), placements(label, score_b)
    error = math.sqrt(_component_variance(placed_a[0] - placed_b[0], placed_a[1] - placed_b[1]))
    if error == 0 and difference == 0:
        return PairedDeLong(0.0, 0.0, 0.0, 0.0, 1.0)
    if error == 0 or math.isnan(error):
        return PairedDeLong(difference, *(math.nan,) * 4)
    from scipy import special  # 0.3 s

    z = difference / error
    p = 2 * float(special.ndtr(-abs(z)))
    low, high = difference - _NORMAL * error, difference + _NORMAL * error
    return PairedDeLong(difference, max(-1.0, low), min(1.0, high), z, p)


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing several hypotheses (Holm, Scand J Stat 1979, 6:65).

    At most 1, in the given order. A nan (a test that is not defined) stays nan and does not count.
    """
    order = sorted(
        (i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i]
    )
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def wilson_interval(successes: int, trials: int) -> Estimate:
    """Score interval of a proportion (Wilson 1927); nan for 0 trials."""
    if trials == 0:
        return Estimate(math.nan, math.nan, math.nan, "Wilson")
    from scipy.stats import binomtest  # 0.5 s

    limits = binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(successes / trials, float(limits.low), float(limits.high), "Wilson")


def bootstrap_weights(
    label: np.ndarray, patient_id: Sequence[str], *, replicates: int
) -> Iterator[np.ndarray]:
    """How often each case is in each bootstrap sample; whole patients, stratified.

    Patients with any positive case and patients without are drawn with replacement separately.
    Yields float64 [chunk, N] blocks, ``replicates`` rows in all; the same draws on every machine
    (Philox).
    """
    patients, index = np.unique(np.asarray(patient_id), return_inverse=True)
    positive = np.bincount(index, weights=label, minlength=patients.size) > 0
    # A stream for each stratum: the draws do not depend on how many rows are made at a time.
    streams = np.random.SeedSequence(BOOTSTRAP_SEED).spawn(2)
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


class Resamples:
    """Bootstrap samples of one split: what vectorised metrics read.

    ``weights``, [rows, N], says how often each case is in each sample.
    """

    def __init__(
        self, label: np.ndarray, probability: np.ndarray, threshold: float, weights: np.ndarray
    ):
        self.label, self.probability, self.threshold = label, probability, threshold
        self.weights = weights
        self.positive, self.negative = weights @ label, weights @ (1 - label)  # [rows]
        called = (probability >= threshold).astype(np.float64)
        self.true_positive = weights @ (called * label)
        self.false_positive = weights @ (called * (1 - label))

    @functools.cached_property
    def by_score(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight of positive and of negative cases at each distinct score, from the highest down:
        [rows, scores].
        """
        order = np.argsort(-self.probability, kind="stable")
        # nan: the first one counts
        starts = np.flatnonzero(np.diff(self.probability[order], prepend=np.nan))
        truth, weights = self.label[order], self.weights[:, order]
        return (
            np.add.reduceat(weights * truth, starts, axis=1),
            np.add.reduceat(weights * (1 - truth), starts, axis=1),
        )

    def auc(self) -> np.ndarray:
        """``metrics.roc_auc`` of each sample."""
        positive, negative = self.by_score
        above = np.cumsum(positive, axis=1) - positive
        wins = np.sum(negative * (above + positive / 2), axis=1)
        return wins / (self.positive * self.negative)

    def average_precision(self) -> np.ndarray:
        """``metrics.average_precision`` of each sample."""
        positive, negative = self.by_score
        found = np.cumsum(positive, axis=1)
        called = found + np.cumsum(negative, axis=1)
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        return np.sum(positive * precision, axis=1) / self.positive

    def f1(self) -> np.ndarray:
        """F1 of each sample."""
        return 2 * self.true_positive / (self.true_positive + self.false_positive + self.positive)

    def balanced_accuracy(self) -> np.ndarray:
        """Mean of recall and specificity of each sample."""
        specificity = 1 - self.false_positive / self.negative
        return (self.true_positive / self.positive + specificity) / 2

    def brier(self) -> np.ndarray:
        """``metrics.brier_score`` of each sample."""
        squares = (self.probability - self.label) ** 2
        return self.weights @ squares / self.weights.sum(axis=1)

    def one_by_one(self, function: Callable[[np.ndarray, np.ndarray, float], float]) -> np.ndarray:
        """Any function of label, probability and threshold of each sample; slow."""
        chosen = [np.repeat(np.arange(row.size), row.astype(int)) for row in self.weights]
        return np.array(
            [function(self.label[i], self.probability[i], self.threshold) for i in chosen]
        )


def bootstrap_intervals(
    predictions: Predictions,
    metrics: Mapping[str, tuple[float, Callable[[Resamples], np.ndarray]]],
    *,
    threshold: float,
    replicates: int,
) -> dict[str, Estimate]:
    """Percentile intervals from a stratified bootstrap over patients.

    Args:
        metrics: by name, the value and what gives the same of many samples; nan where a sample
            lacks a class.
        threshold: for the decisions; held fixed over samples.

    Returns:
        Limits are nan where the value is, and where it is exactly 0 or 1 and no sample differs from
        it: there the bootstrap cannot tell.
    """
    label, probability = check_probabilities(predictions.label, predictions.probability)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    for weights in bootstrap_weights(label, predictions.patient_id, replicates=replicates):
        samples = Resamples(label, probability, threshold, weights)
        with np.errstate(invalid="ignore", divide="ignore"):  # a sample without a class gives nan
            for name, (_, resampled) in metrics.items():
                drawn[name].append(resampled(samples))
    method = f"stratified patient bootstrap, {replicates} samples"
    estimates = {}
    for name, (value, _) in metrics.items():
        sample = np.concatenate(drawn[name])
        sample = sample[np.isfinite(sample)]
        low = high = math.nan
        # At 0 or 1 every sample repeats the value: no spread, which is not certainty.
        certain = value in (0, 1) and sample.size and (sample == value).all()
        if sample.size and not math.isnan(value) and not certain:
            low, high = (float(limit) for limit in np.quantile(sample, TAILS))
        estimates[name] = Estimate(value, low, high, method)
    return estimates


def bootstrap_roc_band(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pointwise band of the ROC curve from the bootstrap over patients, for drawing.

    A grid of false positive rates, lowest and highest true positive rate; both classes are needed.
    """
    label, probability = predictions.label, predictions.probability
    grid, curves = np.linspace(0, 1, 101), []
    for weights in bootstrap_weights(label, predictions.patient_id, replicates=_BAND_REPLICATES):
        by_score = Resamples(label, probability, 0.0, weights).by_score
        positive, negative = (np.cumsum(part, axis=1) for part in by_score)
        for hits, alarms in zip(positive, negative, strict=True):
            if hits[-1] > 0 and alarms[-1] > 0:
                rate = np.concatenate(([0.0], alarms / alarms[-1]))
                curves.append(np.interp(grid, rate, np.concatenate(([0.0], hits / hits[-1]))))
    low, high = np.quantile(np.stack(curves), TAILS, axis=0)
    return grid, low, high


def patient_probability(slices: Sequence[float] | np.ndarray, rule: str) -> float:
    """Probability of a patient from those of the slices: their ``max`` or their ``mean``."""
    # A mean of ones may round to just above 1.
    return float(max(slices) if rule == "max" else min(np.mean(slices), 1.0))


def by_patient(predictions: Predictions, rule: str = "max") -> Predictions:
    """One row a patient, sorted by name: label 1 if any slice is positive; without coarse maps.

    The ``rule`` ``max`` follows the label, but grows with the number of slices, so that its
    threshold must be chosen at patient level too. ``mean`` does not grow, but one positive slice
    among many negative ones is lost in it. ValueError for another rule.
    """
    if rule not in PATIENT_RULES:
        raise ValueError(f"unknown patient rule '{rule}'; known: {', '.join(PATIENT_RULES)}")
    slices: dict[str, list[int]] = {}
    for index, patient in enumerate(predictions.patient_id):
        slices.setdefault(patient, []).append(index)
    names = tuple(sorted(slices))
    return Predictions(
        split=f"{predictions.split} (patients)",
        case_id=names,
        patient_id=names,
        label=np.array([predictions.label[slices[name]].max() for name in names]),
        probability=np.array(
            [patient_probability(predictions.probability[slices[name]], rule) for name in names]
        ),
    )
