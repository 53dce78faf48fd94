"""Seeds as readers: against DeLong where there is nothing else, and against a simulation."""

import math

import numpy as np
import pytest

from mvo_jax.evaluation.readers import (
    FIXED,
    SeedVariance,
    difference,
    mean_auc,
    mean_difference,
    readers,
    seed_variances,
)
from mvo_jax.evaluation.statistics import delong_interval, paired_delong_test
from tools.coverage import simulate


@pytest.fixture
def table():
    """(label, scores of three rows with three seeds each)."""
    label, score = simulate(np.random.default_rng(2), 3, 3, auc=0.73, sd=0.03, cases=(60, 90))
    return label, score


def test_one_fixed_score_is_delong(table):
    label, score = table
    a, b = (readers(label, [score[i, 0]]) for i in (0, 1))
    found, expected = mean_auc(a, FIXED), delong_interval(label, score[0, 0])
    assert (found.value, found.low, found.high) == pytest.approx(
        (expected.value, expected.low, expected.high), abs=1e-12
    )
    paired, wanted = (
        difference(a, b, FIXED, FIXED),
        paired_delong_test(label, score[0, 0], score[1, 0]),
    )
    assert (paired.value, paired.low, paired.high) == pytest.approx(
        (wanted.value, wanted.low, wanted.high), abs=1e-12
    )
    assert paired.p == pytest.approx(wanted.p, rel=1e-6)


def test_equal_seeds_are_one_reader(table):
    label, score = table
    row = readers(label, [score[0, 0]] * 3)
    assert row.seed_variance() == pytest.approx(0, abs=1e-15)
    expected = delong_interval(label, score[0, 0])
    found = mean_auc(row, seed_variances({"row": row})["row"])
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_covariance_of_the_mean_is_that_of_its_parts(table):
    label, score = table
    row = readers(label, list(score[0]))
    assert row.case_variance() == pytest.approx(row.covariance().mean(), rel=1e-12)


def test_variances_are_pooled_where_they_are_alike(table):
    label, score = table
    rows = {str(i): readers(label, list(one)) for i, one in enumerate(score)}
    rows["single"] = readers(label, [score[0, 0]])
    found = seed_variances(rows)
    assert {(one.degrees, one.pooled) for one in found.values()} == {(6, True)}
    mean = np.mean([rows[str(i)].seed_variance() for i in range(3)])
    assert found["single"].value == pytest.approx(max(mean, 0))
    # A row whose seeds are far apart keeps its variance to itself.
    rows["wild"] = readers(label, [score[0, 0], -score[0, 0], score[0, 1]])
    apart = seed_variances(rows)
    assert not any(one.pooled for one in apart.values())
    assert apart["wild"].value > 50 * max(apart["0"].value, 1e-4)
    assert math.isnan(apart["single"].value)


def test_unknown_variance_gives_no_interval(table):
    label, score = table
    row = readers(label, [score[0, 0]])
    unknown = seed_variances({"row": row})["row"]
    assert math.isnan(mean_auc(row, unknown).low)
    assert math.isnan(difference(row, row, unknown, FIXED).p)


def test_p_is_the_confidence_that_reaches_zero(table):
    label, score = table
    a, b = (readers(label, list(score[i])) for i in (0, 1))
    seeds = SeedVariance(4e-4, 2)
    found = difference(a, b, seeds, seeds)
    at = difference(a, b, seeds, seeds, confidence=1 - found.p)
    assert min(abs(at.low), abs(at.high)) == pytest.approx(0, abs=1e-8)
    again = difference(b, a, seeds, seeds)
    assert (again.low, again.high, again.p) == pytest.approx((-found.high, -found.low, found.p))


def test_a_difference_that_every_seed_measured():
    found = mean_difference([0.16, 0.20, 0.24], [0.03, 0.03, 0.03])
    # t of two degrees and the normal quantile, 95 %; the spread of the seeds is 0.04.
    reach = math.sqrt(4.302653**2 * 0.04**2 / 3 + 1.959964**2 * 0.03**2)
    assert (found.value, found.low, found.high) == pytest.approx(
        (0.2, 0.2 - reach, 0.2 + reach), abs=1e-7
    )
    at = mean_difference([0.16, 0.20, 0.24], [0.03, 0.03, 0.03], confidence=1 - found.p)
    assert at.low == pytest.approx(0, abs=1e-8)
    alone = mean_difference([0.2], [0.03])
    assert alone.value == 0.2
    assert math.isnan(alone.low)
    assert math.isnan(alone.p)


def test_seeds_of_one_truth_are_within_such_an_interval():
    """A share of the errors over cases is common to all seeds: the interval is wide enough."""
    draws, held = np.random.default_rng(2), 0
    for _ in range(1000):
        common, own = draws.normal(0, 0.02), draws.normal(0, 0.01, 3)
        values = 0.1 + common + own + draws.normal(0, 0.03, 3)
        found = mean_difference(values.tolist(), [math.hypot(0.02, 0.01)] * 3)
        held += found.low <= 0.1 <= found.high
    assert held >= 950


def test_more_seeds_and_pooled_degrees_narrow_the_interval(table):
    label, score = table
    row = readers(label, list(score[0]))
    widths = []
    for degrees in (2, 8, math.inf):
        found = mean_auc(row, SeedVariance(4e-4, degrees))
        widths.append(found.high - found.low)
    assert widths[0] > widths[1] > widths[2]


@pytest.mark.parametrize("label", [[1, 0, 0, 0], [1, 1, 1, 0]])
def test_a_class_of_one_case_is_refused(label):
    with pytest.raises(ValueError, match="two cases or more"):
        readers(label, [np.arange(4.0)])


@pytest.mark.parametrize("sd", [0.0, 0.04])
def test_coverage_with_three_seeds(sd):
    draws, held = np.random.default_rng(1), np.zeros(2)
    for _ in range(400):
        label, score = simulate(draws, 4, 3, auc=0.73, sd=sd, cases=(50, 100))
        rows = {str(i): readers(label, list(one)) for i, one in enumerate(score)}
        seeds = seed_variances(rows)
        mean = mean_auc(rows["0"], seeds["0"])
        paired = difference(rows["0"], rows["1"], seeds["0"], seeds["1"])
        held += (mean.low <= 0.73 <= mean.high, paired.low <= 0 <= paired.high)
    # Standard error of a share of 0.95 among 400: 1.1 points; three of them.
    assert np.all(np.abs(held / 400 - 0.95) < 0.033)
