"""Per-case predictions of one split, and their table on disk."""

import csv
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from mvo_jax.errors import UserError
from mvo_jax.files import write_csv

COLUMNS = ("case_id", "patient_id", "label", "probability", "decision", "threshold")
PATIENT_COLUMNS = ("patient_id", "slices", "label", "probability", "decision", "threshold")


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
        ValueError: empty split, lengths that differ, empty or repeated case ids, labels other than
            0 and 1, probabilities outside [0, 1].
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
        if len(set(self.case_id)) != cases:
            raise ValueError(f"split '{self.split}' has repeated case ids")
        if "" in self.case_id or "" in self.patient_id:
            raise ValueError(f"split '{self.split}' has an empty case or patient id")
        if not np.isin(self.label, (0, 1)).all():
            raise ValueError(f"split '{self.split}': labels other than 0 and 1")
        kinds = {"label": np.int32, "probability": np.float64}
        for name, kind in {**kinds, "coarse_mask": np.float32, "coarse_target": np.float32}.items():
            if (given := getattr(self, name)) is None:
                continue
            value = np.array(given, dtype=kind)
            if len(value) != cases or len(self.patient_id) != cases:
                raise ValueError(
                    f"split '{self.split}': {cases} case ids, {len(self.patient_id)} patient ids "
                    f"and {name} {value.shape}"
                )
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        if not ((self.probability >= 0) & (self.probability <= 1)).all():  # False for NaN too
            raise ValueError(f"split '{self.split}': probabilities outside [0, 1] or NaN")

    def __len__(self) -> int:
        return len(self.case_id)

    def part(self, chosen: np.ndarray) -> "Predictions":
        """Some of the cases, bool [N], without coarse maps."""
        places = np.flatnonzero(chosen)
        return Predictions(
            self.split,
            tuple(self.case_id[i] for i in places),
            tuple(self.patient_id[i] for i in places),
            self.label[places],
            self.probability[places],
        )


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
            value that is not a number or out of range.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
        head = ",".join(rows[0]) if rows else "an empty file"
        if head != ",".join(COLUMNS):
            raise ValueError(f"expected {','.join(COLUMNS)}, found {head[:120]}")
        if len(rows) == 1:
            raise ValueError("it has no cases")
        case_id, patient_id, label, probability, _, threshold = zip(*rows[1:], strict=True)
        label, probability = np.array(label, np.int64), np.array(probability, np.float64)
        return Predictions(split, case_id, patient_id, label, probability), float(threshold[0])
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}",
            "run eval.py first, or correct the path",
        ) from error
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{path} is not a table of predictions: {error}",
            "restore the file or write it again with eval.py",
        ) from error
