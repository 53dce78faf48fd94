"""Subgroups: all of them, with counts, marked where they are small."""

import math

import numpy as np
import pytest

from mvo_jax.evaluation.metrics import roc_auc
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.subgroups import UNKNOWN, groups_of, subgroups


def make(cases=120, per_patient=1):
    draws = np.random.default_rng(0)
    label = (draws.random(cases) < 0.4).astype(int)
    return Predictions(
        "test",
        tuple(f"case_{i}" for i in range(cases)),
        tuple(f"p{i // per_patient}" for i in range(cases)),
        label,
        1 / (1 + np.exp(-draws.normal(size=cases) - label)),
    )


def test_every_case_is_in_one_group_and_small_ones_are_marked():
    data = make()
    sex = ["female" if i < 9 else "male" for i in range(120)]
    rows = subgroups(data, {"sex": sex, "size": list(range(120))}, 0.5)
    for attribute in ("sex", "size"):
        own = [row for row in rows if row["attribute"] == attribute]
        assert sum(row["cases"] for row in own) == 120
        assert sum(row["positive"] for row in own) == data.label.sum()
    assert [row["group"] for row in rows[:2]] == ["female", "male"]
    assert [row["cases"] for row in rows[2:]] == [40, 40, 40]
    assert [row["small"] for row in rows[:2]] == [True, False]
    men = np.arange(120) >= 9
    assert rows[1]["auc"]["value"] == roc_auc(data.label[men], data.probability[men])
    assert rows[1]["auc"]["low"] < rows[1]["auc"]["value"] < rows[1]["auc"]["high"]
    called = data.probability >= 0.5
    assert rows[1]["recall"]["value"] == pytest.approx(called[men & (data.label == 1)].mean())
    specificity = 1 - called[men & (data.label == 0)].mean()
    assert rows[1]["specificity"]["value"] == pytest.approx(specificity)


def test_slices_of_patients_are_drawn_together():
    rows = subgroups(make(per_patient=4), {"scanner": ["a", "b", "b", "a"] * 30}, 0.5)
    assert [row["patients"] for row in rows] == [30, 30]
    assert [row["cases"] for row in rows] == [60, 60]
    assert "bootstrap" in rows[0]["auc"]["method"]


def test_a_group_of_one_class_stays_in_the_table():
    data = make()
    rows = subgroups(data, {"label itself": [str(one) for one in data.label]}, 0.5)
    assert [row["positive"] for row in rows] == [0, data.label.sum()]
    assert all(row["small"] and math.isnan(row["auc"]["value"]) for row in rows)
    assert rows[1]["recall"]["value"] > 0


def test_groups():
    assert groups_of(["a", "", "b"]) == ["a", UNKNOWN, "b"]
    thirds = ["up to 1.67", "1.67 to 2.33", UNKNOWN, "above 2.33"]
    assert groups_of([1.0, 2.0, math.nan, 3.0]) == thirds
    assert groups_of([math.nan]) == [UNKNOWN]
    assert subgroups(make(), {"all alike": [5.0] * 120, "also": ["a"] * 120}, 0.5) == []
