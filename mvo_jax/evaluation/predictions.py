"""Per-case predictions of one split, and their table on disk."""

import csv
import math
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from mvo_jax.errors import UserError
from mvo_jax.files import write_csv

COLUMNS = ("case_id", "patient_id", "label", "probability", "decision", "threshold")
PATIENT_COLUMNS = ("patient_id", "slices", "label", "probability", "decision", "threshold")
_REMEDY = "restore the file or write it again with eval.py"


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the model said about each case of one split. Arrays are copied and made read-only.

    Args:
        split: name of the split, used in messages.
        case_id: N distinct, non-empty names.
        patient_id: N names; cases of one patient share it.
        label: int32 [N], 1 = MVO present.
        probability: float64 [N], predicted probability of MVO in [0, 1].
        coarse_mask: float32 [N, m, m], predicted share of MVO pixels per block (a linear output,
            so it may leave [0, 1]); None without a mask branch.
        coarse_target: float32 [N, m, m] in [0, 1], the same share from the LGE mask, Eq. (1).
        logits: [N, 1] or [N, 2], what the probabilities were made of, where that is known.

    Raises:
        ValueError: empty split, lengths that differ, repeated case ids, labels other than 0 and
            1, values that are not finite or out of range.
    """

    split: str
    case_id: tuple[str, ...]
    patient_id: tuple[str, ...]
    label: np.ndarray
    probability: np.ndarray
    coarse_mask: np.ndarray | None = None
    coarse_target: np.ndarray | None = None
    logits: np.ndarray | None = None

    def __post_init__(self):
        cases = len(self.case_id)
        if cases == 0:
            raise ValueError(f"split '{self.split}' has no cases")
        object.__setattr__(self, "case_id", tuple(str(name) for name in self.case_id))
        object.__setattr__(self, "patient_id", tuple(str(name) for name in self.patient_id))
        if "" in self.case_id or "" in self.patient_id:
            raise ValueError(f"split '{self.split}' has an empty case or patient id")
        if len(set(self.case_id)) != cases:
            raise ValueError(f"split '{self.split}' has repeated case ids")
        label = np.asarray(self.label)
        probability = np.array(self.probability, dtype=np.float64)
        if label.shape != (cases,) or probability.shape != (cases,):
            raise ValueError(
                f"split '{self.split}': {cases} case ids, label {label.shape}, "
                f"probability {probability.shape}; expected ({cases},) for both"
            )
        if len(self.patient_id) != cases:
            raise ValueError(f"{cases} case ids but {len(self.patient_id)} patient ids")
        if not np.isin(label, (0, 1)).all():
            raise ValueError(f"split '{self.split}': labels other than 0 and 1")
        if not ((probability >= 0) & (probability <= 1)).all():  # False for NaN too
            raise ValueError(f"split '{self.split}': probabilities outside [0, 1] or NaN")
        self._freeze("label", label.astype(np.int32))
        self._freeze("probability", probability)
        shapes = set()
        for name in ("coarse_mask", "coarse_target"):
            if (given := getattr(self, name)) is None:
                continue
            value = np.array(given, dtype=np.float32)
            square = value.ndim == 3 and value.shape[0] == cases and value.shape[1] > 0
            if not square or value.shape[1] != value.shape[2]:
                raise ValueError(f"{name} has shape {value.shape}, expected ({cases}, m, m)")
            if not np.isfinite(value).all():
                raise ValueError(f"{name} of split '{self.split}' is not finite")
            shapes.add(value.shape)
            self._freeze(name, value)
        if len(shapes) > 1:
            raise ValueError(f"coarse_mask and coarse_target differ in shape: {sorted(shapes)}")
        target = self.coarse_target
        if target is not None and (target.min() < 0 or target.max() > 1):
            raise ValueError("coarse_target holds values outside [0, 1]")

    def _freeze(self, name: str, value: np.ndarray) -> None:
        value.setflags(write=False)
        object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.case_id)


def write_predictions(path: str | os.PathLike, predictions: Predictions, threshold: float) -> None:
    """Writes the table ``case_id,patient_id,label,probability,decision,threshold``.

    A decision is 1 where ``probability >= threshold``. Numbers are written with all their digits,
    so that reading gives the same float64 back. Coarse maps are not part of the table.

    Args:
        path: CSV file; replaced as a whole.
        predictions: the cases, written in their order.
        threshold: in [0, 1], the same for every case.

    Raises:
        ValueError: threshold is not in [0, 1].
        UserError: the file cannot be written.
    """
    write_csv(path, COLUMNS, _rows(predictions, threshold))


def write_patient_predictions(
    path: str | os.PathLike, patients: Predictions, slices: Predictions, threshold: float
) -> None:
    """Writes the table ``patient_id,slices,label,probability,decision,threshold``.

    Args:
        path: CSV file; replaced as a whole.
        patients: one row a patient, as ``statistics.by_patient`` makes them.
        slices: what they were made of; gives the number of slices.
        threshold: in [0, 1], chosen for patients.

    Raises:
        ValueError: threshold is not in [0, 1].
        UserError: the file cannot be written.
    """
    count = Counter(slices.patient_id)
    rows = [{**row, "slices": count[row["patient_id"]]} for row in _rows(patients, threshold)]
    write_csv(path, PATIENT_COLUMNS, rows)


def _rows(predictions: Predictions, threshold: float) -> list[dict[str, Any]]:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold {threshold} is not in [0, 1]")
    return [
        {
            "case_id": case_id,
            "patient_id": patient_id,
            "label": label,
            "probability": probability,
            "decision": int(probability >= threshold),
            "threshold": float(threshold),
        }
        for case_id, patient_id, label, probability in zip(
            predictions.case_id,
            predictions.patient_id,
            predictions.label.tolist(),
            predictions.probability.tolist(),
            strict=True,
        )
    ]


def read_predictions(path: str | os.PathLike, *, split: str) -> tuple[Predictions, float]:
    """Reads what ``write_predictions`` wrote. A byte order mark and CRLF are accepted.

    Args:
        path: CSV file.
        split: name to give the split (the table does not carry it).

    Returns:
        The predictions, without coarse maps, and the threshold.

    Raises:
        UserError: missing or undecodable file, other columns, no rows, a repeated case id, a
            value that is not a number, NaN or out of range, a decision that contradicts
            ``probability >= threshold``, thresholds that differ. Names file and line.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}",
            "run eval.py first, or correct the path",
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a UTF-8 CSV table: {error}", _REMEDY) from error
    if not rows or tuple(rows[0][1]) != COLUMNS:
        found = ",".join(rows[0][1])[:120] if rows else "an empty file"
        raise UserError(f"{path}, line 1: expected {','.join(COLUMNS)}, found {found}", _REMEDY)
    if len(rows) == 1:
        raise UserError(f"{path}, line 1: the table has no cases", _REMEDY)

    seen: dict[str, int] = {}
    table: list[tuple[str, str, int, float, float]] = []
    for line, row in rows[1:]:
        where = f"{path}, line {line}"
        if len(row) != len(COLUMNS):
            raise UserError(f"{where}: {len(row)} columns, expected {len(COLUMNS)}", _REMEDY)
        case_id, patient_id, *texts = row
        if not case_id or not patient_id:
            raise UserError(f"{where}: empty case_id or patient_id", _REMEDY)
        if case_id in seen:
            remedy = "keep one row for each case"
            raise UserError(f"{where}: case '{case_id}' is already on line {seen[case_id]}", remedy)
        seen[case_id] = line
        numbers = [
            _number(name, text, where) for name, text in zip(COLUMNS[2:], texts, strict=True)
        ]
        label, probability, decision, threshold = numbers
        if table and threshold != table[0][4]:
            raise UserError(f"{where}: threshold {texts[3]} differs from the first row's", _REMEDY)
        if decision != (probability >= threshold):
            cause = f"{where}: decision {texts[2]} contradicts probability >= threshold"
            raise UserError(cause, _REMEDY)
        table.append((case_id, patient_id, int(label), probability, threshold))
    case_id, patient_id, label, probability, threshold = zip(*table, strict=True)
    return Predictions(
        split, case_id, patient_id, np.array(label), np.array(probability)
    ), threshold[0]


def _number(name: str, text: str, where: str) -> float:
    """A label or a decision, 0 or 1; a probability or a threshold, in [0, 1]."""
    if name in ("label", "decision") and text not in ("0", "1"):
        raise UserError(f"{where}: {name} '{text}' is not 0 or 1", _REMEDY)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"{where}: {name} '{text}' is not a number in [0, 1]", _REMEDY)
    return value
