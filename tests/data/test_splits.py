import dataclasses
import warnings

import numpy as np
import pytest

from mvo_jax.data.labels import UNLABELLED
from mvo_jax.data.splits import (
    Cases,
    Split,
    check_cases,
    check_mask,
    check_patients_disjoint,
    load_split,
    split_bytes,
)
from mvo_jax.errors import UserError


def cases(label=(1, 0, 0), case_id=("a", "b", "c")) -> Cases:
    patients = tuple(f"patient of {name}" for name in case_id)
    return Cases("train", np.array(label, np.int32), case_id, patients, {})


def test_load(simulated):
    from mvo_jax.data.phantom.case import simulate_case
    from mvo_jax.data.phantom.cohort import CohortSpec

    split = load_split(simulated(), "train")
    assert isinstance(split, Split)
    assert split.name == "train"
    assert len(split) == 32
    assert split.video.shape == (32, 8, 32, 32, 1)
    assert split.lge_mask.shape == (32, 32, 32)
    assert split.label.dtype == np.int32
    assert split.label.sum() == 16
    assert len(set(split.patient_id)) == 16
    assert list(split.case_id) == sorted(split.case_id)
    spec = CohortSpec("easy", 3, "tiny", 8, 32, 2)
    for i, key in list(enumerate(spec.keys("train")))[::9]:
        case = simulate_case(key, frames=8, image_size=32)
        assert split.case_id[i] == key.case_id
        assert split.patient_id[i] == key.patient_id
        assert split.label[i] == key.mvo
        assert np.array_equal(split.video[i], case.video)
        assert np.array_equal(split.lge_mask[i], case.lge_mask)
        for name, value in case.features.items():
            assert split.features[name][i] == np.float32(value)


def test_memory_is_known_before_and_after(simulated):
    split = load_split(simulated(), "test")
    assert isinstance(split, Split)
    images = split.video.nbytes + split.lge_mask.nbytes
    assert split_bytes(simulated(), "test") == images == 16 * (8 + 1) * 32 * 32
    numbers = 16 * 4 * (1 + len(split.features))  # int32 label, float32 features
    assert split.size_bytes == images + numbers


def test_home_folder(simulated, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    load_split(simulated(dir="~/cohorts"), "test")
    assert (tmp_path / "cohorts" / "phantom").is_dir()


def test_splits_share_no_patient(simulated):
    splits = [load_split(simulated(), name) for name in ("train", "validation", "test")]
    check_patients_disjoint(*splits)
    with pytest.raises(UserError) as caught:
        check_patients_disjoint(splits[0], dataclasses.replace(splits[0], name="other"))
    assert "p000000" in caught.value.cause
    assert "'train'" in caught.value.cause
    assert "'other'" in caught.value.cause


@pytest.mark.parametrize("ask", [load_split, split_bytes])
def test_unknown_data(simulated, ask):
    for change, named in (({"name": "acdc"}, "phantom, cohort"), ({"size": "big"}, "tiny")):
        with pytest.raises(UserError, match=named):
            ask(simulated(**change), "train")


def test_unknown_split_is_refused_before_anything_is_generated(simulated, tmp_path):
    with pytest.raises(UserError, match="train, validation, test"):
        load_split(simulated(dir=str(tmp_path)), "test_large")
    assert list(tmp_path.iterdir()) == []


def test_damage_is_reported_by_load(simulated, tmp_path):
    config = simulated(dir=str(tmp_path), slices_per_patient=1)
    load_split(config, "train")
    path = next(tmp_path.rglob("*test*array_record*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    load_split(config, "train")
    with pytest.raises(UserError, match=path.name):
        load_split(config, "test")


def test_good_cases_pass():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_cases(cases())
        for label, value in ((1, 2), (0, 3), (UNLABELLED, 0)):
            check_mask("train", "a", label, np.full((4, 4), value, np.uint8))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"case_id": ("a", "b", "b")}, "same case_id"),
        ({"label": (), "case_id": ()}, "no case"),
        ({"label": (1, UNLABELLED, 0)}, "1 unlabelled cases, b for one"),
    ],
)
def test_bad_splits_are_refused(change, named):
    with pytest.raises(UserError, match=named):
        check_cases(cases(**change))


@pytest.mark.parametrize(
    ("label", "value", "named"),
    [
        (1, 1, "label 1 of case b denies"),
        (0, 2, "label 0 of case b denies"),
        (UNLABELLED, 2, "label -1 of case b denies"),
        (2, 2, "label 2 of case b denies"),
        (0, 4, "case b has values above 3"),
    ],
)
def test_masks_that_contradict_are_refused(label, value, named):
    with pytest.raises(UserError, match=named):
        check_mask("train", "b", label, np.full((4, 4), value, np.uint8))


def test_one_class_only_warns():
    with pytest.warns(UserWarning, match="All 3 cases of split 'train' have label 0"):
        check_cases(cases((0, 0, 0)))
