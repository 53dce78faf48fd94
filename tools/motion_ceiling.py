"""How much of MVO the motion of a simulated heart tells.

    python -m tools.motion_ceiling

Logistic models of what a perfect reader could measure in the cine, fitted on training patients and
scored on test_large. The study ``ceiling`` has models of features that motion does not show: how
deep the infarct goes, and where it is obstructed, changes the signal of the tissue and no movement.
The last line says how much.
"""

from typing import Any

import numpy as np

from mvo_jax.config_files import load_config
from mvo_jax.data.phantom.case import plan_case
from mvo_jax.data.splits import phantom_spec
from mvo_jax.evaluation.oracle import fit_logistic
from mvo_jax.evaluation.pages.render import percent, span
from mvo_jax.evaluation.statistics import delong_interval

TRAINING, CASES = 4000, 1000  # patients to fit on and, of test_large, to score
# By row, columns of ``measure``.
MODELS = {
    "area change": ("area_change",),
    "area change, strain": ("area_change", "strain"),
    "area change, strain, extent": ("area_change", "strain", "extent"),
}


def measure(data_config: Any, split: str, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What the first patients of a split show, without error.

    Returns:
        'area_change' of the cavity; 'strain' of the mid wall over the infarct's angle; 'extent',
        the share of the circumference that the infarct takes; signal of 'infarct' and, where there
        is MVO, its 'core' over that of remote muscle; 'noise', the standard deviation of a pixel
        over the same. Each [N]. And label [N].
    """
    columns: dict[str, list[float]] = {}
    labels = []
    for key in phantom_spec(data_config).keys(split)[:count]:
        plan = plan_case(key)
        heart, inside = plan.heart, plan.heart.infarct.any(axis=0)
        row = {
            "area_change": heart.fractional_area_change,
            "strain": heart.strain[inside].mean(),
            "extent": inside.mean(),
            "infarct": plan.scan.infarct,
            "core": plan.scan.core if key.mvo else float("nan"),
            "noise": plan.scan.blood / plan.scan.blood_snr,
        }
        for name, value in row.items():
            columns.setdefault(name, []).append(float(value))
        labels.append(int(key.mvo))
    return {name: np.array(values) for name, values in columns.items()}, np.array(labels)


def main() -> None:
    """Print a row for each model."""
    config: Any = load_config("mvo:quick").unlock()
    config.data.size = "patients7040"
    fitted_on, fitted_label = measure(config.data, "train", TRAINING)
    config.data.size = "paper"
    scored, label = measure(config.data, "test_large", CASES)
    for title, names in MODELS.items():
        table, wanted = (
            np.stack([of[name] for name in names], axis=1) for of in (fitted_on, scored)
        )
        found = delong_interval(label, fit_logistic(table, fitted_label)(wanted))
        print(f"{title}: AUC {percent(found.value, 1)} ({span(vars(found))})")
    infarct, core, noise = (scored[name] for name in ("infarct", "core", "noise"))
    quartiles = np.nanpercentile((infarct - core) / noise, (25, 50, 75))
    print("infarct less core, in standard deviations of a pixel's noise, quartiles:", end=" ")
    print(", ".join(f"{value:.2f}" for value in quartiles))


if __name__ == "__main__":
    main()
