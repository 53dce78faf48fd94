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
        case_id: N distinct, non-empty names.
        patient_id: N names; cases of one patient share it.
        label: int32 [N], 1 = MVO present.
        probability: float64 [N] in [0, 1].
        coarse_mask: float32 [N, m, m], predicted share of MVO pixels per block (a linear output, so
            it may leave [0, 1]); None without a mask branch.
        coarse_target: float32 [N, m, m] in [0, 1], the same share from the LGE mask, Eq. (1).
        logits: [N, 1] or [N, 2], what the probabilities were made of, where that is known.

    Raises:
        ValueError: what is not as above, or no case.
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

    A decision is 1 where ``probability >= threshold``. All digits are written: reading gives the
    same float64. ValueError for a threshold outside [0, 1]; UserError where the file cannot be
    written.
    """
    write_csv(path, COLUMNS, _rows(predictions, threshold))


def write_patient_predictions(
    path: str | os.PathLike, patients: Predictions, slices: Predictions, threshold: float
) -> None:
    """Writes the table ``patient_id,slices,label,probability,decision,threshold``.

    ``patients`` is what ``statistics.by_patient`` made of ``slices``; ``threshold`` is that of
    patients. Raises as ``write_predictions``.
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
    """Reads predictions, without coarse maps, and threshold of ``write_predictions``.

    ``split`` is not in the table; a byte order mark and CRLF are accepted.

    Raises:
        UserError: the file cannot be read or is not such a table.
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
