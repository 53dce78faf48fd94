"""Tables of a study from stored runs, and what a stored run keeps."""

import json

import numpy as np
import pytest

from mvo_jax.data.splits import Cases
from mvo_jax.errors import UserError
from mvo_jax.evaluation.metrics import roc_auc
from mvo_jax.evaluation.oracle import oracle_predictions
from mvo_jax.evaluation.pages.study import SHOWN, study_table, write_study
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.readers import difference, mean_difference, readers, seed_variances
from mvo_jax.evaluation.stored_run import (
    Scores,
    StoredRun,
    read_stored_run,
    same_machine,
    write_stored_run,
)

ABOUT = {
    "title": "Title <1>",
    "question": "Why?",
    "rows": ["a", "b", "elsewhere", "never"],
    "seeds": [0, 1, 2],
    "references": {"b": ["a"], "elsewhere": ["a"], "never": ["a"]},
    "notes": ["A note."],
    "paper": {"b": {"auc": 70.0}},
}
LABEL = (np.arange(90) % 3 == 0).astype(np.int32)


def predictions(seed: int, prefix: str = "p") -> Predictions:
    draws = np.random.default_rng(seed)
    names = tuple(f"{prefix}{i}" for i in range(len(LABEL)))
    score = 1 / (1 + np.exp(-LABEL - draws.standard_normal(len(LABEL))))
    return Predictions("test", names, names, LABEL, score.astype(np.float32))


def stored(name: str, seed: int, **changes) -> StoredRun:
    number = 10 * ABOUT["rows"].index(name) + seed
    scores = Scores.of(predictions(number, "other" if name == "elsewhere" else "p"))
    config = {"train": {"total_steps": 4}, "data": {"name": "phantom"}}
    kept = {"curve": [[2, 0.5], [4, 0.6]], "best_step": 4, "provenance": {"python": "3"}}
    return StoredRun(name, seed, "test", config, scores, scores, 0.5, **kept | changes)


@pytest.fixture
def runs():
    of = (("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("elsewhere", 0))
    return [stored(name, seed) for name, seed in of]


def test_the_table_is_that_of_the_readers(runs):
    table = study_table(ABOUT, runs)
    seeds = {"a": [0, 1, 2], "b": [0, 1], "elsewhere": [0]}
    assert [(row["name"], row["seeds"]) for row in table["rows"]] == [*seeds.items()]
    rows = {
        name: readers(LABEL, [run.scored.probability for run in runs if run.name == name])
        for name in seeds
    }
    variances = seed_variances(rows)
    assert table["rows"][1]["auc"]["value"] == pytest.approx(rows["b"].mean)
    (test,) = table["tests"]  # 'elsewhere' is of other cases, 'never' not run
    expected = difference(rows["b"], rows["a"], variances["b"], variances["a"])
    assert (test["row"], test["reference"]) == ("b", "a")
    assert test["difference"] == pytest.approx(expected.value)
    assert (test["p"], test["p_holm"]) == pytest.approx((expected.p, expected.p))
    text = " ".join(table["notes"])
    for words in ("so far: b 2, elsewhere 1", "Not run yet: never.", "found by 80 %"):
        assert words in text


def pointing(value: float, half: float) -> dict:
    """The localisation of a run whose map is better than the mean map by ``value``."""

    def figures(value: float, half: float = 0.0) -> dict:
        one = {"value": value, "low": value - half, "high": value + half}
        return dict.fromkeys(SHOWN, one)

    maps = {"map": figures(0.2 + value), "mean_training_map": figures(0.2), "chance": figures(0.0)}
    return {"cases": 30, "map_minus_mean_map": figures(value, half), **maps}


def test_the_map_beside_the_mean_map_over_seeds(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(ABOUT))
    for seed, value in enumerate((0.16, 0.20, 0.24)):
        run = stored("a", seed, localisation=pointing(value, 0.0588))
        write_stored_run(tmp_path / f"a-seed{seed}.json", run)
    write_stored_run(tmp_path / "b-seed0.json", stored("b", 0, localisation=pointing(0.1, 0.05)))
    found = write_study(tmp_path)["rows"][0]["map_minus_mean_map"]["block_auc"]
    expected = mean_difference([0.16, 0.20, 0.24], [0.03] * 3)
    assert (found["value"], found["low"], found["p"]) == pytest.approx(
        (0.2, expected.low, expected.p)
    )
    text = (tmp_path / "table.md").read_text()
    assert f"20.0 ({100 * expected.low:.1f} to {100 * expected.high:.1f}), p 0.0" in text
    assert "| b | 10.0 |" in text  # with one seed there is no interval
    assert "paired by case" in (tmp_path / "table.html").read_text()


def test_a_study_without_a_run_has_a_page(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(ABOUT))
    assert write_study(tmp_path)["rows"] == []
    page = (tmp_path / "table.html").read_text()
    assert "No run is finished yet." in page
    assert "Title &lt;1&gt;" in page


def test_seeds_of_other_cases_are_refused(runs):
    run = StoredRun(**{**vars(stored("elsewhere", 2)), "name": "a"})
    with pytest.raises(UserError, match="scored on different cases"):
        study_table(ABOUT, [*runs, run])


def test_a_stored_run_is_read_as_it_was_written(tmp_path, runs):
    path = tmp_path / "a-seed0.json"
    write_stored_run(path, runs[0])
    again = read_stored_run(path)
    for key, value in vars(runs[0]).items():
        found = getattr(again, key)
        if isinstance(value, Scores):
            for part in ("label", "probability"):
                np.testing.assert_array_equal(getattr(found, part), getattr(value, part))
            assert found.cases == value.cases
        elif isinstance(value, tuple):
            assert list(found or ()) == list(value)
        else:
            assert found == value


@pytest.mark.parametrize("damage", ["", "{}", '{"schema": 9}', '{"schema": 1, "scored": 3}'])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "a-seed0.json"
    path.write_text(damage)
    with pytest.raises(UserError, match="is not the file of a run"):
        read_stored_run(path)


def test_another_machine_is_one_that_differs_in_what_computes():
    here = {"platform": "x", "versions": {"jax": "1"}, "git_revision": "a"}
    assert same_machine(here, {**here, "git_revision": "b"})
    assert not same_machine(here, {**here, "versions": {"jax": "2"}})


def cases(count: int, seed: int) -> Cases:
    draws = np.random.default_rng(seed)
    label = (np.arange(count) % 2).astype(np.int32)
    names = tuple(f"{seed}-{i}" for i in range(count))
    features = {
        "fractional_area_change": (0.5 - 0.1 * label + 0.1 * draws.standard_normal(count)),
        "territory": draws.integers(0, 3, count).astype(np.float32),
    }
    return Cases("test", label, names, names, features)


def test_a_model_of_one_feature_ranks_as_the_feature():
    training, scored = cases(200, 0), cases(100, 1)
    (found,) = oracle_predictions(["fractional_area_change"], training, [scored])
    expected = roc_auc(scored.label, -scored.features["fractional_area_change"])
    assert roc_auc(found.label, found.probability) == pytest.approx(expected)
    (both,) = oracle_predictions(["fractional_area_change", "territory"], training, [scored])
    assert len(np.unique(both.probability)) == 100
    with pytest.raises(UserError, match="does not know the strain"):
        oracle_predictions(["strain"], training, [scored])
