"""What a cohort knows of its cases beside image and label, for a table of subgroups."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mvo_jax.data.phantom.patient import TERRITORIES
from mvo_jax.data.splits import Cases

# Columns of a manifest that name a case, or say how its pixels were made.
_NO_ATTRIBUTE = frozenset(
    (
        "case_id", "patient_id", "label", "split", "source", "frames", "sha256", "first_frame",
        "start_row", "start_column", "step_row", "step_column", "grey_low", "grey_high", "note",
    )
)  # fmt: skip

Values = Sequence[float] | Sequence[str]
# Of a simulated cohort: feature -> title, and the values as they are shown.
_SIMULATED: dict[str, tuple[str, Callable[[np.ndarray], Values]]] = {
    "male": ("sex", lambda x: ["male" if male else "female" for male in x]),
    "age_years": ("age, years", np.ndarray.tolist),
    "territory": ("territory", lambda x: [TERRITORIES[int(number)] for number in x]),
    "infarct_size": ("infarct size, % of the slice's muscle", lambda x: (100 * x).tolist()),
    "blood_snr": ("image quality, signal to noise of the blood", np.ndarray.tolist),
}


def attributes(data_config: Any, cases: Cases) -> dict[str, Values]:
    """Attributes of the cases of a split by their titles, each in the order of the split.

    Of a simulated cohort what the simulator drew, of a prepared one the columns of its manifest; a
    text is empty where it is not known.

    Raises:
        UserError: the manifest of a prepared cohort has changed.
    """
    if data_config.name == "cohort":
        from mvo_jax.data.cohort.storage import open_cohort  # imports TFDS

        return _of_manifest(open_cohort(data_config.dir).manifest(), cases.case_id)
    return {
        title: of(cases.features[name])
        for name, (title, of) in _SIMULATED.items()
        if name in cases.features
    }


def _of_manifest(
    manifest: Mapping[str, Mapping[str, str]], case_id: Sequence[str]
) -> dict[str, Values]:
    rows = [manifest.get(name, {}) for name in case_id]
    found: dict[str, Values] = {}
    for column in dict.fromkeys(column for row in rows for column in row):
        if column not in _NO_ATTRIBUTE:
            texts = [row.get(column) or "" for row in rows]
            found[column.replace("_", " ")] = _numbers(texts) or texts
    return found


def _numbers(texts: Sequence[str]) -> list[float] | None:
    """The texts as numbers, where all are and they take more than a few values."""
    if len(set(texts)) <= 4:
        return None
    try:
        return [float(text) for text in texts]
    except ValueError:
        return None
