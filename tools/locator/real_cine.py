"""Whole cine of three Sunnybrook patients with contours, to try the locator on."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mvo_jax.data.cohort.heart import heart_region
from mvo_jax.data.importers.cine import Options, quiet_readers
from mvo_jax.data.importers.formats import choose_importer, load_series
from mvo_jax.data.slices import CineSlice

# Names in the DICOM files and in the file that the locator is trained on.
PATIENT_OF = {
    "SCD0000101": "SC-HF-I-01",
    "SCD0000201": "SC-HF-I-02",
    "SCD0000301": "SC-HF-I-04",
}
_SHIFTS = ((-12, 4), (12, 12))  # pixels; the archive has the ventricle in the middle


class Drawn(NamedTuple):
    """The bounding box of all contours of a slice, pixels from the outer edge."""

    low: np.ndarray
    high: np.ndarray

    def off(self, centre: np.ndarray, one: CineSlice) -> float:
        """Distance of a centre from the box's, mm."""
        return float(np.hypot(*((centre - (self.low + self.high) / 2) * np.array(one.pixel_mm))))

    def spare(self, centre: np.ndarray, one: CineSlice, crop_mm: float) -> float:
        """What is left between the box and the edge of a square crop, mm; negative if cut."""
        mm = np.array(one.pixel_mm)
        reach = np.maximum(centre - self.low, self.high - centre) * mm
        return float(crop_mm / 2 - reach.max())


def read_cine(samples: Path) -> dict[str, list[tuple[CineSlice, np.ndarray | None]]]:
    """Name -> slices without their contours, each with what was drawn on it.

    Args:
        samples: has ``dicom``, ``contours`` and ``short_axis_cine.npz``.
    """
    out = {}
    with quiet_readers():
        importer = choose_importer(samples)
        for series in importer.find(samples, Options()):
            slices = load_series(importer.load, series, Options())
            out[f"{series.name} DICOM"] = _bare(slices)
    content = np.load(samples / "short_axis_cine.npz")
    for patient in PATIENT_OF:
        of = np.flatnonzero(content["patient"] == patient)
        for rows, columns in _SHIFTS:
            around = ((0, 0), (0, 0), (40 + rows, 40 - rows), (40 + columns, 40 - columns))
            cine, label = (np.pad(content[k][of], around) for k in ("cine", "label"))
            pixel = np.broadcast_to(content["pixel_mm"][of[0]], 2)
            slices = [
                CineSlice(
                    case_id=f"{patient}_{i}",
                    patient_id=patient,
                    slice_index=i,
                    source=patient,
                    cine=cine[i],
                    pixel_mm=(float(pixel[0]), float(pixel[1])),
                    anatomy={t: mask for t, mask in enumerate(label[i]) if mask.any()},
                )
                for i in range(len(of))
            ]
            out[f"{patient} archive {rows:+d} {columns:+d}"] = _bare(slices)
    return out


def _bare(slices: Sequence[CineSlice]) -> list[tuple[CineSlice, np.ndarray | None]]:
    return [(dataclasses.replace(one, anatomy={}), heart_region(one)) for one in slices]
