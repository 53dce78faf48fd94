"""Localisation beside the two maps that know nothing of the case."""

import math

import numpy as np
import pytest

from mvo_jax.data.coarse_mask import coarse_mask
from mvo_jax.errors import UserError
from mvo_jax.evaluation.localisation import FIGURES, coarse_mean, localise, mean_mvo


def names(count):
    return [f"p{i}" for i in range(count)]


@pytest.fixture
def target():
    """Ten cases of 4 x 4 blocks, each with two of them occupied; two cases without any."""
    target = np.zeros((12, 16))
    draws = np.random.default_rng(0)
    for row in target[:10]:
        row[draws.choice(16, 2, replace=False)] = (0.5, 0.25)
    return target.reshape(12, 4, 4)


def test_a_perfect_map_and_chance(target):
    found = localise(target, target, names(12), None)
    assert (found["cases"], found["patients"], found["blocks"]) == (10, 10, 16)
    assert {one["value"] for one in found["map"].values()} == {1.0}
    chance = {figure: one["value"] for figure, one in found["chance"].items()}
    assert chance == pytest.approx(
        {
            "pointing_hit_rate": 2 / 16,
            # One less the share of draws without replacement that miss both blocks.
            "hit_rate_3_best": 1 - math.comb(14, 3) / math.comb(16, 3),
            "hit_rate_5_best": 1 - math.comb(14, 5) / math.comb(16, 5),
            "block_auc": 0.5,
            "block_average_precision": 2 / 16,
        }
    )
    assert found["mean_training_map"] is None
    assert found["map_minus_mean_map"] is None


def test_a_map_that_is_the_mean_map_is_no_better_than_it(target):
    mean = target[:10].mean(axis=0)
    found = localise(np.broadcast_to(mean, target.shape), target, names(12), mean)
    assert found["map"] == found["mean_training_map"]
    assert {one["value"] for one in found["map_minus_mean_map"].values()} == {0.0}
    better = localise(target, target, names(12), mean)["map_minus_mean_map"]
    assert all(one["low"] > 0 for one in better.values())


def test_hits_count_the_k_best_blocks():
    occupied = np.array([False, True, False, False])
    score = np.array([4.0, 3.0, 3.0, 1.0])
    assert FIGURES["pointing_hit_rate"](occupied, score) == 0
    assert FIGURES["hit_rate_3_best"](occupied, score) == 1
    # One of the two that tie for the second place would do; with k of 5 every block counts.
    assert FIGURES["pointing_hit_rate"](occupied, np.array([3.0, 3.0, 0.0, 0.0])) == 0.5
    assert FIGURES["hit_rate_5_best"](occupied, score) == 1


def test_slices_of_a_patient_count_together(target):
    alone = localise(target, target[::-1], names(12), None)["map"]["block_auc"]
    together = localise(target, target[::-1], ["a"] * 9 + ["b"] * 3, None)
    assert together["patients"] == 2
    wide = together["map"]["block_auc"]
    assert wide["high"] - wide["low"] != pytest.approx(alone["high"] - alone["low"])


def test_without_positive_cases_nothing_is_defined():
    found = localise(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)), names(2), np.ones((4, 4)))
    assert found["cases"] == 0
    assert all(math.isnan(one["value"]) for one in found["map"].values())


def test_an_empty_training_map_is_no_baseline(target):
    with pytest.raises(UserError, match="no training case has a mask with MVO"):
        localise(target, target, names(12), np.zeros((4, 4)))


@pytest.mark.parametrize("size", [5, 16, 32])
def test_the_mean_map_is_the_mean_of_the_coarse_targets(random_split, on_disk, size):
    split = random_split(cases=16)
    share = mean_mvo(split)
    expected = coarse_mask(split.lge_mask, size).mean(axis=0)
    np.testing.assert_allclose(coarse_mean(share, size), expected, atol=1e-7)  # float32 shares
    np.testing.assert_array_equal(mean_mvo(on_disk(split)), share)
    assert mean_mvo(split, most=4).max() <= 1
