"""Point estimates against hand-worked values, brute force and the paper's tables."""

import itertools
import math

import numpy as np
import pytest
from sklearn import calibration

from mvo_jax.evaluation import metrics
from mvo_jax.evaluation.localisation import coarse_map_metrics
from mvo_jax.evaluation.thresholds import choose_threshold

POSITIVE, NEGATIVE = 44, 86  # the paper's test split

# name, true positives, true negatives, then specificity, recall and F1 as Table 1 prints them
TABLE_1 = [
    ("ViViT", 20, 58, "67.44", "45.45", "43.48"),
    ("TimeSformer", 23, 56, "65.12", "52.27", "47.42"),
    ("C3D", 25, 51, "59.30", "56.82", "48.07"),
    ("I3D", 24, 54, "62.79", "54.54", "48.00"),
    ("SlowFast", 24, 61, "70.93", "54.54", "51.61"),
    ("P3D", 22, 63, "73.26", "50.00", "49.44"),
    ("Proposed", 25, 65, "75.58", "56.82", "55.56"),
]


def counts_of(true_positive, true_negative):
    return metrics.Confusion(
        true_positive, NEGATIVE - true_negative, true_negative, POSITIVE - true_positive
    )


def printed_forms(value):
    """A percentage rounded and truncated to two decimals."""
    percent = 100 * value
    return {f"{percent:.2f}", f"{math.floor(percent * 100 + 1e-9) / 100:.2f}"}


def random_scores(seed, cases=300, levels=None):
    generator = np.random.default_rng(seed)
    label = (generator.random(cases) < 0.35).astype(int)
    probability = 1 / (1 + np.exp(-(generator.normal(size=cases) + label - 0.5)))
    if levels:
        probability = np.round(probability * levels) / levels  # many ties, 0 and 1 included
    return label, probability


@pytest.mark.parametrize(
    ("name", "true_positive", "true_negative", "specificity", "recall", "f1"), TABLE_1
)
def test_table_1_of_the_paper_recomputes(
    name, true_positive, true_negative, specificity, recall, f1
):
    """Through the whole path: scores, threshold, counts, ratios; and from no other counts.

    Three cells are truncated, not rounded: recall 54.54 of I3D and SlowFast (24/44 = 54.5454...
    rounds to 54.55) and F1 48.07 of C3D (50/104 = 48.0769... rounds to 48.08).
    """
    label = np.repeat([1, 0], [POSITIVE, NEGATIVE])
    score = np.repeat(
        [0.9, 0.1, 0.1, 0.9],
        [true_positive, POSITIVE - true_positive, true_negative, NEGATIVE - true_negative],
    )
    counts = metrics.confusion(label, score, 0.5)
    assert counts == counts_of(true_positive, true_negative)
    assert f1 in printed_forms(counts.f1)
    rounded = (f"{100 * counts.recall:.2f}" == recall, f"{100 * counts.f1:.2f}" == f1)
    assert rounded == (name not in ("I3D", "SlowFast"), name != "C3D")
    assert fitting(specificity, recall) == [counts]


def fitting(specificity, recall):
    """All counts whose specificity and recall could be printed so."""
    every = itertools.product(range(POSITIVE + 1), range(NEGATIVE + 1))
    return [
        counts_of(tp, tn)
        for tp, tn in every
        if recall in printed_forms(tp / POSITIVE) and specificity in printed_forms(tn / NEGATIVE)
    ]


def test_table_2_bert_row_contradicts_itself():
    """Specificity 70.93 and recall 56.82 mean TN 61 and TP 25, whose F1 is 53.19, not 53.91."""
    (counts,) = fitting("70.93", "56.82")
    assert counts == counts_of(25, 61)
    assert f"{100 * counts.f1:.2f}" == "53.19"


def test_ratios_by_hand_and_undefined_ones_are_nan():
    counts = metrics.Confusion(3, 1, 4, 2)
    assert (counts.recall, counts.specificity, counts.precision) == (3 / 5, 4 / 5, 3 / 4)
    assert (counts.negative_predictive_value, counts.accuracy) == (4 / 6, 7 / 10)
    assert (counts.balanced_accuracy, counts.f1) == (pytest.approx(0.7, abs=1e-15), 6 / 9)

    never = metrics.Confusion(0, 0, 5, 3)
    assert math.isnan(never.precision)
    assert (never.recall, never.f1) == (0, 0)
    only_negative = metrics.Confusion(0, 0, 5, 0)
    for name in ("recall", "f1", "balanced_accuracy"):
        assert math.isnan(getattr(only_negative, name)), name
    assert only_negative.specificity == 1


@pytest.mark.parametrize("levels", [None, 40, 3])
@pytest.mark.parametrize("seed", range(3))
def test_auc_counts_pairs(seed, levels):
    label, score = random_scores(seed, levels=levels)
    positive, negative = score[label == 1][:, None], score[label == 0]
    wins_twice = int(np.sum(2 * (positive > negative) + (positive == negative)))
    pairs_twice = 2 * positive.size * negative.size
    assert metrics.roc_auc(label, score) == wins_twice / pairs_twice  # exact, whatever the order


def test_curves_by_hand():
    # Scores 0.8 (+), 0.5 (+ and -), 0.1 (-): each distinct one is a point.
    label, score = [0, 0, 1, 1], [0.1, 0.5, 0.5, 0.8]
    assert metrics.roc_auc(label, score) == 3.5 / 4  # of the pairs
    false_positive_rate, true_positive_rate, threshold = metrics.roc_curve(label, score)
    assert threshold.tolist() == [math.inf, 0.8, 0.5, 0.1]
    assert true_positive_rate.tolist() == [0, 0.5, 1, 1]
    assert false_positive_rate.tolist() == [0, 0, 0.5, 1]
    assert metrics.average_precision(label, score) == pytest.approx(5 / 6, abs=1e-15)
    assert metrics.average_precision([1, 0, 0], [0.2, 0.2, 0.2]) == pytest.approx(1 / 3, abs=1e-15)
    # (0.01 + 0.25 + 0.25 + 0.04) / 4
    assert metrics.brier_score(label, score) == pytest.approx(0.55 / 4, abs=1e-15)


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_reliability_against_scikit_learn(bins):
    label, probability = random_scores(6)  # without ties, where its edges round otherwise
    curve = metrics.reliability_curve(label, probability, bins=bins)
    observed, mean = calibration.calibration_curve(
        label, probability, n_bins=bins, strategy="quantile"
    )
    np.testing.assert_allclose(curve.observed_frequency, observed, atol=1e-12)
    np.testing.assert_allclose(curve.mean_probability, mean, atol=1e-12)
    assert curve.count.sum() == label.size


def test_equal_mass_bins_and_order():
    label, probability = random_scores(7, cases=150)
    assert set(metrics.reliability_curve(label, probability).count) == {10}
    order = np.random.default_rng(1).permutation(150)
    tied = np.round(probability, 1)
    assert metrics.expected_calibration_error(label, tied) == pytest.approx(
        metrics.expected_calibration_error(label[order], tied[order]), abs=1e-15
    )


def test_errors_of_calibration_by_hand():
    # Two bins: (0.2, 0.2) observed 1/2 and (0.9, 0.9) observed 1: (2 * 0.3 + 2 * 0.1) / 4.
    error = metrics.expected_calibration_error([0, 1, 1, 1], [0.2, 0.2, 0.9, 0.9], bins=2)
    assert error == pytest.approx(0.2, abs=1e-15)
    assert metrics.expected_calibration_error([0, 1], [0.5, 0.5]) == 0


@pytest.mark.parametrize("levels", [None, 20])
@pytest.mark.parametrize("seed", range(3))
def test_calibration_refit_solves_its_equations(seed, levels):
    label, probability = random_scores(seed, levels=levels)
    slope, intercept = metrics.calibration_slope_intercept(label, probability)
    inside = np.clip(probability, 1e-7, 1 - 1e-7)
    logit = np.log(inside / (1 - inside))
    residual = 1 / (1 + np.exp(-slope * logit - intercept)) - label
    # Sums of 300 float64 terms of up to 16.
    assert residual.sum() == pytest.approx(0, abs=1e-10)
    assert (residual * logit).sum() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(
    ("label", "probability"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]),
        ([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9]),
        ([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9]),
        ([0, 1, 0, 1], [0.3, 0.3, 0.3, 0.3]),
        ([0, 1], [0.0, 1.0]),
    ],
)
def test_calibration_refit_without_a_maximum_is_nan(label, probability):
    assert np.isnan(metrics.calibration_slope_intercept(label, probability)).all()


def test_calibration_refit_with_extreme_probabilities_converges():
    label = np.array([0] * 50 + [1] * 50 + [1, 0])
    probability = np.array([0.0] * 50 + [1.0] * 50 + [0.0, 1.0])
    slope, _ = metrics.calibration_slope_intercept(label, probability)
    # two logits, +-16.12, with odds 50 : 1 either way: slope = ln(50) / 16.12
    assert slope == pytest.approx(math.log(50) / math.log((1 - 1e-7) / 1e-7), abs=1e-9)


def test_the_two_rules_by_hand():
    label = [0, 0, 0, 1, 0, 1, 1, 1]
    probability = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    # at 0.6: recall 3/4, specificity 1; at 0.4: recall 1, specificity 3/4: a tie, the higher wins
    chosen = choose_threshold(label, probability)
    assert chosen.value == pytest.approx(0.55)
    assert "Youden" in chosen.origin
    assert "validation" in chosen.origin
    label = [1, 1, 1, 1, 1, 0, 0]
    probability = [0.9, 0.8, 0.7, 0.6, 0.2, 0.65, 0.1]
    chosen = choose_threshold(label, probability, rule="sensitivity_0.8")
    assert chosen.value == pytest.approx(0.4)  # between 0.6 (recall 4/5) and 0.2
    assert metrics.confusion(label, probability, chosen.value).recall == 0.8


@pytest.mark.parametrize("levels", [None, 15])
@pytest.mark.parametrize("seed", range(5))
def test_youden_is_the_best_of_all_thresholds(seed, levels):
    label, probability = random_scores(seed, cases=80, levels=levels)
    chosen = choose_threshold(label, probability).value

    def youden(threshold):
        counts = metrics.confusion(label, probability, threshold)
        return counts.recall + counts.specificity

    # equal rates may differ in the last bit
    assert youden(chosen) >= max(youden(value) for value in probability) - 1e-12


def test_threshold_edge_cases():
    assert choose_threshold([], [], rule="fixed_0.5").value == 0.5
    assert choose_threshold([], [], rule="released_0.44").value == 0.44
    with pytest.raises(ValueError, match="known: youden"):
        choose_threshold([0, 1], [0.1, 0.9], rule="best")
    chosen = choose_threshold([1, 1], [0.1, 0.9])
    assert chosen.value == 0.5
    assert "one class" in chosen.origin
    assert choose_threshold([0, 1], [0.3, 0.3]).value == 0.3
    neighbours = [0.5, np.nextafter(0.5, 1)]
    chosen = choose_threshold([0, 1], neighbours)
    assert metrics.confusion([0, 1], neighbours, chosen.value).accuracy == 1


@pytest.mark.parametrize(
    "function", [metrics.roc_auc, metrics.average_precision, metrics.calibration_slope_intercept]
)
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_nan(function, label):
    assert np.isnan(function([label] * 4, [0.1, 0.2, 0.3, 0.4])).all()


@pytest.mark.parametrize(
    "function",
    [
        metrics.roc_auc,
        metrics.average_precision,
        metrics.brier_score,
        metrics.expected_calibration_error,
        metrics.calibration_slope_intercept,
        choose_threshold,
        lambda label, score: metrics.confusion(label, score, 0.5),
    ],
)
@pytest.mark.parametrize(
    ("label", "score", "expected"),
    [
        ([], [], "empty"),
        ([0, 1], [0.1], "one length"),
        ([[0, 1]], [[0.1, 0.2]], "vectors"),
        ([0, 1], [0.1, np.nan], "not finite"),
        ([0, 1], [0.1, np.inf], "not finite"),
        ([0, 2], [0.1, 0.2], "other than 0 and 1"),
    ],
)
def test_bad_input_is_a_clear_error(function, label, score, expected):
    with pytest.raises(ValueError, match=expected):
        function(label, score)


def test_values_outside_the_unit_interval():
    # Probabilities must be in the unit interval, but scores need not.
    assert metrics.roc_auc([0, 1], [-5, 40]) == 1
    for function in (metrics.brier_score, metrics.expected_calibration_error):
        with pytest.raises(ValueError, match="outside"):
            function([0, 1], [-0.1, 0.5])
    with pytest.raises(ValueError, match="nan"):
        metrics.confusion([0, 1], [0.1, 0.5], math.nan)


def test_coarse_map_by_hand():
    target = np.zeros((3, 2, 2))
    target[0, 0, 0] = 0.5
    target[1, 1, 1] = 0.25
    predicted = np.zeros((3, 2, 2))
    predicted[0, 0, 0] = 0.4  # points at its MVO
    predicted[1, 0, 1] = 0.3  # points elsewhere
    values = coarse_map_metrics(predicted, target, np.array([1, 1, 0]))
    everything, positive = values["all"], values["positive"]
    assert (everything["cases"], positive["cases"]) == (3, 2)
    assert everything["mse"] == pytest.approx((0.1**2 + 0.3**2 + 0.25**2) / 12, abs=1e-15)
    assert positive["mse"] == pytest.approx((0.1**2 + 0.3**2 + 0.25**2) / 8, abs=1e-15)
    assert everything["zero_map_mse"] == pytest.approx((0.5**2 + 0.25**2) / 12, abs=1e-15)
    assert everything["pointing_hit_rate"] == positive["pointing_hit_rate"] == 0.5
    assert everything["block_prevalence"] == 2 / 12
    # positive blocks score 0.4 and 0; of 10 empty ones, one scores 0.3 and nine tie at 0
    assert everything["block_auc"] == pytest.approx((10 + 4.5) / 20, abs=1e-15)


def test_a_constant_map_gets_the_credit_of_chance_and_none_without_any_mvo():
    target = np.zeros((2, 4, 4))
    target[:, 0, 0] = 1
    values = coarse_map_metrics(np.zeros((2, 4, 4)), target, np.ones(2))
    assert (values["all"]["pointing_hit_rate"], values["all"]["block_auc"]) == (1 / 16, 0.5)
    values = coarse_map_metrics(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)), np.zeros(2))
    assert values["all"]["mse"] == 0
    assert math.isnan(values["all"]["block_auc"])
    assert values["positive"]["cases"] == 0
    assert math.isnan(values["positive"]["mse"])
