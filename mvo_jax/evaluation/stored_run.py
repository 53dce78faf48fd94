"""One finished run as one small file: enough for every table, without checkpoints or images.

A split of 1,000 cases takes some 20 kB; probabilities are float32, as networks give them.
"""

import base64
import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.errors import UserError
from mvo_jax.evaluation.pages.render import plain
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.files import replace_file
from mvo_jax.runs.folder import config_changes

log = logging.getLogger(__name__)

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Scores:
    """Labels, int32 [N], and probabilities, float32 [N], of one split.

    ``cases`` is a hash of the names and labels of the cases; names are empty where they are not
    kept.
    """

    label: np.ndarray
    probability: np.ndarray
    cases: str
    case_id: tuple[str, ...] = ()
    patient_id: tuple[str, ...] = ()

    @classmethod
    def of(cls, predictions: Predictions, *, named: bool = False) -> "Scores":
        """What is kept of predictions; ``named`` keeps the names of cases and patients too."""
        text = json.dumps([predictions.case_id, predictions.label.tolist()])
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        names = (predictions.case_id, predictions.patient_id) if named else ()
        return cls(predictions.label, predictions.probability.astype(np.float32), digest, *names)

    def predictions(self, split: str) -> Predictions:
        """The predictions again; without names each case is its place, and its own patient."""
        places = tuple(f"{self.cases}-{i}" for i in range(len(self.label)))
        return Predictions(
            split,
            self.case_id or places,
            self.patient_id or places,
            self.label,
            self.probability.astype(np.float64),
        )

    def packed(self) -> dict[str, Any]:
        """As JSON: labels as bits, probabilities as little-endian float32, both in base64."""
        names = {"case_id": self.case_id, "patient_id": self.patient_id} if self.case_id else {}
        return {
            **names,
            "cases": self.cases,
            "count": len(self.label),
            "label": _text(np.packbits(self.label.astype(np.uint8))),
            "probability": _text(self.probability.astype("<f4")),
        }

    @classmethod
    def unpacked(cls, content: Mapping[str, Any]) -> "Scores":
        """What ``packed`` gave; ValueError where lengths do not fit or a probability is no such."""
        count = content["count"]
        bits = np.frombuffer(base64.b64decode(content["label"]), np.uint8)
        probability = np.frombuffer(base64.b64decode(content["probability"]), "<f4")
        if len(probability) != count or len(bits) != -(-count // 8):
            raise ValueError(f"{len(probability)} probabilities for {count} cases")
        scores = cls(
            np.unpackbits(bits)[:count].astype(np.int32),
            probability,
            content["cases"],
            tuple(content.get("case_id", ())),
            tuple(content.get("patient_id", ())),
        )
        scores.predictions("stored")  # checks the values
        return scores


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


@dataclass(frozen=True, eq=False)
class StoredRun:
    """One row with one seed.

    Attributes:
        split: that was scored.
        features: of the simulator, where the row is a model of these and no network.
        validation: predictions that the checkpoint and the threshold were chosen on.
        localisation: see ``localisation.localise``; None where no map is predicted.
        curve: (step, AUC) on the validation split.
        seconds: of the training; of its last start, where it was interrupted.
        seconds_per_step: median, without compilation.
        forward_gflop: of one clip at inference.
    """

    name: str
    seed: int
    split: str
    config: Mapping[str, Any]
    scored: Scores
    validation: Scores
    threshold: float
    features: Sequence[str] = ()
    localisation: Mapping[str, Any] | None = None
    curve: Sequence[Sequence[float]] = ()
    best_step: int | None = None
    seconds: float | None = None
    seconds_per_step: float | None = None
    parameters: int | None = None
    forward_gflop: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


def run_name(name: str, seed: int) -> str:
    """What files and folders of a run are called."""
    return f"{name.replace(' ', '_')}-seed{seed}"


def run_file(out: Path, name: str, seed: int) -> Path:
    """The file of a run in the folder of its study."""
    return out / f"{run_name(name, seed)}.json"


def write_stored_run(path: Path, run: StoredRun) -> None:
    """Write a run's file, as a whole or not at all; UserError where that fails."""
    content = {key: value for key, value in vars(run).items() if not isinstance(value, Scores)}
    packed = {key: getattr(run, key).packed() for key in ("scored", "validation")}
    text = json.dumps(plain({"schema": SCHEMA, **content, **packed}), indent=1, allow_nan=False)
    replace_file(path, text + "\n")


def read_stored_run(path: Path) -> StoredRun:
    """Read a run's file; UserError where it is damaged, or of another schema."""
    try:
        content = json.loads(path.read_text())
        if content.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        for key in ("scored", "validation"):
            content[key] = Scores.unpacked(content[key])
        return StoredRun(**content)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not the file of a run: {type(error).__name__}: {error}",
            "delete it: the same command does that run again",
        ) from error


def check_config(run: StoredRun, config: Any, path: Path) -> None:
    """Raise a UserError where the run of a file has another config than this."""
    if changes := config_changes(run.config, config.to_dict()):
        raise UserError(
            f"{path} holds a run of another config ({'; '.join(changes)})",
            "choose another --out, or delete that file to do the run again",
        )


def take_over(path: Path, name: str, config: Any, split: str) -> StoredRun | None:
    """The run that another study has stored, as the run of a row ``name`` of this one.

    None where the file is missing, or is of another config or split.
    """
    if not path.exists():
        return None
    run = read_stored_run(path)
    changes = config_changes(run.config, config.to_dict())
    if run.split != split:
        changes.append(f"split {run.split} -> {split}")
    if changes:
        log.warning(f"{path} is another experiment than {name!r} ({'; '.join(changes)})")
        return None
    log.info(f"{name!r} is taken from {path}")
    return dataclasses.replace(run, name=name)


def same_machine(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two provenances name one machine with one installation: equal bytes are due then."""
    keys = ("platform", "processor", "python", "backend", "devices", "xla_flags", "versions")
    # Files of earlier revisions do not say their settings and how many CPUs they used.
    known = [key for key in ("settings", "cpus") if key in a and key in b]
    return all(a.get(key) == b.get(key) for key in (*keys, *known))
