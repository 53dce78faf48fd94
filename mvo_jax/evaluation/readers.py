"""Mean AUC over seeds, and differences of such means, with both sources of variance.

Seeds are readers of the same cases, and an interval holds what other cases and other seeds would
change (Obuchowski and Rockette, Commun Stat Simul 1995, 24:285; Hillis, Stat Med 2007, 26:596): a t
interval for the seeds, of their mean square, and a normal one for the cases, of DeLong's covariance
matrix, their squares added. ``tools/coverage.py`` measures how often they hold the truth.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mvo_jax.evaluation.metrics import check_scores
from mvo_jax.evaluation.statistics import CONFIDENCE, Estimate, placements

METHOD = "seeds as readers: t for the seeds, DeLong for the cases"
_BARTLETT_LEVEL = 0.05  # under it the rows of a table do not share one variance between seeds


@dataclass(frozen=True)
class Difference:
    """Difference of two mean AUCs on the same cases, ``a - b``, with a two-sided test."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, eq=False)
class Readers:
    """The AUCs [R] of one system's seeds on the same cases.

    ``by_positive`` [R, P] and ``by_negative`` [R, N] are DeLong's structural components.
    """

    auc: np.ndarray
    by_positive: np.ndarray
    by_negative: np.ndarray

    @property
    def count(self) -> int:
        """Seeds."""
        return len(self.auc)

    @property
    def mean(self) -> float:
        """Mean AUC over the seeds."""
        return float(self.auc.mean())

    def case_variance(self, other: "Readers | None" = None) -> float:
        """Variance over cases of the mean AUC, or of its difference to another system's."""
        parts = [self.by_positive.mean(axis=0), self.by_negative.mean(axis=0)]
        if other is not None:
            parts[0] = parts[0] - other.by_positive.mean(axis=0)
            parts[1] = parts[1] - other.by_negative.mean(axis=0)
        return float(sum(np.var(part, ddof=1) / part.size for part in parts))

    def seed_variance(self) -> float:
        """Variance between seeds beyond what the cases explain; nan for a single seed.

        The mean square of the AUCs less the mean of their own variances and plus the mean of their
        covariances, which all seeds share. An estimate, so that it may be negative.
        """
        if self.count < 2:
            return math.nan
        covariance = self.covariance()
        own = float(np.trace(covariance)) / self.count
        shared = (float(covariance.sum()) - own * self.count) / (self.count * (self.count - 1))
        return float(np.var(self.auc, ddof=1)) - (own - shared)

    def covariance(self) -> np.ndarray:
        """DeLong's covariance matrix of the seeds' AUCs, [R, R]."""
        shape = (self.count, self.count)
        parts = (self.by_positive, self.by_negative)
        own = [np.cov(part, ddof=1).reshape(shape) / part.shape[1] for part in parts]
        return own[0] + own[1]


@dataclass(frozen=True)
class SeedVariance:
    """Variance of one seed's AUC beyond the cases, nan where it is not known.

    Degrees of freedom are infinite where there is nothing to estimate (a fixed score); ``pooled``:
    of several rows.
    """

    value: float
    degrees: float
    pooled: bool = False


FIXED = SeedVariance(0.0, math.inf)  # of a score that no seed changes


def readers(label: Any, scores: Sequence[Any]) -> Readers:
    """AUCs and structural components of a system's seeds.

    ``label`` is [N], at least two of each class, ``scores`` one [N] a seed; ValueError otherwise.
    """
    label = np.asarray(label)
    if not len(scores) or min(np.sum(label == 1), np.sum(label == 0)) < 2:
        raise ValueError("needs a seed or more, and two cases or more of each class")
    checked = [check_scores(label, score)[1] for score in scores]
    placed = [placements(label, score) for score in checked]
    return Readers(
        np.array([by_positive.mean() for by_positive, _ in placed]),
        np.stack([by_positive for by_positive, _ in placed]),
        np.stack([by_negative for _, by_negative in placed]),
    )


def seed_variances(rows: Mapping[str, Readers]) -> dict[str, SeedVariance]:
    """Variance between the seeds of each row of a table, of all rows together where they allow it.

    Two degrees of freedom, those of three seeds, make wide intervals that still vary much. Rows
    whose mean squares Bartlett's test does not tell apart (level 0.05) share the mean of their
    variances, weighted by degrees of freedom. A row with one seed takes the shared one, if any.
    """
    several = [row for row in rows.values() if row.count > 1]
    if len(several) > 1 and _alike([row.auc for row in several]):
        degrees = sum(row.count - 1 for row in several)
        value = sum(row.seed_variance() * (row.count - 1) for row in several) / degrees
        shared = SeedVariance(max(value, 0.0), degrees, pooled=True)
        return dict.fromkeys(rows, shared)
    return {
        name: SeedVariance(max(row.seed_variance(), 0.0), row.count - 1)
        if row.count > 1
        else SeedVariance(math.nan, math.nan)
        for name, row in rows.items()
    }


def _alike(groups: Sequence[np.ndarray]) -> bool:
    """Whether Bartlett's test leaves several variances together."""
    from scipy.stats import bartlett  # 0.5 s

    if all(np.ptp(group) == 0 for group in groups):
        return True
    if any(np.ptp(group) == 0 for group in groups):
        return False
    return float(bartlett(*groups).pvalue) >= _BARTLETT_LEVEL


def mean_auc(row: Readers, seeds: SeedVariance) -> Estimate:
    """Mean AUC over seeds with its interval within [0, 1]; ``FIXED`` is for a fixed score.

    Limits are nan where the variance of the seeds is not known.
    """
    parts = [(seeds.value / row.count, seeds.degrees)]
    reach = _reach(row.case_variance(), parts, CONFIDENCE)
    low, high = np.clip((row.mean - reach, row.mean + reach), 0, 1)  # nan stays
    return Estimate(row.mean, float(low), float(high), METHOD)


def difference(
    a: Readers,
    b: Readers,
    seeds_a: SeedVariance,
    seeds_b: SeedVariance,
    *,
    confidence: float = 0.95,
) -> Difference:
    """Difference of two systems' mean AUCs on the same cases, ``a - b``.

    The seeds of the two count as drawn independently: equal seeds give two networks nothing in
    common that would bring their AUCs together. p is 1 less the confidence of the interval that
    just reaches 0. Limits and p are nan where a variance is not known.
    """
    value = a.mean - b.mean
    cases = a.case_variance(b)
    parts = _together((seeds_a, a.count), (seeds_b, b.count))
    reach = _reach(cases, parts, confidence)
    if math.isnan(reach):
        return Difference(value, math.nan, math.nan, math.nan)
    low, high = max(-1.0, value - reach), min(1.0, value + reach)
    return Difference(value, low, high, _p(abs(value), cases, parts))


def mean_difference(
    values: Sequence[float], errors: Sequence[float], *, confidence: float = 0.95
) -> Difference:
    """A paired difference that every seed measured on the same cases, averaged over the seeds.

    For figures of which the seeds' covariance is not stored: the ``errors`` over cases (standard,
    one a seed) count as wholly shared, and the seeds' spread as theirs alone, which makes the
    interval wider than it has to be. Limits and p are nan with a single seed.
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Difference(mean, math.nan, math.nan, math.nan)
    cases = float(np.mean(np.square(errors)))
    parts = [(float(np.var(values, ddof=1)) / count, float(count - 1))]
    reach = _reach(cases, parts, confidence)
    return Difference(mean, mean - reach, mean + reach, _p(abs(mean), cases, parts))


def _together(*systems: tuple[SeedVariance, int]) -> list[tuple[float, float]]:
    """(variance, degrees of freedom) of the independent estimates behind a difference."""
    pooled = [(one, count) for one, count in systems if one.pooled]
    parts = [(one.value / count, one.degrees) for one, count in systems if not one.pooled]
    if pooled:  # one estimate, used for both
        total = sum(one.value / count for one, count in pooled)
        parts.append((total, pooled[0][0].degrees))
    return parts


def _reach(cases: float, parts: Sequence[tuple[float, float]], confidence: float) -> float:
    """Half the width of an interval."""
    from scipy import special, stats  # 0.5 s

    upper = 0.5 + confidence / 2
    squares = float(special.ndtri(upper)) ** 2 * cases
    for variance, degrees in parts:
        if math.isnan(variance):
            return math.nan
        if variance > 0:
            quantile = stats.t.ppf(upper, degrees) if degrees < math.inf else special.ndtri(upper)
            squares += float(quantile) ** 2 * variance
    return math.sqrt(squares)


def _p(value: float, cases: float, parts: Sequence[tuple[float, float]]) -> float:
    """1 less the confidence at which the interval just reaches 0; by bisection."""
    if value == 0:
        return 1.0
    low, high = 1e-12, 1.0 - 1e-12  # of p
    if _reach(cases, parts, 1 - low) < value:
        return low
    while high - low > 1e-9 * high:
        middle = math.sqrt(low * high)
        if _reach(cases, parts, 1 - middle) < value:
            high = middle
        else:
            low = middle
    return high
