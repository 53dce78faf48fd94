"""Simulated patients as image files, to prepare and train on as if they came from a hospital.

python -m tools.simulated_images --out images --patients 60 --slices 2
python -m mvo_jax prepare images --out cohort
"""

import argparse
from pathlib import Path

import numpy as np

from mvo_jax.data.clips import SIMULATED_FIELD_OF_VIEW_MM
from mvo_jax.data.phantom.case import CaseKey, simulate_case


def write_images(
    folder: Path,
    *,
    patients: int,
    slices: int = 1,
    positive: int | None = None,
    preset: str = "easy",
    frames: int = 30,
    image_size: int = 64,
) -> None:
    """Write one ``.npz`` a patient with the cine and the LGE mask of every slice.

    ``positive`` patients have MVO; two in five where that is None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    positive = round(0.4 * patients) if positive is None else positive
    for patient in range(patients):
        keys = [
            CaseKey(preset, 0, patient, index, slices, mvo=patient < positive)
            for index in range(slices)
        ]
        cases = [simulate_case(key, frames=frames, image_size=image_size) for key in keys]
        np.savez_compressed(
            folder / f"{keys[0].patient_id}.npz",
            cine=np.stack([case.video[..., 0] for case in cases]),
            lge_mask=np.stack([case.lge_mask for case in cases]),
            patient_id=[key.patient_id for key in keys],
            case_id=[key.case_id for key in keys],
            pixel_mm=SIMULATED_FIELD_OF_VIEW_MM / image_size,
        )


def main() -> None:
    """Write the files that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--preset", default="easy")
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--image_size", type=int, default=64)
    given = vars(parser.parse_args())
    write_images(given.pop("out"), **given)


if __name__ == "__main__":
    main()
