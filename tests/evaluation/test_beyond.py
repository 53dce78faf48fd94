"""What a network holds beyond a feature: nothing where it copies it, something elsewhere."""

import dataclasses
import math

import numpy as np
import pytest

from mvo_jax.evaluation.beyond import joined, rank_correlation
from mvo_jax.evaluation.metrics import roc_auc
from mvo_jax.evaluation.pages.study import markdown, study_table
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.stored_run import Scores, StoredRun

DRAWS = np.random.default_rng(0)
LABEL = (np.arange(600) % 3 == 0).astype(np.int32)
FEATURE, OTHER = (LABEL + DRAWS.standard_normal(600) for _ in range(2))
NOISE = DRAWS.standard_normal(600)


def probability(score: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-score))).astype(np.float32)


def test_rank_correlation_is_that_of_the_ranks():
    a, b = np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.array([0.1, 0.3, 0.2, 0.4, 0.9])
    assert rank_correlation([a], b) == pytest.approx(0.9)  # 1 - 6 * 2 / (5 * 24)
    assert rank_correlation([a, -a], b) == pytest.approx(0.0)
    assert rank_correlation([np.exp(a)], b**3) == pytest.approx(0.9)
    assert math.isnan(rank_correlation([a], np.zeros(5)))


def test_a_copy_adds_nothing_and_another_view_does():
    def auc(*scores: np.ndarray) -> float:
        return roc_auc(LABEL, joined(LABEL, *map(probability, scores)))

    alone = auc(FEATURE)
    assert alone == pytest.approx(roc_auc(LABEL, FEATURE), abs=0.003)  # each fold its intercept
    assert auc(FEATURE / 2 + 1, FEATURE) == pytest.approx(alone, abs=1e-4)  # float32
    assert auc(NOISE, FEATURE) < alone + 0.005
    # Two independent views of d' = 1 make one of d' = root 2: 84 % after 76 %, here 79.7, 74.7.
    assert auc(OTHER, FEATURE) > alone + 0.04


def test_certain_probabilities_have_a_place():
    found = joined(LABEL, LABEL.astype(np.float32), probability(FEATURE))
    assert np.isfinite(found).all()
    assert roc_auc(LABEL, found) == 1.0


def stored(name: str, seed: int, score: np.ndarray, **changes) -> StoredRun:
    names = tuple(map(str, range(600)))
    scores = Scores.of(Predictions("test", names, names, LABEL, probability(score)))
    config = {"train": {"total_steps": 4}, "data": {"name": "phantom"}}
    return StoredRun(name, seed, "test", config, scores, scores, 0.5, **changes)


def about(*rows: str) -> dict:
    texts = {"title": "T", "question": "Why?", "notes": [], "paper": {}, "references": {}}
    return {**texts, "rows": list(rows), "seeds": [0, 1]}


def test_the_table_of_a_study():
    runs = [
        stored("known", 0, FEATURE, features=["x"]),
        stored("other", 0, OTHER, features=["y"]),
        *(stored("copy", seed, FEATURE) for seed in (0, 1)),
        *(stored("both", seed, FEATURE + OTHER + 0.1 * seed * NOISE) for seed in (0, 1)),
    ]
    table = study_table(about("known", "other", "copy", "both"), runs)
    beyond = table["beyond"]
    assert beyond["feature"] == "known"
    assert beyond["apart"] == {
        "known": pytest.approx(1.0),
        "other": pytest.approx(rank_correlation([FEATURE], OTHER)),
    }
    copy, both = beyond["rows"]
    assert copy["correlation"]["known"] == pytest.approx(1.0)
    assert copy["more"]["low"] <= 0 <= copy["more"]["high"]
    assert both["correlation"]["other"] > 0.6
    assert both["more"]["value"] > 0.04
    assert both["more"]["p"] < 0.001
    assert copy["p_holm"] == copy["more"]["p"]  # the larger of two
    assert "| copy | 1.00 |" in markdown(table)


def test_without_a_feature_or_cases_there_is_no_such_table():
    network, feature = stored("a", 0, OTHER), stored("f", 0, FEATURE, features=["x"])
    assert study_table(about("a"), [network])["beyond"] is None
    assert study_table(about("f"), [feature])["beyond"] is None
    elsewhere = dataclasses.replace(network.scored, cases="other cases")
    run = StoredRun(**{**vars(network), "scored": elsewhere})
    assert study_table(about("a", "f"), [run, feature])["beyond"] is None
    few = np.r_[np.arange(0, 27), np.arange(1, 600, 3)]  # 9 with MVO

    def part(run: StoredRun) -> StoredRun:
        label, shown = run.scored.label[few], run.scored.probability[few]
        return StoredRun(**{**vars(run), "scored": Scores(label, shown, "few")})

    assert study_table(about("a", "f"), [part(network), part(feature)])["beyond"] is None
