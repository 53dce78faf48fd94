import numpy as np
import pytest
import scipy.stats

from mvo_jax.data.phantom.case import plan_case, simulate_case
from mvo_jax.data.phantom.cohort import SIZES, CohortSpec
from mvo_jax.data.phantom.workers import render_cases
from mvo_jax.errors import UserError


def auc(score, label):
    """Probability that a positive case scores higher (Mann-Whitney), independent of ours."""
    positive, negative = score[label == 1], score[label == 0]
    return scipy.stats.mannwhitneyu(positive, negative).statistic / positive.size / negative.size


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("size", SIZES)
def test_exact_counts_and_disjoint_patients(size, seed):
    spec = CohortSpec(preset="paper", seed=seed, size=size)
    seen: set[int] = set()
    for split in spec.splits:
        keys = spec.keys(split)
        assert len(keys) == SIZES[size][split].patients
        assert sum(key.mvo for key in keys) == SIZES[size][split].positive
        patients = {key.patient for key in keys}
        assert len(patients) == len(keys)
        assert not patients & seen
        seen |= patients
    assert spec.cases == len(seen)


def test_paper_cohort_has_the_papers_counts():
    paper = SIZES["paper"]
    development = paper["train"], paper["validation"]
    assert sum(s.patients for s in development) == 550
    assert sum(s.positive for s in development) == 221
    assert (paper["test"].patients, paper["test"].positive) == (130, 44)


def test_labels_are_a_keyed_permutation():
    labels = [
        [key.mvo for key in CohortSpec(preset="paper", seed=s, size="demo").keys("train")]
        for s in (0, 0, 1)
    ]
    assert labels[0] == labels[1]
    assert labels[0] != labels[2]
    # Labels are spread over the indices: a quarter holds 96 of the 384, and 26 is 4 sd.
    quarters = np.array(labels[0]).reshape(4, -1).sum(axis=1)
    assert np.all(np.abs(quarters - 96) <= 26)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"preset": "hard"}, "easy, paper, null"),
        ({"size": "huge"}, "paper, demo, tiny"),
        ({"frames": 7}, "8"),
        ({"image_size": 31}, "32"),
        ({"image_size": 64.0}, "64.0"),
        ({"seed": -1}, "-1"),
        ({"slices_per_patient": 0}, "slices_per_patient"),
        ({"slices_per_patient": 10}, "9"),
        ({"misregistration_mm": -1.0}, "0 to 10"),
        ({"misregistration_mm": float("nan")}, "0 to 10"),
    ],
)
def test_bad_specifications_say_what_is_possible(change, named):
    good = {"preset": "paper", "seed": 0, "size": "tiny"}
    with pytest.raises(UserError) as caught:
        CohortSpec(**(good | change))
    assert named in str(caught.value)
    assert f"data.{next(iter(change))}" in str(caught.value)


@pytest.mark.parametrize("size", [size for size in SIZES if size.startswith("patients")])
def test_sizes_differ_from_paper_in_their_training_patients_alone(size):
    own, paper = (CohortSpec(preset="paper", seed=0, size=s) for s in (size, "paper"))
    assert own.splits == ("train",)
    assert len(own.keys("train")) == int(size.removeprefix("patients"))
    share = SIZES[size]["train"].positive / SIZES[size]["train"].patients
    assert share == pytest.approx(177 / 440, abs=1 / SIZES[size]["train"].patients)
    for split in ("validation", "test", "test_large", "validation_large"):
        assert own.keys(split) == paper.keys(split)
        assert own.holding(split) == paper.holding(split)
    assert not {key.patient for key in own.keys("train")} & {
        key.patient for split in ("validation_large", "test_large") for key in own.keys(split)
    }


def test_the_second_validation_split_is_of_patients_of_its_own():
    paper = CohortSpec(preset="paper", seed=0, size="paper")
    chosen_on = {key.patient for key in paper.keys("validation_large")}
    assert len(chosen_on) == 1000
    for split in paper.splits:
        assert not chosen_on & {key.patient for key in paper.keys(split)}


def test_misregistration_moves_the_mask_and_nothing_else():
    def cases(**knob):
        keys = CohortSpec(preset="paper", seed=0, size="tiny", **knob).keys("test")
        return [simulate_case(key, frames=8, image_size=32) for key in keys]

    today, default = cases(), cases(misregistration_mm=3.2)
    aligned, far = cases(misregistration_mm=0.0), cases(misregistration_mm=10.0)
    for case in (default, aligned, far):
        for a, b in zip(case, today, strict=True):
            assert np.array_equal(a.video, b.video)
            assert a.key.mvo == b.key.mvo == bool((a.lge_mask == 2).any())
    assert all(np.array_equal(a.lge_mask, b.lge_mask) for a, b in zip(today, default, strict=True))

    def distance(moved):  # mean share of pixels whose class is another than where it belongs
        pairs = zip(moved, aligned, strict=True)
        return np.mean([np.mean(a.lge_mask != b.lge_mask) for a, b in pairs])

    assert 0 < distance(today) < distance(far)


def test_misregistration_is_the_standard_deviation_of_the_shift():
    def shifts(mm):
        keys = CohortSpec("paper", 0, "paper", misregistration_mm=mm).keys("validation")
        return np.array([plan_case(key).scan.mask_shift for key in keys])

    assert np.all(shifts(0.0) == 0)
    np.testing.assert_allclose(shifts(8.0), 2.5 * shifts(3.2), rtol=1e-12)
    # 220 numbers: the standard error of their deviation is 4.8 %; three of them.
    assert shifts(2.0).std() == pytest.approx(2.0, rel=0.15)


def test_the_folder_of_the_default_cohort_keeps_its_name():
    assert CohortSpec("paper", 0, "tiny").name == "paper_tiny_seed0_frames30_pixels64_slices1"
    assert CohortSpec("paper", 0, "tiny", misregistration_mm=4).name.endswith("misregistration4.0")


def oracle(preset, seed):
    keys = CohortSpec(preset=preset, seed=seed, size="paper").keys("test_large")
    plans = [plan_case(key) for key in keys]
    label = np.array([key.mvo for key in keys]).astype(int)
    area_change = np.array([plan.heart.fractional_area_change for plan in plans])
    size = np.array([plan.heart.weight[plan.heart.infarct].sum() for plan in plans])
    return label, area_change, size


def test_area_change_alone_separates_paper_as_published_and_infarct_size_overlaps():
    label, area_change, size = oracle("paper", 0)
    assert 0.70 <= auc(-area_change, label) <= 0.78
    assert area_change.min() > 0.05
    assert area_change.max() < 0.88  # the cavity keeps 0.35 of its radius
    small, large = size < np.median(size), size > np.median(size)
    # One in 15 % less two standard errors of a share of 0.15 among 338.
    assert small[label == 1].mean() > 0.15 - 2 * (0.15 * 0.85 / 338) ** 0.5
    assert large[label == 0].mean() > 0.15


def test_area_change_says_nothing_under_null():
    label, area_change, size = oracle("null", 0)
    # Standard error of the AUC of a useless score: sqrt((n + m + 1) / (12 n m)) = 0.019 for 338
    # and 662 cases; three of them.
    assert auc(-area_change, label) == pytest.approx(0.5, abs=0.058)
    assert auc(size, label) == pytest.approx(0.5, abs=0.058)


def test_processes_do_not_change_the_cases():
    keys = CohortSpec(preset="paper", seed=2, size="tiny").keys("train")[:5]
    alone = list(render_cases(keys, frames=8, image_size=32, jobs=1))
    together = list(render_cases(keys, frames=8, image_size=32, jobs=2))
    assert [case.key for case in together] == keys
    for a, b in zip(alone, together, strict=True):
        assert np.array_equal(a.video, b.video)
        assert np.array_equal(a.lge_mask, b.lge_mask)
        assert a.features == b.features
