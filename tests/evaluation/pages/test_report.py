"""metrics.json and the report: complete, self-contained, and safe with hostile or poor input."""

import dataclasses
import io
import json
import math
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from mvo_jax.data.slices import Overview
from mvo_jax.errors import UserError
from mvo_jax.evaluation import metrics
from mvo_jax.evaluation.figures import curves, pictures
from mvo_jax.evaluation.pages import report
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.evaluation.statistics import paired_delong_test
from mvo_jax.evaluation.table import METRICS, Metric
from mvo_jax.evaluation.thresholds import Threshold

VOID = {"meta", "img", "br", "input", "link", "hr"}


class Page(HTMLParser):
    """Collects tags and references, and checks that elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.open, self.text = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                self.references.append(value or "")
            if name == "style":
                self.references += re.findall(r"url\(([^)]*)\)", value or "")
            assert not name.startswith("on"), f"script attribute {name}"

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def make(cases=60, seed=0, per_patient=1, maps=True, label=None):
    generator = np.random.default_rng(seed)
    label = (generator.random(cases) < 0.4).astype(int) if label is None else np.asarray(label)
    probability = 1 / (1 + np.exp(-generator.normal(size=cases) - label + 0.5))
    target = np.zeros((cases, 4, 4))
    target[label == 1, 1, 2] = 0.4
    return Predictions(
        "test",
        tuple(f"case_{i}" for i in range(cases)),
        tuple(f"p{i // per_patient}" for i in range(cases)),
        label,
        probability,
        target + 0.01 * generator.normal(size=target.shape) if maps else None,
        target if maps else None,
    )


def summarise(predictions, threshold=Threshold(0.5, "by hand"), **options):  # noqa: B008
    return report.summarise(predictions, threshold, **{"replicates": 50, **options})


def record(case_id="case", label=1, frames=30, side=64, maps=True, **changes):
    generator = np.random.default_rng(1)
    lge = np.zeros((side, side), np.uint8)
    lge[10:20, 10:20] = 3
    lge[12:14, 12:16] = 2 if label else 1
    values = {
        "video": generator.integers(0, 256, (frames, side, side), dtype=np.uint8),
        "label": label,
        "probability": 0.7,
        "lge_mask": lge if maps else None,
        "coarse_target": np.full((4, 4), 0.2) if maps else None,
        "coarse_mask": np.full((4, 4), -0.1) if maps else None,
        "role": "borderline positive",
    }
    return pictures.CaseRecord(case_id, **(values | changes))


BY_PATIENT = Threshold(0.5, "by hand", "max", 0.5, "by hand")
HISTORY = [
    {"event": "started"},
    {"step": 10, "kind": "train", "loss": 0.7, "auc": 0.55, "learning_rate": 1e-5},
    {"step": 20, "kind": "train", "loss": 0.5, "auc": 0.75, "learning_rate": 1e-4},
    {"step": 10, "kind": "validation", "loss": 0.69, "auc": 0.6},
    {"step": 20, "kind": "validation", "loss": 0.6, "auc": None},
]


def write(path, predictions, summary=None, **changes):
    options = {
        "summary": summary or summarise(predictions),
        "predictions": predictions,
        "cases": [],
        "history": [],
        "config_text": "seed = 0",
        "provenance": {"jax": "0.10.2"},
        "dataset": "phantom 'paper', seed 0",
        "simulated": True,
    }
    report.write_report(path, **(options | changes))
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    own = ("data:image/png;base64,", "data:image/webp;base64,", "#")
    assert [reference[:80] for reference in page.references if not reference.startswith(own)] == []
    assert "@import" not in text
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    return text, page


def test_summary_holds_what_the_functions_give():
    data = make(per_patient=2)
    summary = summarise(data, BY_PATIENT, training_history=HISTORY)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary  # plain types only
    assert (summary["cases"], summary["patients"]) == (60, 30)
    assert summary["prevalence"] == pytest.approx(data.label.mean())
    assert summary["metrics"]["auc"]["value"] == metrics.roc_auc(data.label, data.probability)
    counts = metrics.confusion(data.label, data.probability, 0.5)
    assert summary["confusion"]["true_positive"] == counts.true_positive
    assert summary["metrics"]["f1"]["value"] == counts.f1
    assert summary["metrics"]["recall"]["method"] == "Wilson"
    for name, estimate in summary["metrics"].items():
        assert estimate["low"] <= estimate["value"] <= estimate["high"], name
    assert summary["threshold"]["origin"] == "by hand"
    assert summary["patient_level"]["cases"] == 30
    assert summary["coarse_map"]["positive"]["pointing_hit_rate"] == 1
    assert [row["threshold"] for row in summary["fixed_thresholds"]] == [0.5, 0.44]
    assert summary["fixed_thresholds"][0]["f1"] == counts.f1
    best = {"best_validation_auc": 0.6, "best_validation_step": 10}
    assert summary["training"] == {"last_step": 20, **best}


@pytest.mark.parametrize("rule", ["max", "mean"])
def test_patients_are_scored_at_their_own_threshold(tmp_path, rule):
    data = make(per_patient=3)
    by_hand = Threshold(0.5, "by hand", rule, 0.62, "chosen on validation patients")
    summary = summarise(data, by_hand)
    slices = [[i for i in range(60) if data.patient_id[i] == f"p{k}"] for k in range(20)]
    join = {"max": max, "mean": lambda values: sum(values) / len(values)}[rule]
    called = [join(data.probability[one]) >= 0.62 for one in slices]
    truth = [bool(data.label[one].any()) for one in slices]
    found = summary["patient_level"]
    assert (found["cases"], found["positive"]) == (20, sum(truth))
    pairs = list(zip(truth, called, strict=True))
    assert found["confusion"] == {
        "true_positive": pairs.count((True, True)),
        "false_positive": pairs.count((False, True)),
        "true_negative": pairs.count((False, False)),
        "false_negative": pairs.count((True, False)),
    }
    assert found["metrics"]["recall"]["low"] < found["metrics"]["recall"]["value"]
    text, _ = write(tmp_path / "r.html", data, summary)
    assert "Every patient has one slice" not in text
    assert {"max": "maximum", "mean": "mean"}[rule] + " over the slices" in text
    assert "0.6200: chosen on validation patients" in text


def test_one_slice_a_patient_is_said_and_not_printed_twice(tmp_path):
    data = make()
    summary = summarise(data, BY_PATIENT)
    assert summary["patient_level"] is None
    assert summary["patient_rule"]["rule"] == "max"
    text, page = write(tmp_path / "r.html", data, summary)
    assert "Every patient has one slice" in text
    assert len([t for t in page.text if t == "By patient"]) == 1  # the heading


def test_perfect_separation(tmp_path):
    label = np.repeat([0, 1], [8, 6])
    data = Predictions(
        "test", tuple("abcdefghijklmn"), tuple("abcdefghijklmn"), label, 0.1 + 0.8 * label
    )
    summary = summarise(data)
    method = "stratified patient bootstrap, 50 samples"
    assert summary["metrics"]["f1"] == {"value": 1.0, "low": None, "high": None, "method": method}
    assert 0.5 < summary["metrics"]["auc"]["low"] < 1
    assert summary["calibration"]["slope"] is None
    write(tmp_path / "r.html", data, summary)


def test_a_metric_added_to_the_table_is_in_the_summary_and_the_report(tmp_path, monkeypatch):
    def youden(label, probability, threshold):
        counts = metrics.confusion(label, probability, threshold)
        return counts.recall + counts.specificity - 1

    monkeypatch.setitem(METRICS, "youden", Metric("Youden index", youden, format="number"))
    data = make(per_patient=2)
    summary = summarise(data, BY_PATIENT)
    found = summary["metrics"]["youden"]
    assert found["value"] == youden(data.label, data.probability, 0.5)
    assert found["low"] < found["value"] < found["high"]
    assert "50 samples" in found["method"]
    _, page = write(tmp_path / "r.html", data, summary)
    assert page.text.count("Youden index (not in %)") == 2  # by slice and by patient
    assert f"{found['value']:.3f}" in page.text


def test_baseline_counts_a_low_area_change_as_mvo():
    data = make()
    area_change = 0.5 - 0.3 * data.label + 0.2 * np.random.default_rng(1).random(len(data))
    baseline = summarise(data, features={"fractional_area_change": area_change})["baseline"]
    assert baseline["auc"]["value"] == 1  # lower in every positive
    expected = paired_delong_test(data.label, data.probability, -area_change)
    assert baseline["model_minus_baseline"]["value"] == expected.value < 0
    assert baseline["model_minus_baseline"]["p"] == expected.p
    assert summarise(data, features={"infarct_size": area_change})["baseline"] is None


def test_a_feature_that_does_not_fit_or_a_threshold_that_is_no_probability():
    for feature in (np.zeros(3), np.full(60, np.nan)):
        with pytest.raises(ValueError, match=r"fractional_area_change.*60 finite values"):
            summarise(make(), features={"fractional_area_change": feature})
    for threshold in (math.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match="threshold"):
            summarise(make(), Threshold(threshold, "by hand"))


@pytest.mark.parametrize(("label", "cases"), [(0, 6), (1, 6), (1, 1)])
def test_one_class_gives_one_warning_null_and_a_report(tmp_path, label, cases):
    data = make(cases, label=[label] * cases)
    with pytest.warns(metrics.OneClassWarning, match="'test' has only") as caught:
        summary = summarise(data, features={"fractional_area_change": np.arange(cases)})
    assert len(caught) == 1
    nothing = dict.fromkeys(("value", "low", "high"))
    assert summary["metrics"]["auc"] == nothing | {"method": "DeLong, Wald, clipped to [0, 1]"}
    assert summary["metrics"]["brier"]["value"] is not None
    report.write_summary(tmp_path / "metrics.json", summary)
    text, _ = write(tmp_path / "r.html", data, summary, cases=[record(label=label)])
    assert f"only {'positive' if label else 'negative'} cases" in text
    assert "nan" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)


def test_summary_file_is_strict_json(tmp_path):
    report.write_summary(tmp_path / "m.json", summarise(make()) | {"note": "Zoë"})
    assert json.loads((tmp_path / "m.json").read_text("utf-8"))["note"] == "Zoë"
    with pytest.raises(ValueError, match="JSON"):
        report.write_summary(tmp_path / "m.json", {"auc": math.nan})
    assert json.loads((tmp_path / "m.json").read_text("utf-8"))["note"] == "Zoë"


def test_full_report(tmp_path):
    data = make(per_patient=2)
    area_change = np.random.default_rng(1).random(60)
    summary = summarise(data, features={"fractional_area_change": area_change})
    cases = [record(f"case_{i}", label=i % 2) for i in range(6)]
    text, page = write(tmp_path / "report.html", data, summary, cases=cases, history=HISTORY)
    shown = re.sub(r"\s+", " ", " ".join(page.text))
    for printed in (
        f"{100 * summary['metrics']['auc']['value']:.2f}", "72.70", "75.58", "56.82", "55.56",
        "Simulated cohort: method check only, no clinical claim.", "not comparable", "by hand",
        "By patient", "Coarse map", "Against area change alone",
    ):  # fmt: skip
        assert printed in shown
    assert page.tags.count("article") == 6
    assert page.tags.count("img") == 12  # a beat and a row of pictures each
    assert "No training history" not in shown
    assert (tmp_path / "report.html").stat().st_size < 7_000_000  # pure noise, the worst case
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    # the same input gives the same bytes
    assert write(tmp_path / "report.html", data, summary, cases=cases, history=HISTORY)[0] == text


def test_bare_report(tmp_path):
    summary = summarise(make(maps=False))
    for name in ("patient_level", "coarse_map", "baseline", "training"):
        assert summary[name] is None
    options = {"simulated": False, "dataset": "Our clinic"}
    text, page = write(tmp_path / "r.html", make(maps=False), summary, **options)
    shown = " ".join(page.text)
    given = ("No training history was given", "No cases were given", "Our clinic")
    for words in (*given, "not for clinical use"):
        assert words in shown
    assert "Simulated cohort" not in shown
    assert "Coarse map" not in text


def test_strings_from_outside_are_escaped(tmp_path):
    evil = "<script>alert('x')</script>\"&{{ 7*7 }}$\\frac$"
    data = make()
    summary = summarise(data, Threshold(0.5, evil))
    options = {"config_text": evil, "provenance": {evil: evil}, "dataset": evil}
    cases = [record(evil, role=evil)]
    text, page = write(tmp_path / "r.html", data, summary, cases=cases, **options)
    assert "<script" not in text
    assert "".join(page.text).count(evil) >= 5
    assert "49" not in re.findall(r"&amp;(.{2})", text)


@pytest.mark.parametrize(
    "changes",
    [
        {"maps": False},
        {"frames": 1},
        {"frames": 2, "side": 1, "maps": False},
        {"side": 33},
        {"video": np.zeros((8, 20, 40), np.uint8)},
        {"coarse_mask": np.zeros((16, 16))},
    ],
)
def test_unusual_cases_are_drawn(tmp_path, changes):
    write(tmp_path / "r.html", make(maps=False), cases=[record(**changes)])


def test_videos_and_folders_that_are_refused(tmp_path):
    for video in (np.zeros((3, 4), np.uint8), np.zeros((0, 4, 4), np.uint8), np.zeros((3, 4, 4))):
        with pytest.raises(ValueError, match="uint8"):
            record(video=video)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "file" / "r.html", make())


def test_verdicts(tmp_path):
    for label, probability, verdict in (
        (1, 0.5, "correct: MVO found"),  # at the threshold counts as positive
        (1, 0.4999, "missed MVO"),
        (0, 0.5, "false alarm"),
        (0, 0.1, "correct: no MVO"),
    ):
        case = record(label=label, probability=probability, frames=2, side=16, maps=False)
        _, page = write(tmp_path / "r.html", make(), cases=[case])
        assert verdict in page.text


def test_pick_cases():
    data = make(7, label=[1, 1, 1, 1, 0, 0, 0], maps=False)
    probability = np.array([0.9, 0.1, 0.55, 0.3, 0.2, 0.8, 0.45])
    data = Predictions("test", data.case_id, data.patient_id, data.label, probability)
    picks = pictures.pick_cases(data, 0.5)
    assert [(pick.index, pick.role) for pick in picks] == [
        (0, "most confident positive"),
        (2, "borderline positive"),
        (1, "worst positive"),
        (4, "most confident negative"),
        (6, "borderline negative"),
        (5, "worst negative"),
    ]
    few = Predictions("test", tuple("abc"), tuple("abc"), np.array([1, 0, 0]), np.full(3, 0.5))
    assert [pick.index for pick in pictures.pick_cases(few, 0.5)] == [0, 1, 2]


def test_key_frames_find_the_contracted_frame():
    rows, columns = np.mgrid[:64, :64]
    distance = np.hypot(rows - 32, columns - 32)
    radius = 16 - 6 * np.sin(np.pi * np.arange(30) / 22).clip(0) ** 2  # smallest at frame 11
    video = np.where(distance < radius[:, None, None], 200, 60).astype(np.uint8)
    assert pictures.key_frames(video) == (0, 5, 11)


def test_history_series_skips_what_cannot_be_drawn():
    rows = [
        {"step": 2, "kind": "train", "loss": 1},
        {"step": 1, "kind": "train", "loss": 2.0},
        {"step": 3, "kind": "train", "loss": math.nan},
        {"step": 4, "kind": "train", "loss": None},
        {"step": 5, "kind": "train"},
        {"step": 6, "kind": "validation", "loss": 9},
    ]
    assert curves.history_series(rows, "train", "loss") == ([1, 2], [2.0, 1.0])
    assert curves.training_figure([]) is None
    assert curves.training_figure([{"step": 1, "kind": "train", "mask_mse": 1}]) is None
    assert isinstance(curves.training_figure(rows), Figure)


def test_the_animation_holds_every_frame_and_the_map_beside_it():
    video = np.tile(np.array([100, 110, 120, 200, 130], np.uint8)[:, None, None], (1, 64, 128))
    video[:, :, :4], video[:, :, 4:8] = 0, 255
    hint = np.zeros((4, 4))
    hint[3, 0] = 0.5
    with Image.open(io.BytesIO(pictures.animation(video, hint, map_maximum=0.5))) as image:
        assert image.size == (256 + 6 + 256, 128)
        assert (getattr(image, "n_frames", 1), image.info["loop"]) == (5, 0)
        frames = []
        for i in range(5):
            image.seek(i)
            image.load()
            assert image.info["duration"] == 200
            frames.append(np.asarray(image.convert("RGB"), int))
    # Lossy, 3 of 256 grey levels on average.
    greys = [frame[20:80, 60:240].mean() for frame in frames]
    np.testing.assert_allclose(greys, [100, 110, 120, 200, 130], atol=3)
    for frame in frames:
        np.testing.assert_allclose(frame[20:80, 340:500], frame[20:80, 78:238], atol=8)
        # Opacity 0.95 of the brightest colour of the map, over black and white.
        np.testing.assert_allclose(
            frame[104:120, 290:310].mean((0, 1)), (0.95 * 252, 0.95 * 255, 0.95 * 164), atol=25
        )


def test_the_row_of_pictures_shows_every_part():
    video = np.full((9, 64, 64), 50, np.uint8)
    video[4] = 200
    one = record(frames=9, source=Overview(np.full((100, 200), 77, np.uint8), -10, 20, 54, 84))
    row = pictures.case_picture(dataclasses.replace(one, video=video))
    assert row.width == 7 * 256 + 6 * 6  # source, three frames, mask, target and map
    pixels = np.asarray(row, int)

    def panel(i):
        return pixels[34:, 262 * i : 262 * i + 256]

    # The crop begins 10 rows above the image of 200 columns: 1.28 screen pixels each.
    assert (panel(0)[:12, 120:] == 255).all()
    assert (panel(0)[13 + 80 : 13 + 120, 150:] == 77).all()
    box = tuple(ImageColor.getrgb(pictures.BOX))
    yellow = np.argwhere((panel(0) == box).all(-1))
    assert yellow.min(0).tolist() == [0, round(20 * 1.28)]
    assert yellow.max(0).tolist() == [round(64 * 1.28) - 1, round(84 * 1.28) - 1]
    dark, bright = panel(1)[200, 200], panel(3)[200, 200]
    assert dark.tolist() == [0, 0, 0]
    assert bright.tolist() == [255, 255, 255]  # the frame that differs most
    # LGE of 64 pixels, drawn by 4: myocardium, MVO, and the box 1.5 pixels around the MVO.
    assert panel(4)[4 * 18, 4 * 18].tolist() == list(ImageColor.getrgb(pictures.LGE_COLOURS[3]))
    assert panel(4)[4 * 13, 4 * 13].tolist() == [255, 255, 255]
    for i in range(1, 5):
        yellow = np.argwhere((panel(i) == box).all(-1))
        assert (yellow.min(0).tolist(), yellow.max(0).tolist()) == ([42, 42], [61, 69])
    assert not (panel(5) == box).all(-1).any()
    plain = pictures.case_picture(dataclasses.replace(one, source=None, lge_mask=None))
    assert plain.width == 5 * 256 + 4 * 6


def test_values_that_mean_nothing_are_seen_on_a_mask():
    mask = np.zeros((8, 8), np.uint8)
    mask[2, 2], mask[5, 5] = 9, 2
    image = pictures.masked_frame(np.zeros((2, 8, 8), np.uint8), mask, side=8)
    assert [image.getpixel(at) for at in ((2, 2), (0, 0))] == [(255, 0, 255), (0, 0, 0)]
    assert np.asarray(image)[5, 5, 0] > 80


def test_figures_leave_no_global_state():
    assert "matplotlib.pyplot" not in sys.modules
    assert isinstance(curves.confusion_figure(summarise(make())), Figure)
    assert "matplotlib.pyplot" not in sys.modules
