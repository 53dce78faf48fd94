"""Point estimates: ranking, decisions at a threshold, calibration and coarse maps.

A case is called positive where ``probability >= threshold``, everywhere. A quantity that is not
defined (0/0) is nan. Where a split lacks one of the classes, functions that need both warn with
``OneClassWarning`` and return nan, so that an evaluation of such a split still gives the rest.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

CALIBRATION_BINS = 15
# Probabilities are moved this far inside (0, 1) before their logit is taken: float32 sigmoid
# outputs reach 0 and 1 exactly.
_LOGIT_MARGIN = 1e-7


class OneClassWarning(UserWarning):
    """A split has only positive or only negative cases."""


class RocCurve(NamedTuple):
    """Points from (0, 0) to (1, 1); the first threshold is +inf (nothing is called positive)."""

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    threshold: np.ndarray


class PrecisionRecallCurve(NamedTuple):
    """Points by rising recall, one for each distinct score; no artificial first point."""

    recall: np.ndarray
    precision: np.ndarray
    threshold: np.ndarray


class ReliabilityCurve(NamedTuple):
    """Non-empty equal-mass bins by rising probability."""

    mean_probability: np.ndarray
    observed_frequency: np.ndarray
    count: np.ndarray


class Threshold(NamedTuple):
    """A decision threshold and one sentence saying where it comes from."""

    value: float
    origin: str


@dataclass(frozen=True)
class Confusion:
    """Counts of decisions against truth and the ratios they give; 0/0 is nan."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def positive(self) -> int:
        """Cases with MVO."""
        return self.true_positive + self.false_negative

    @property
    def negative(self) -> int:
        """Cases without MVO."""
        return self.true_negative + self.false_positive

    @property
    def recall(self) -> float:
        """Sensitivity: called positive among the positive."""
        return _ratio(self.true_positive, self.positive)

    @property
    def specificity(self) -> float:
        """Called negative among the negative."""
        return _ratio(self.true_negative, self.negative)

    @property
    def precision(self) -> float:
        """Positive predictive value; nan when nothing is called positive."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def negative_predictive_value(self) -> float:
        """Negative among those called negative; nan when nothing is called negative."""
        return _ratio(self.true_negative, self.true_negative + self.false_negative)

    @property
    def accuracy(self) -> float:
        """Correct decisions among all."""
        return _ratio(self.true_positive + self.true_negative, self.positive + self.negative)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of recall and specificity."""
        return (self.recall + self.specificity) / 2

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); nan without positives and without positive calls."""
        twice = 2 * self.true_positive
        return _ratio(twice, twice + self.false_positive + self.false_negative)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def check_scores(label: Any, score: Any) -> tuple[np.ndarray, np.ndarray]:
    """Checked copies: label int64 [N] of 0 and 1, score float64 [N].

    Raises:
        ValueError: empty, not one-dimensional, lengths differ, labels other than 0 and 1, or a
            score that is not finite.
    """
    label, score = np.asarray(label), np.asarray(score, dtype=np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise ValueError(
            f"label and score must be vectors of one length, got {label.shape} and {score.shape}"
        )
    if label.size == 0:
        raise ValueError("label and score are empty")
    if not np.isin(label, (0, 1)).all():
        raise ValueError("label holds values other than 0 and 1")
    if not np.isfinite(score).all():
        raise ValueError(f"score is not finite in {np.sum(~np.isfinite(score))} of {label.size}")
    return label.astype(np.int64), score


def check_probabilities(label: Any, probability: Any) -> tuple[np.ndarray, np.ndarray]:
    """As ``check_scores``, and every value in [0, 1].

    Raises:
        ValueError: as ``check_scores``, or a value outside [0, 1].
    """
    label, probability = check_scores(label, probability)
    if probability.min() < 0 or probability.max() > 1:
        raise ValueError("probability holds values outside [0, 1]")
    return label, probability


def has_one_class(label: np.ndarray, split: str) -> bool:
    """True, with a ``OneClassWarning`` that names the split, if a class is missing."""
    positive = int(np.sum(label))
    if 0 < positive < label.size:
        return False
    kind = "positive" if positive else "negative"
    warnings.warn(
        f"split '{split}' has only {kind} cases ({label.size}): "
        "AUC and everything else that needs both classes is nan",
        OneClassWarning,
        stacklevel=3,
    )
    return True


def roc_auc(label: Any, score: Any, *, split: str = "unnamed") -> float:
    """Area under the ROC curve: P(score+ > score-) + P(score+ = score-) / 2 (Mann-Whitney).

    Args:
        label: [N] of 0 and 1.
        score: [N] finite, higher means more likely positive; ties count half.
        split: name used in the warning.

    Returns:
        AUC in [0, 1], nan (with a warning) if a class is missing.

    Raises:
        ValueError: see ``check_scores``.
    """
    label, score = check_scores(label, score)
    if has_one_class(label, split):
        return math.nan
    positive, negative = _counts_by_score(label, score)
    below = np.cumsum(negative) - negative
    wins_twice = int(np.sum(positive * (2 * below + negative)))  # integers: exact under ties
    return wins_twice / (2 * int(positive.sum()) * int(negative.sum()))


def _counts_by_score(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of positive and negative cases at each distinct score, ascending."""
    distinct, group = np.unique(score, return_inverse=True)
    positive = np.bincount(group[label == 1], minlength=distinct.size)
    negative = np.bincount(group[label == 0], minlength=distinct.size)
    return positive, negative


def roc_curve(label: Any, score: Any, *, split: str = "unnamed") -> RocCurve:
    """ROC points, one for each distinct score, from the highest threshold to the lowest.

    Returns:
        The curve; a rate whose class is missing is nan (with a warning).

    Raises:
        ValueError: see ``check_scores``.
    """
    label, score = check_scores(label, score)
    has_one_class(label, split)
    positive, negative = (counts[::-1] for counts in _counts_by_score(label, score))
    start = np.zeros(1)
    return RocCurve(
        np.concatenate((start, np.cumsum(negative))) / (negative.sum() or math.nan),
        np.concatenate((start, np.cumsum(positive))) / (positive.sum() or math.nan),
        np.concatenate(([math.inf], np.unique(score)[::-1])),
    )


def precision_recall_curve(
    label: Any, score: Any, *, split: str = "unnamed"
) -> PrecisionRecallCurve:
    """Precision against recall, one point for each distinct score.

    Returns:
        PrecisionRecallCurve; recall is nan (with a warning) without positive cases.

    Raises:
        ValueError: see ``check_scores``.
    """
    label, score = check_scores(label, score)
    has_one_class(label, split)
    positive, negative = (counts[::-1] for counts in _counts_by_score(label, score))
    found = np.cumsum(positive)
    return PrecisionRecallCurve(
        found / (positive.sum() or math.nan),
        found / (found + np.cumsum(negative)),
        np.unique(score)[::-1],
    )


def average_precision(label: Any, score: Any, *, split: str = "unnamed") -> float:
    """Area under the precision-recall steps: sum of (R_k - R_{k-1}) P_k. Chance = prevalence.

    Returns:
        Average precision in (0, 1], nan (with a warning) if a class is missing.

    Raises:
        ValueError: see ``check_scores``.
    """
    label, score = check_scores(label, score)
    if has_one_class(label, split):
        return math.nan
    curve = precision_recall_curve(label, score, split=split)
    return float(np.sum(np.diff(curve.recall, prepend=0.0) * curve.precision))


def confusion(label: Any, probability: Any, threshold: float) -> Confusion:
    """Counts at ``probability >= threshold``.

    Raises:
        ValueError: see ``check_scores``; threshold is nan.
    """
    label, probability = check_scores(label, probability)
    if math.isnan(threshold):
        raise ValueError("threshold is nan")
    called = probability >= threshold
    positive = label == 1
    return Confusion(
        true_positive=int(np.sum(called & positive)),
        false_positive=int(np.sum(called & ~positive)),
        true_negative=int(np.sum(~called & ~positive)),
        false_negative=int(np.sum(~called & positive)),
    )


def choose_threshold(
    label: Any, probability: Any, *, rule: str = "youden", split: str = "validation"
) -> Threshold:
    """Decision threshold, to be chosen on **validation** data and applied once to the test data.

    Rules: ``youden`` maximises recall + specificity - 1; ``sensitivity_0.8`` takes the highest
    threshold whose recall is at least 0.8; ``fixed_0.5`` and ``released_0.44`` (the value of the
    authors' code) do not look at the data. Of equally good thresholds the highest wins. A chosen
    one lies half-way between the lowest probability called positive and the next lower one: the
    same decisions here as at any value between them, and the widest margin for new cases.

    Args:
        label: [N] of 0 and 1.
        probability: [N] in [0, 1].
        rule: one of the four names.
        split: name used in the origin and in warnings.

    Returns:
        The threshold and its origin in words. If a class is missing, 0.5 with a warning.

    Raises:
        ValueError: unknown rule, or see ``check_probabilities``.
    """
    fixed = {
        "fixed_0.5": Threshold(0.5, "fixed at 0.5, not chosen on data"),
        "released_0.44": Threshold(0.44, "0.44 as in the authors' code, not chosen on data"),
    }
    if rule in fixed:
        return fixed[rule]
    if rule not in ("youden", "sensitivity_0.8"):
        known = ", ".join(("youden", "sensitivity_0.8", *fixed))
        raise ValueError(f"unknown threshold rule '{rule}'; known: {known}")
    label, probability = check_probabilities(label, probability)
    if has_one_class(label, split):
        return Threshold(0.5, f"0.5: the {split} split has one class only, nothing to choose on")
    curve = roc_curve(label, probability, split=split)
    recall, false_alarm, score = (
        curve.true_positive_rate[1:],
        curve.false_positive_rate[1:],
        curve.threshold[1:],
    )
    if rule == "youden":
        # The rates are rationals with small denominators: equal ones may differ by rounding.
        best = int(np.argmax(np.round(recall - false_alarm, 12)))
        origin = f"highest Youden index on the {split} split ({label.size} cases)"
    else:
        best = int(np.argmax(recall >= 0.8))
        origin = f"recall of at least 0.8 on the {split} split ({label.size} cases)"
    value = float(score[best])
    if best + 1 < score.size:
        middle = (value + float(score[best + 1])) / 2
        value = middle if middle > score[best + 1] else value  # neighbouring floats round down
    return Threshold(value, origin)


def brier_score(label: Any, probability: Any) -> float:
    """Mean squared difference of probability and label; 0 is perfect.

    Raises:
        ValueError: see ``check_probabilities``.
    """
    label, probability = check_probabilities(label, probability)
    return float(np.mean((probability - label) ** 2))


def reliability_curve(
    label: Any, probability: Any, *, bins: int = CALIBRATION_BINS
) -> ReliabilityCurve:
    """Mean probability against observed frequency in bins that hold about equally many cases.

    Edges are quantiles of the probabilities. Equal probabilities share a bin, so that the result
    does not depend on the order of the cases; there can then be fewer than ``bins`` bins.

    Raises:
        ValueError: ``bins`` below 1, or see ``check_probabilities``.
    """
    label, probability = check_probabilities(label, probability)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    edges = np.quantile(probability, np.arange(1, bins) / bins)
    index = np.searchsorted(edges, probability, side="left")
    count = np.bincount(index, minlength=bins)
    filled = count > 0
    return ReliabilityCurve(
        np.bincount(index, weights=probability, minlength=bins)[filled] / count[filled],
        np.bincount(index, weights=label, minlength=bins)[filled] / count[filled],
        count[filled],
    )


def expected_calibration_error(
    label: Any, probability: Any, *, bins: int = CALIBRATION_BINS
) -> float:
    """Mean over cases of |mean probability - observed frequency| in their equal-mass bin.

    Biased upwards in small samples: with few cases a bin, a perfect model does not reach 0.

    Raises:
        ValueError: see ``reliability_curve``.
    """
    curve = reliability_curve(label, probability, bins=bins)
    gap = np.abs(curve.mean_probability - curve.observed_frequency)
    return float(np.sum(gap * curve.count) / np.sum(curve.count))


def calibration_slope_intercept(
    label: Any, probability: Any, *, split: str = "unnamed"
) -> tuple[float, float]:
    """Logistic refit ``logit P(label) = intercept + slope * logit(probability)``.

    A slope below 1 means overconfident, 1 and 0 are ideal. Maximum likelihood by Newton's method.

    Returns:
        (slope, intercept); (nan, nan) if a class is missing (with a warning), if the classes do
        not overlap (no finite maximum) or if all probabilities are equal.

    Raises:
        ValueError: see ``check_probabilities``.
    """
    label, probability = check_probabilities(label, probability)
    if has_one_class(label, split):
        return math.nan, math.nan
    inside = np.clip(probability, _LOGIT_MARGIN, 1 - _LOGIT_MARGIN)
    logit = np.log(inside) - np.log1p(-inside)
    positive, negative = logit[label == 1], logit[label == 0]
    if positive.min() >= negative.max() or negative.min() >= positive.max():
        return math.nan, math.nan
    # A standardised covariate keeps the 2x2 Hessian well conditioned for any spread of logits.
    centre, scale = logit.mean(), logit.std()
    design = np.stack((np.ones_like(logit), (logit - centre) / scale), axis=1)

    def loss(weight: np.ndarray) -> float:
        activation = design @ weight
        return float(np.sum(np.logaddexp(0, activation) - label * activation))

    weight = np.zeros(2)
    for _ in range(100):
        fitted = 0.5 * (1 + np.tanh(design @ weight / 2))  # sigmoid that cannot overflow
        gradient = design.T @ (fitted - label)
        hessian = (design * (fitted * (1 - fitted))[:, None]).T @ design
        step = np.linalg.solve(hessian, gradient)
        while loss(weight - step) > loss(weight) and np.abs(step).max() > 1e-12:
            step = step / 2
        weight = weight - step
        if np.abs(step).max() < 1e-10:
            break
    slope = weight[1] / scale
    return float(slope), float(weight[0] - slope * centre)


def coarse_map_metrics(
    predicted: Any, target: Any, label: Any, *, split: str = "unnamed"
) -> dict[str, dict[str, float | int]]:
    """How well the predicted coarse map finds the MVO blocks, over all and over positive cases.

    A block is positive where its target share is above 0. ``pointing_hit_rate`` is the share of
    cases with a positive block whose highest predicted block is one; several equally high blocks
    share the credit. ``zero_map_mse`` is the error of an all-zero map: most blocks are empty, so
    a small ``mse`` alone says nothing.

    Args:
        predicted: [N, m, m] finite.
        target: [N, m, m] in [0, 1].
        label: [N] of 0 and 1, the case labels.
        split: name used in warnings.

    Returns:
        {"all": ..., "positive": ...}, each with cases, mse, zero_map_mse, block_auc,
        block_average_precision, block_prevalence, pointing_hit_rate. "positive" is over the
        cases with label 1; nan where there are none.

    Raises:
        ValueError: shapes differ, empty, values not finite, target outside [0, 1].
    """
    predicted = np.asarray(predicted, dtype=np.float64)
    target = np.asarray(target, dtype=np.float64)
    label = np.asarray(label)
    if predicted.ndim != 3 or predicted.shape != target.shape or len(label) != len(target):
        raise ValueError(
            f"predicted {predicted.shape}, target {target.shape} and label {label.shape} "
            "do not fit together; expected [N, m, m], [N, m, m] and [N]"
        )
    if predicted.size == 0:
        raise ValueError("predicted and target are empty")
    if not (np.isfinite(predicted).all() and np.isfinite(target).all()):
        raise ValueError("predicted or target is not finite")
    if target.min() < 0 or target.max() > 1:
        raise ValueError("target holds values outside [0, 1]")
    # One row a case, one column a block.
    predicted = predicted.reshape(len(predicted), -1)
    target = target.reshape(len(target), -1)
    positive = label == 1
    return {
        "all": _map_metrics(predicted, target, split),
        "positive": _map_metrics(predicted[positive], target[positive], split),
    }


def _map_metrics(predicted: np.ndarray, target: np.ndarray, split: str) -> dict[str, float | int]:
    if len(target) == 0:
        names = (
            "mse",
            "zero_map_mse",
            "block_auc",
            "block_average_precision",
            "block_prevalence",
            "pointing_hit_rate",
        )
        return {"cases": 0, **dict.fromkeys(names, math.nan)}
    occupied = target > 0
    truth, score = occupied.ravel().astype(np.int64), predicted.ravel()
    one_class = has_one_class(truth, f"{split}, blocks of the coarse map")
    pointed = predicted == predicted.max(axis=1, keepdims=True)
    credit = (pointed & occupied).sum(axis=1) / pointed.sum(axis=1)
    with_mvo = occupied.any(axis=1)
    return {
        "cases": len(target),
        "mse": float(np.mean((predicted - target) ** 2)),
        "zero_map_mse": float(np.mean(target**2)),
        "block_auc": math.nan if one_class else roc_auc(truth, score),
        "block_average_precision": math.nan if one_class else average_precision(truth, score),
        "block_prevalence": float(occupied.mean()),
        "pointing_hit_rate": float(credit[with_mvo].mean()) if with_mvo.any() else math.nan,
    }
