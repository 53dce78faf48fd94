"""Point estimates: ranking, decisions at a threshold and calibration, by scikit-learn.

A case is called positive where ``probability >= threshold``. What is not defined (0/0, or both
classes are needed and one is missing) is nan, whatever scikit-learn says of it, by version.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

CALIBRATION_BINS = 15
MARGIN = 1e-7  # of probabilities whose logit is taken: float32 sigmoids reach 0 and 1 exactly


class OneClassWarning(UserWarning):
    """A split has only positive or only negative cases."""


class ReliabilityCurve(NamedTuple):
    """Non-empty equal-mass bins by rising probability."""

    mean_probability: np.ndarray
    observed_frequency: np.ndarray
    count: np.ndarray


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
        ValueError: empty, not vectors of one length, other labels, or a score that is not finite.
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
    """As ``check_scores``; ValueError too for a value outside [0, 1]."""
    label, probability = check_scores(label, probability)
    if probability.min() < 0 or probability.max() > 1:
        raise ValueError("probability holds values outside [0, 1]")
    return label, probability


def has_one_class(label: np.ndarray) -> bool:
    """Whether all cases are positive, or all negative."""
    return label.min() == label.max()


def warn_of_one_class(label: np.ndarray, split: str) -> None:
    """Issue a ``OneClassWarning`` that names the split, if a class is missing."""
    if has_one_class(label):
        warnings.warn(
            f"split '{split}' has only {'positive' if label[0] else 'negative'} cases "
            f"({label.size}): AUC and everything else that needs both classes is nan",
            OneClassWarning,
            stacklevel=3,
        )


def _scikit_learn() -> Any:
    """``sklearn.metrics``, imported when a value is first asked for: the import takes 0.6 s."""
    import sklearn.metrics

    return sklearn.metrics


def roc_auc(label: Any, score: Any) -> float:
    """Area under the ROC curve: P(score+ > score-) + P(score+ = score-) / 2 (Mann-Whitney).

    In [0, 1], nan if a class is missing. See ``check_scores``, here and below.
    """
    label, score = check_scores(label, score)
    if has_one_class(label):
        return math.nan
    # A whole number of half pairs: rounded to it, scores that rank alike have the same area.
    half_pairs = 2 * int(label.sum()) * int(label.size - label.sum())
    return round(_scikit_learn().roc_auc_score(label, score) * half_pairs) / half_pairs


def roc_curve(label: Any, score: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False and true positive rate and threshold, from the highest distinct score to the lowest.

    The first threshold is +inf (nothing is called positive). Both classes are needed.
    """
    label, score = check_scores(label, score)
    return _scikit_learn().roc_curve(label, score, drop_intermediate=False)


def average_precision(label: Any, score: Any) -> float:
    """Area under the precision-recall steps: sum of (R_k - R_{k-1}) P_k. Chance = prevalence.

    In (0, 1], nan if a class is missing.
    """
    label, score = check_scores(label, score)
    if has_one_class(label):
        return math.nan
    return float(_scikit_learn().average_precision_score(label, score))


def confusion(label: Any, probability: Any, threshold: float) -> Confusion:
    """Counts at ``probability >= threshold``; ValueError for nan."""
    label, probability = check_scores(label, probability)
    if math.isnan(threshold):
        raise ValueError("threshold is nan")
    counts = _scikit_learn().confusion_matrix(label, probability >= threshold, labels=[0, 1])
    negative, positive = counts.tolist()
    return Confusion(
        true_positive=positive[1],
        false_positive=negative[1],
        true_negative=negative[0],
        false_negative=positive[0],
    )


def brier_score(label: Any, probability: Any) -> float:
    """Mean squared difference of probability and label; see ``check_probabilities``."""
    label, probability = check_probabilities(label, probability)
    return float(_scikit_learn().brier_score_loss(label, probability, pos_label=1))


def reliability_curve(
    label: Any, probability: Any, *, bins: int = CALIBRATION_BINS
) -> ReliabilityCurve:
    """Mean probability against observed frequency in bins that hold about equally many cases.

    Equal probabilities share a bin, so that the order of the cases does not matter; there can be
    fewer than ``bins``. The curve of scikit-learn lacks the counts.
    """
    label, probability = check_probabilities(label, probability)
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
    """
    curve = reliability_curve(label, probability, bins=bins)
    gap = np.abs(curve.mean_probability - curve.observed_frequency)
    return float(np.sum(gap * curve.count) / np.sum(curve.count))


def logit(probability: np.ndarray) -> np.ndarray:
    """Log odds, finite for 0 and 1 too."""
    inside = np.clip(probability, MARGIN, 1 - MARGIN)
    return np.log(inside) - np.log1p(-inside)


def calibration_slope_intercept(label: Any, probability: Any) -> tuple[float, float]:
    """Logistic refit ``logit P(label) = intercept + slope * logit(probability)``.

    A slope below 1 means overconfident, 1 and 0 are ideal. Maximum likelihood by Newton's method;
    both are nan if a class is missing, the classes do not overlap or all probabilities are equal.
    """
    label, probability = check_probabilities(label, probability)
    if has_one_class(label):
        return math.nan, math.nan
    odds = logit(probability)
    positive, negative = odds[label == 1], odds[label == 0]
    if positive.min() >= negative.max() or negative.min() >= positive.max():
        return math.nan, math.nan
    from sklearn.linear_model import LogisticRegression

    # A standardised covariate keeps the 2x2 Hessian well conditioned for any spread of logits.
    centre, scale = odds.mean(), odds.std()
    refit: Any = LogisticRegression(C=math.inf, solver="newton-cholesky", tol=1e-15)
    refit.fit(((odds - centre) / scale)[:, None], label)
    slope = float(refit.coef_.item() / scale)
    return slope, float(refit.intercept_.item() - slope * centre)
