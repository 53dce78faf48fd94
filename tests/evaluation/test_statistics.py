"""Intervals and tests against hand values, brute force and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from mvo_jax.evaluation import metrics, statistics
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.table import METRICS, estimates

# A small table worked by hand, scores times 10.
#   positives (a, b): (8, 7) (6, 2) (4, 9); negatives (a, b): (5, 4) (3, 6)
# Shares of negatives beaten, a: 1 1 1/2, b: 1 0 1; shares of positives that beat a negative,
# a: 2/3 1, b: 2/3 2/3.
HAND_LABEL = [1, 1, 1, 0, 0]
HAND_A = [8, 6, 4, 5, 3]
HAND_B = [7, 2, 9, 4, 6]


def make(label, probability, patient_id=None, split="test"):
    names = tuple(f"c{i}" for i in range(len(label)))
    return Predictions(split, names, patient_id or names, np.array(label), np.array(probability))


def random_case(seed, cases=120, levels=None):
    generator = np.random.default_rng(seed)
    label = (generator.random(cases) < 0.4).astype(int)
    probability = stats.norm.cdf(generator.normal(size=cases) + label - 0.5)
    if levels:
        probability = np.round(probability * levels) / levels
    return label, probability


def brute_force_components(label, score):
    positive = [s for s, y in zip(score, label, strict=True) if y == 1]
    negative = [s for s, y in zip(score, label, strict=True) if y == 0]
    wins = np.array([[(p > n) + 0.5 * (p == n) for n in negative] for p in positive])
    return wins.mean(axis=1), wins.mean(axis=0)


def brute_force_covariance(label, first, second):
    """Textbook form: S10 / m + S01 / n, from all pairs."""
    (a10, a01), (b10, b01) = (brute_force_components(label, s) for s in (first, second))
    return np.cov(a10, b10)[0, 1] / len(a10) + np.cov(a01, b01)[0, 1] / len(a01)


def test_delong_by_hand():
    assert metrics.roc_auc(HAND_LABEL, HAND_A) == 5 / 6
    # var(1, 1, 1/2) / 3 + var(2/3, 1) / 2 = 1/36 + 1/36
    interval = statistics.delong_interval(HAND_LABEL, HAND_A)
    assert interval.low == pytest.approx(5 / 6 - 1.959963985 * math.sqrt(1 / 18), abs=1e-9)
    assert interval.high == 1  # clipped
    assert "Wald" in interval.method


def test_paired_delong_by_hand():
    # differences of the components: (0, 1, -1/2) and (0, 1/3); variance 7/36 + 1/36
    result = statistics.paired_delong_test(HAND_LABEL, HAND_A, HAND_B)
    assert result.value == pytest.approx(1 / 6, abs=1e-15)
    z = (1 / 6) / math.sqrt(2 / 9)
    assert result.z == pytest.approx(z, abs=1e-12)
    assert result.p == pytest.approx(2 * stats.norm.sf(z), abs=1e-12)
    assert result.low == pytest.approx(1 / 6 - 1.959963985 * math.sqrt(2 / 9), abs=1e-9)
    assert result.high == 1  # clipped


# sums of about a hundred float64 terms in another order
@pytest.mark.parametrize("levels", [None, 8])
@pytest.mark.parametrize("seed", range(4))
def test_delong_against_all_pairs(seed, levels):
    label, first = random_case(seed, levels=levels)
    second = np.clip(first + np.random.default_rng(seed + 50).normal(size=len(first)), -2, 2)
    interval = statistics.delong_interval(label, first)
    error = math.sqrt(brute_force_covariance(label, first, first))
    assert interval.value - interval.low == pytest.approx(1.9599639845 * error, rel=1e-9)
    result = statistics.paired_delong_test(label, first, second)
    variance = (
        brute_force_covariance(label, first, first)
        + brute_force_covariance(label, second, second)
        - 2 * brute_force_covariance(label, first, second)
    )
    assert result.z == pytest.approx(result.value / math.sqrt(variance), rel=1e-10)
    swapped = statistics.paired_delong_test(label, second, first)
    assert swapped.z == pytest.approx(-result.z, rel=1e-12)
    assert swapped.p == pytest.approx(result.p, rel=1e-12)
    assert (swapped.low, swapped.high) == pytest.approx((-result.high, -result.low), rel=1e-12)


def test_a_score_against_itself_does_not_differ():
    label, score = random_case(3, levels=6)
    for other in (score, 10 * score - 3, score**3):  # the last two rank alike
        result = statistics.paired_delong_test(label, score, other)
        assert result == statistics.PairedDeLong(0, 0, 0, 0, 1)


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        # Sorted 0.005 0.01 0.03 0.04 times 4 3 2 1; the last must not fall below the one before.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.4, 0.9], [1.0, 1.0, 1.0]),
        ([0.02, math.nan, 0.03], [0.04, math.nan, 0.04]),  # a nan is no hypothesis
        ([], []),
    ],
)
def test_holm_by_hand(p_values, expected):
    assert statistics.holm_adjusted(p_values) == pytest.approx(expected, nan_ok=True)


def test_holm_keeps_the_family_error_rate():
    # All hypotheses true, their statistics correlated as those of rows scored on the same cases.
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(2000, 1))
    z = math.sqrt(0.5) * (shared + generator.normal(size=(2000, 6)))
    smallest = [min(statistics.holm_adjusted((2 * stats.norm.sf(abs(row))).tolist())) for row in z]
    rejected = np.mean(np.array(smallest) < 0.05)
    # 2000 tables: three standard errors of a rate of 0.05 are 0.015.
    assert rejected < 0.065
    assert rejected > 0.01  # not so careful that it could never reject


def test_the_papers_auc_has_an_interval_of_about_63_to_82():
    """What the report says, after Hanley and McNeil (Radiology 1982, 143:29), and by DeLong."""
    auc, m, n = 0.727, 44, 86
    both_beat, beats_both = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (m - 1) * (both_beat - auc**2) + (n - 1) * (beats_both - auc**2)
    reach = 1.96 * math.sqrt(variance / (m * n))
    assert (auc - reach, auc + reach) == pytest.approx((0.63, 0.82), abs=0.005)
    # and DeLong says the same on scores of that AUC and size: normal quantiles, shifted
    positive = stats.norm.ppf((np.arange(m) + 0.5) / m) + math.sqrt(2) * stats.norm.ppf(auc)
    negative = stats.norm.ppf((np.arange(n) + 0.5) / n)
    interval = statistics.delong_interval(
        np.repeat([1, 0], [m, n]), np.concatenate((positive, negative))
    )
    assert interval.value == pytest.approx(auc, abs=0.005)  # the quantiles are a discrete grid
    assert (interval.low, interval.high) == pytest.approx((0.63, 0.82), abs=0.01)


def test_complete_separation_keeps_a_width():
    label = np.repeat([0, 1], [30, 10])
    interval = statistics.delong_interval(label, np.arange(40))
    assert (interval.value, interval.high) == (1, 1)
    assert interval.low == pytest.approx(0.025**0.1, abs=1e-12)  # Clopper-Pearson, 10 of 10
    assert "separation" in interval.method
    reverse = statistics.delong_interval(label, -np.arange(40))
    assert (reverse.value, reverse.low) == (0, 0)
    assert reverse.high == pytest.approx(1 - interval.low, abs=1e-12)


def test_what_cannot_be_tested_is_nan():
    assert math.isnan(statistics.wilson_interval(0, 0).value)
    with pytest.raises(ValueError, match="must not be greater"):
        statistics.wilson_interval(3, 2)
    result = statistics.paired_delong_test([0, 0, 1, 1], [1, 2, 3, 4], [5] * 4)  # 1.0 against 0.5
    assert result.value == 0.5
    assert math.isnan(result.p)
    assert math.isnan(result.low)
    assert math.isnan(statistics.delong_interval([1, 1], [0.1, 0.2]).value)
    assert math.isnan(statistics.paired_delong_test([0, 0], [1, 2], [2, 1]).p)
    single = statistics.delong_interval([1, 0, 0], [0.5, 0.4, 0.6])
    assert single.value == 0.5
    assert math.isnan(single.low)
    assert math.isnan(single.high)
    constant = statistics.delong_interval([1, 1, 0, 0], [3, 3, 3, 3])
    assert (constant.value, constant.low, constant.high) == (0.5, 0.5, 0.5)


def test_delong_covers_at_the_stated_rate():
    """400 samples of 30 + 50 binormal scores, true AUC 0.76: 95 % +- 3.3 % is three sigma."""
    generator = np.random.default_rng(8)
    truth = stats.norm.cdf(1 / math.sqrt(2))
    label = np.repeat([1, 0], [30, 50])
    covered = 0
    for _ in range(400):
        interval = statistics.delong_interval(label, generator.normal(size=80) + label)
        covered += interval.low <= truth <= interval.high
    assert 0.905 <= covered / 400 <= 0.985  # known to undercover by about a point at this size


def test_paired_test_has_the_stated_size():
    """400 samples of two equally good scores: 5 % rejections, three sigma is 3.3 %."""
    generator = np.random.default_rng(9)
    label = np.repeat([1, 0], [40, 60])
    rejected = 0
    for _ in range(400):
        common = generator.normal(size=100) + 1.5 * label
        first, second = (common + generator.normal(size=100) for _ in range(2))
        rejected += statistics.paired_delong_test(label, first, second).p < 0.05
    assert 0.017 <= rejected / 400 <= 0.083


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998 (Stat Med 17:857), Table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # by hand, z = 1.96: (0.5 + z^2 / 20) / (1 + z^2 / 10) -+ ...
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_against_published_values(successes, trials, low, high):
    interval = statistics.wilson_interval(successes, trials)
    assert interval.low == pytest.approx(low, abs=5e-5)  # printed to four decimals
    assert interval.high == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize("name", [n for n, one in METRICS.items() if one.resampled is not None])
def test_vectorised_metrics_equal_those_of_the_resampled_cases(name):
    label, probability = random_case(4, cases=60, levels=12)
    patients = tuple(f"p{i // 3}" for i in range(60))
    weights = next(statistics.bootstrap_weights(label, patients, replicates=25))
    samples = statistics.Resamples(label, probability, 0.5, weights)
    metric = METRICS[name]
    assert metric.resampled is not None
    one_by_one = samples.one_by_one(metric)
    # sums of 60 float64 terms in another order
    np.testing.assert_allclose(metric.resampled(samples), one_by_one, atol=1e-12)


def test_bootstrap_draws_whole_patients_within_strata():
    label = np.array([1, 0, 0, 0, 1, 1, 0])
    patients = ("a", "a", "b", "b", "c", "c", "d")  # a and c positive, b and d not
    rows = np.concatenate(list(statistics.bootstrap_weights(label, patients, replicates=50)))
    np.testing.assert_array_equal(rows[:, 0], rows[:, 1])
    np.testing.assert_array_equal(rows[:, 2], rows[:, 3])
    assert (rows[:, 0] + rows[:, 4] == 2).all()
    assert (rows[:, 2] + rows[:, 6] == 2).all()


def test_bootstrap_is_reproducible_whatever_the_block_size(monkeypatch):
    label, probability = random_case(5)
    data = make(label, probability)
    first = estimates(data, 0.4, replicates=200)
    monkeypatch.setattr(statistics, "_CHUNK_VALUES", 1000)
    assert estimates(data, 0.4, replicates=200) == first
    monkeypatch.setattr(statistics, "BOOTSTRAP_SEED", 4)
    other = estimates(data, 0.4, replicates=200)
    assert other["auc_bootstrap"].low != first["auc_bootstrap"].low
    assert other["auc_bootstrap"].value == first["auc_bootstrap"].value


def test_bootstrap_agrees_with_delong_on_independent_cases():
    label, probability = random_case(6, cases=400)
    drawn = estimates(make(label, probability), 0.5, replicates=2000)["auc_bootstrap"]
    formula = statistics.delong_interval(label, probability)
    # different estimators; Monte Carlo error of a 2.5 % limit of 2000 samples is about 0.0013
    assert drawn.low == pytest.approx(formula.low, abs=0.008)
    assert drawn.high == pytest.approx(formula.high, abs=0.008)


def test_repeated_slices_narrow_delong_but_not_the_patient_bootstrap():
    label, probability = random_case(7, cases=80)
    patients = tuple(f"p{i:03d}" for i in range(80))
    single = make(label, probability, patients)
    repeated = make(np.repeat(label, 4), np.repeat(probability, 4), tuple(np.repeat(patients, 4)))
    once, fourfold = (
        estimates(data, 0.5, replicates=300)["auc_bootstrap"] for data in (single, repeated)
    )
    assert (once.low, once.high) == pytest.approx((fourfold.low, fourfold.high), abs=1e-12)
    narrow = statistics.delong_interval(repeated.label, repeated.probability)
    wide = statistics.delong_interval(label, probability)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("label", [0, 1])
def test_bootstrap_of_one_class(label):
    drawn = estimates(make([label] * 6, np.linspace(0.1, 0.9, 6)), 0.5, replicates=50)
    assert math.isnan(drawn["auc_bootstrap"].value)
    assert math.isnan(drawn["auc_bootstrap"].low)
    assert drawn["brier"].low <= drawn["brier"].value <= drawn["brier"].high


def test_bootstrap_without_spread_claims_no_certainty():
    drawn = estimates(make([0, 0, 0, 1, 1], [0.1, 0.2, 0.3, 0.8, 0.9]), 0.5, replicates=50)
    for name in ("auc_bootstrap", "f1", "balanced_accuracy"):
        assert drawn[name].value == 1
        assert math.isnan(drawn[name].low)
        assert math.isnan(drawn[name].high)
    assert drawn["brier"].low < drawn["brier"].high


def test_roc_band_surrounds_the_curve():
    label, probability = random_case(8, cases=300)
    grid, low, high = statistics.bootstrap_roc_band(make(label, probability))
    middle = np.interp(grid, *metrics.roc_curve(label, probability)[:2])
    assert ((low <= middle + 1e-9) & (middle <= high + 1e-9)).all()
    assert (np.diff(low) >= 0).all()


@pytest.mark.parametrize(("rule", "expected"), [("max", [0.4, 0.9, 1.0]), ("mean", [0.3, 0.6, 1])])
def test_by_patient(rule, expected):
    data = make([1, 0, 0, 0, 1], [0.9, 0.3, 0.2, 0.4, 1.0], ("b", "b", "a", "a", "c"))
    patients = statistics.by_patient(data, rule)
    assert patients.case_id == ("a", "b", "c")
    assert patients.label.tolist() == [0, 1, 1]
    np.testing.assert_allclose(patients.probability, expected, atol=1e-15)
    assert "test" in patients.split


def test_by_patient_with_one_slice_each_changes_nothing():
    data = make([1, 0, 1], [0.1 + 0.2, 0.7, 1 / 3], ("a", "b", "c"))
    for rule in statistics.PATIENT_RULES:
        assert (statistics.by_patient(data, rule).probability == data.probability).all()
    with pytest.raises(ValueError, match="'median'; known: max, mean"):
        statistics.by_patient(make([1, 0], [0.5, 0.5], ("a", "b")), "median")
