"""What a run knows of the cohort it learned from and was scored on: one entry a split."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mvo_jax.data.attributes import Values, attributes
from mvo_jax.data.labels import UNLABELLED
from mvo_jax.data.splits import Cases, dataset_line

LABEL_RULE = "1 where the LGE mask of a slice, as drawn, has a pixel of MVO, else 0"


def cohort_card(data_config: Any) -> dict[str, Any]:
    """What is true of all splits, see ``splits.load_split``."""
    card: dict[str, Any] = {
        "data": dataset_line(data_config),
        "kind": "simulated" if data_config.name == "phantom" else "prepared",
        "label": LABEL_RULE,
        "partition": "by patient: all slices of a patient are in one split",
    }
    if data_config.name == "phantom":
        from mvo_jax.data.phantom.cohort import MAX_SLICES
        from mvo_jax.data.phantom.patient import PRESETS

        card["simulator"] = {
            "patients": "infarct of one coronary territory in every patient; the share with MVO is "
            "set for each split",
            "preset": dataclasses.asdict(PRESETS[data_config.preset]),
            "slices": f"{data_config.slices_per_patient} of at most {MAX_SLICES} a patient",
            "annotator": "the simulator draws mask and label of every slice, and shifts the mask "
            "as LGE lies beside cine",
        }
        return card
    from mvo_jax.data.cohort.storage import REJECTED, open_cohort, read_rows  # imports TFDS

    cohort = open_cohort(data_config.dir)
    settings, folds = cohort.settings, data_config.get("folds", 0) or cohort.folds
    card["prepared"] = {
        "source format": settings["format"],
        "cases": sum(cohort.cases.values()),
        "unlabelled": cohort.cases.get("unlabelled", 0),
        "rejected": len(read_rows(cohort.path / REJECTED)),
        "division": f"{folds} folds" if folds else f"fractions {settings['fractions']}",
        "seed of the division": settings["seed"],
    }
    return card


def split_card(data_config: Any, cases: Cases, *, known: bool = True) -> dict[str, Any]:
    """Counts of a split, and its attributes in short.

    Args:
        known: whether the cases are those that ``data_config`` names; others have no attributes.
    """
    found = attributes(data_config, cases) if known else {}
    return {
        "cases": len(cases),
        "patients": len(set(cases.patient_id)),
        "positive": int(np.sum(cases.label == 1)),
        "unlabelled": int(np.sum(cases.label == UNLABELLED)),
        "attributes": {title: _short(values) for title, values in found.items()},
    }


def _short(values: Values | Sequence[Any]) -> Mapping[str, Any]:
    """Mean, standard deviation and range of numbers; counts of texts."""
    if isinstance(values[0], str):
        return dict(sorted(Counter(str(value) or "not known" for value in values).items()))
    numbers = np.asarray(values, np.float64)
    return {
        "mean": round(float(numbers.mean()), 4),
        "sd": round(float(numbers.std(ddof=1)), 4) if numbers.size > 1 else None,
        "least": round(float(numbers.min()), 4),
        "most": round(float(numbers.max()), 4),
    }
