"""Folds of a prepared cohort: by patient, as `prepare --folds` makes them, also on disk."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mvo_jax.cli.main import run
from mvo_jax.config_files import load_config
from mvo_jax.data.splits import content_hash, load_split, split_bytes
from mvo_jax.errors import UserError
from tools.simulated_images import write_images

SHAPE = ["--frames=8", "--image_size=32", "--spacing_mm=3.796875", "--jobs=1"]
NAMES = ("train", "validation", "test")


def prepared(source: Path, out: Path, *flags: str) -> Path:
    assert run("prepare", [str(source), f"--out={out}", *SHAPE, *flags]) == 0
    return out


def data(cohort: Path, **changes: Any) -> Any:
    config: Any = load_config("mvo").unlock()
    changes = {"name": "cohort", "dir": str(cohort), "frames": 8, "image_size": 32} | changes
    config.data.update(changes)
    return config.data


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, patients=12, slices=2, positive=5, frames=8, image_size=32)
    return folder


@pytest.fixture(scope="module")
def cohort(images, tmp_path_factory) -> Path:
    return prepared(images, tmp_path_factory.mktemp("cohorts") / "fractions")


def test_every_patient_is_tested_once_and_is_in_one_split_of_each_fold(cohort):
    tested: Counter[str] = Counter()
    for fold in range(4):
        splits = [load_split(data(cohort, folds=4, fold=fold), name) for name in NAMES]
        patients = [set(split.patient_id) for split in splits]
        assert sum(map(len, patients)) == len(set().union(*patients)) == 12
        assert sum(map(len, splits)) == 24
        tested.update(patients[2])
        for split in splits:
            assert split_bytes(data(cohort, folds=4, fold=fold), split.name) == 9 * 32**2 * len(
                split
            )
    assert set(tested.values()) == {1}
    assert len(tested) == 12


def test_they_are_those_of_prepare_and_the_same_on_disk(cohort, images, tmp_path):
    other = prepared(images, tmp_path / "folds", "--folds=4")
    for name in NAMES:
        ours = load_split(data(cohort, folds=4, fold=1), name)
        stored = load_split(data(other, fold=1), name)
        streamed = load_split(data(cohort, folds=4, fold=1, device_budget_mb=0), name)
        assert ours.case_id == stored.case_id == streamed.case_id
        assert content_hash(ours) == content_hash(stored) == content_hash(streamed)
        some = [len(ours) - 1, 0]
        assert (streamed.read(some)["video"] == ours.read(some)["video"]).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"folds": 6}, r"fold \d of 6 has one class: 4 cases, none with MVO"),  # 5 patients have it
        ({"folds": 2}, "2 folds: one is to test"),
        ({"folds": 4, "fold": 4}, r"data.fold is 4, and there are 4 folds"),
        ({"folds": 13}, "12 labelled patients cannot fill 13 splits"),
    ],
)
def test_folds_that_cannot_be_are_refused(cohort, changes, words):
    with pytest.raises(UserError, match=words):
        split_bytes(data(cohort, **changes), "train")
    with pytest.raises(UserError, match="no split 'test_large'"):
        split_bytes(data(cohort, folds=4), "test_large")
