"""The predictions table: exact round trip, and every way a file can be wrong."""

import os

import numpy as np
import pytest

from mvo_jax.errors import UserError
from mvo_jax.evaluation.predictions import (
    Predictions,
    read_predictions,
    write_patient_predictions,
    write_predictions,
)
from mvo_jax.evaluation.statistics import by_patient
from mvo_jax.files import replace_file

HEADER = "case_id,patient_id,label,probability,decision,threshold\n"


def make(cases=5, **changes):
    values = {
        "split": "test",
        "case_id": tuple(f"case_{i}" for i in range(cases)),
        "patient_id": tuple(f"p{i // 2}" for i in range(cases)),
        "label": np.arange(cases) % 2,
        "probability": np.linspace(0.1, 0.9, cases),
    }
    return Predictions(**(values | changes))


def test_round_trip_is_exact(tmp_path):
    generator = np.random.default_rng(0)
    probability = np.concatenate(([0.0, 1.0, 5e-324, np.nextafter(1, 0)], generator.random(200)))
    names = ["plain", 'quo"te, comma', "two\nlines", "Zoë 心", *(f"c{i}" for i in range(200))]
    written = make(204, case_id=tuple(names), probability=probability)
    write_predictions(tmp_path / "p.csv", written, 1 / 3)
    read, threshold = read_predictions(tmp_path / "p.csv", split="test")
    assert (threshold, read.case_id) == (1 / 3, written.case_id)
    assert (read.patient_id, read.label.dtype) == (written.patient_id, np.int32)
    np.testing.assert_array_equal(read.label, written.label)
    np.testing.assert_array_equal(read.probability, probability)  # bit for bit: repr digits


def test_decision_is_at_or_above_the_threshold(tmp_path):
    write_predictions(tmp_path / "p.csv", make(3, probability=[0.2, 0.5, 0.7]), 0.5)
    rows = (tmp_path / "p.csv").read_text().splitlines()
    assert rows[0] + "\n" == HEADER
    assert [row.split(",")[4] for row in rows[1:]] == ["0", "1", "1"]
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="threshold"):
            write_predictions(tmp_path / "p.csv", make(), threshold)


def test_byte_order_mark_and_crlf_are_accepted(tmp_path):
    body = HEADER + "a,p,1,0.5,1,0.5\nb,q,0,0.25,0,0.5\n"
    (tmp_path / "p.csv").write_bytes(b"\xef\xbb\xbf" + body.replace("\n", "\r\n").encode())
    read, threshold = read_predictions(tmp_path / "p.csv", split="validation")
    assert read.case_id == ("a", "b")
    assert (read.split, threshold) == ("validation", 0.5)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", "expected case_id,patient_id,label,probability,decision,threshold, found an empty"),
        ("id,p\n", "found id,p"),
        (HEADER, "has no cases"),
        (HEADER + "a,p,1,0.5,1,0.5\na,p,1,0.5,1\n", "shorter"),
        (HEADER + "a,p,1,nan,1,0.5\n", "outside [0, 1] or NaN"),
        (HEADER + "a,p,1,1.5,1,0.5\n", "outside [0, 1] or NaN"),
        (HEADER + "a,p,1,,1,0.5\n", "could not convert"),
        (HEADER + "a,p,2,0.5,1,0.5\n", "labels other than 0 and 1"),
        (HEADER + ",p,1,0.5,1,0.5\n", "empty case"),
        (HEADER + "a,p,1,0.5,1,0.5\n\na,q,0,0.1,0,0.5\n", "repeated case ids"),
        (HEADER + '"a,p,1,0.5,1,0.5\n', "unexpected end of data"),
    ],
)
def test_bad_tables_name_the_file(tmp_path, body, expected):
    path = tmp_path / "p.csv"
    path.write_text(body)
    with pytest.raises(UserError) as caught:
        read_predictions(path, split="test")
    assert expected in caught.value.cause
    assert caught.value.cause.startswith(f"{path} is not a table of predictions: ")
    assert caught.value.remedy


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_predictions(tmp_path / "absent.csv", split="test")
    (tmp_path / "p.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="not a table of predictions"):
        read_predictions(tmp_path / "p.csv", split="test")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"case_id": (), "patient_id": (), "label": [], "probability": []}, "no cases"),
        ({"case_id": ("a", "b", "c", "d", "a")}, "repeated"),
        ({"case_id": ("a", "b", "c", "d", "")}, "empty case"),
        ({"patient_id": ("p",)}, "1 patient ids"),
        ({"label": [0, 1, 2, 0, 1]}, "labels other"),
        ({"label": [0, 1]}, "label \\(2,\\)"),
        ({"probability": [0.1, 0.2, np.nan, 0.4, 0.5]}, "NaN"),
        ({"probability": [0.1, 0.2, 1.1, 0.4, 0.5]}, "outside"),
        ({"coarse_mask": np.zeros((4, 4, 4))}, "coarse_mask"),
    ],
)
def test_impossible_predictions_are_refused(changes, expected):
    with pytest.raises(ValueError, match=expected):
        make(**changes)


def test_arrays_are_copied_and_read_only():
    label, probability = np.array([0, 1]), np.array([0.1, 0.2])
    kept = make(2, label=label, probability=probability)
    probability[0] = 0.9
    assert kept.probability[0] == 0.1
    with pytest.raises(ValueError, match="read-only"):
        kept.label[0] = 1


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.txt"
    replace_file(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="no space left"):
        replace_file(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]  # nothing left behind


def test_patients_table(tmp_path):
    slices = make(5)  # p0 p0 p1 p1 p2, labels 0 1 0 1 0, 0.1 to 0.9
    write_patient_predictions(tmp_path / "p.csv", by_patient(slices), slices, 0.5)
    assert (tmp_path / "p.csv").read_text() == (
        "patient_id,slices,label,probability,decision,threshold\n"
        "p0,2,1,0.30000000000000004,0,0.5\n"
        "p1,2,1,0.7000000000000001,1,0.5\n"
        "p2,1,0,0.9,1,0.5\n"
    )
