"""One slice of a heart at end-diastole: its outline, its strain, its infarct and MVO.

Everything is tabulated over material coordinates: depth (0 endocardium, 1 epicardium) and angle.
"""

import dataclasses
import functools
import math

import numpy as np

from mvo_jax.data.phantom.draws import smooth_field
from mvo_jax.data.phantom.kinematics import deformed_radius, strongest_strain
from mvo_jax.data.phantom.patient import SLICE_SPACING_MM, Anatomy, Pathology

N_DEPTH, N_ANGLE = 40, 512  # about 0.2 mm deep and 0.35 mm along the wall, pixels are 2 mm
ANGLES = 2.0 * math.pi * (np.arange(N_ANGLE) + 0.5) / N_ANGLE
DEPTHS = (np.arange(N_DEPTH) + 0.5) / N_DEPTH
MVO_START = 0.08  # depth of the core's inner border: a thin layer is fed from the cavity

_TETHER_ANGLE = math.radians(20.0)
_TETHER_SHARE = 0.25  # of the infarct's strain deficit in the neighbouring muscle
_MAX_HALF_ANGLE = math.radians(115.0)
_MIN_INFARCT_SHARE = 0.03  # every slice is taken through the infarct
_MIN_CORE_MM2 = 30.0  # 7 to 8 pixels of 2 mm: smaller cores are hardly read as MVO


@dataclasses.dataclass(frozen=True)
class Heart:
    """One slice in material coordinates."""

    endo: np.ndarray  # end-diastolic endocardial radius, mm [N_ANGLE]
    epi: np.ndarray  # end-diastolic epicardial radius, mm [N_ANGLE]
    strain: np.ndarray  # end-systolic mid-wall circumferential strain [N_ANGLE]
    twist: float  # rotation at end-systole, radians
    infarct: np.ndarray  # MVO included, bool [N_DEPTH, N_ANGLE]
    core: np.ndarray  # which material is MVO, bool [N_DEPTH, N_ANGLE]

    @functools.cached_property
    def weight(self) -> np.ndarray:
        """Share of the muscle that each cell holds, [N_DEPTH, N_ANGLE], sums to 1."""
        wall = self.epi - self.endo
        area = (self.endo + DEPTHS[:, None] * wall) * wall
        return area / area.sum()

    def radius(self, material_radius: np.ndarray, contraction: float) -> np.ndarray:
        """Radius at a contraction of the points at ``material_radius`` [..., N_ANGLE], mm."""
        wall = {"endo": self.endo, "epi": self.epi, "strain": self.strain}
        return deformed_radius(material_radius, **wall, contraction=contraction)

    def cavity_area(self, contraction: float) -> float:
        """Area inside the endocardium, papillary muscles included, mm^2."""
        return float(0.5 * np.sum(self.radius(self.endo, contraction) ** 2) * 2 * math.pi / N_ANGLE)

    @property
    def fractional_area_change(self) -> float:
        """(end-diastolic - end-systolic) / end-diastolic cavity area."""
        return 1.0 - self.cavity_area(1.0) / self.cavity_area(0.0)


def angle_between(first: np.ndarray, second: float) -> np.ndarray:
    """Signed difference of angles, wrapped to [-pi, pi)."""
    return (first - second + math.pi) % (2.0 * math.pi) - math.pi


def _harmonics(amplitudes: np.ndarray) -> np.ndarray:
    """Relative change of a radius over ANGLES from harmonics 2 and up; amplitudes [2, n]."""
    turns = np.arange(2, 2 + amplitudes.shape[1])[:, None] * ANGLES
    cosine, sine = amplitudes[..., None]
    return (cosine * np.cos(turns) + sine * np.sin(turns)).sum(axis=0)


def _grow(score: np.ndarray, weight: np.ndarray, share: float) -> tuple[np.ndarray, float]:
    """The cells of lowest score that hold a share of the muscle, and the score where they end."""
    order = np.argsort(score, axis=None, kind="stable")
    filled = np.cumsum(weight.reshape(-1)[order])
    count = max(int(np.searchsorted(filled, share)), 1)
    cells = np.zeros(score.size, dtype=bool)
    cells[order[:count]] = True
    return cells.reshape(score.shape), float(score.reshape(-1)[order[count - 1]])


def _smooth_around(values: np.ndarray, width: float) -> np.ndarray:
    """Periodic moving average over ANGLES, twice; width in radians."""
    half = max(round(width / 2.0 / (2.0 * math.pi / N_ANGLE)), 1)
    for _ in range(2):
        padded = np.concatenate([values[-half:], values, values[:half]])
        sums = np.concatenate([[0.0], np.cumsum(padded)])
        values = (sums[2 * half + 1 :] - sums[: -2 * half - 1]) / (2 * half + 1)
    return values


def _material_noise(nodes: np.ndarray) -> np.ndarray:
    """Smooth random field over (depth, angle) from nodes [m, n]; at most half a period deep."""
    rows = (DEPTHS * (nodes.shape[0] - 1))[:, None]
    return smooth_field(nodes, rows, (ANGLES / (2.0 * math.pi) * nodes.shape[1])[None, :])


def build_heart(anatomy: Anatomy, pathology: Pathology, *, slice_index: int, slices: int) -> Heart:
    """One slice of a patient.

    The infarct grows from the endocardium outwards, deepest in its middle; its angle is what its
    share of the muscle asks for. MVO lies inside it, away from the endocardium by a thin layer,
    around one or two foci. A case with MVO always keeps some. Slices are 10 mm apart.
    """
    level = anatomy.slice_offset + (slice_index - (slices - 1) / 2.0) * SLICE_SPACING_MM
    taper = math.sqrt(max(1.0 - (level / 75.0) ** 2, 0.3)) - 0.0035 * level  # narrows to the apex
    endo = anatomy.endo_radius * taper * (1.0 + _harmonics(anatomy.endo_shape))
    wall = anatomy.wall * (1.0 - 0.004 * level)
    # The amplitudes are shares of a radius, about a quarter of a wall's own variation.
    epi = endo + wall * np.clip(1.0 + 8.0 * _harmonics(anatomy.epi_shape), 0.75, 1.2)

    # Infarct: every cell gets the half-angle from which on it belongs to the infarct.
    offset = angle_between(ANGLES, pathology.angle)
    away = pathology.level - level
    share = max(pathology.infarct_share * math.exp(-0.5 * (away / 30.0) ** 2), _MIN_INFARCT_SHARE)
    # A shallow infarct cannot hold a large share: it must reach deeper.
    reach = max(pathology.transmurality, min(1.0, 1.7 * share * math.pi / _MAX_HALF_ANGLE))
    depth = np.clip(DEPTHS[:, None] / reach, 0.0, None)
    narrowing = np.where(depth < 1.0, 1.0 - 0.9 * depth**1.2, 1e-9)
    ragged = 1.0 + 0.16 * _material_noise(pathology.infarct_border)
    healthy = Heart(endo, epi, np.zeros(N_ANGLE), 0.0, np.empty(0), np.empty(0))
    score = np.abs(offset) * ragged / narrowing
    infarct, half_angle = _grow(score, healthy.weight, share)

    deficit = pathology.strain - anatomy.remote_strain
    beyond = np.abs(offset) - half_angle
    dose = np.where(
        beyond < 0.0, 1.0, _TETHER_SHARE * np.clip(1.0 - beyond / _TETHER_ANGLE, 0.0, 1.0)
    )
    dose = _smooth_around(dose, math.radians(9.0))
    strain = anatomy.remote_strain + max(deficit, 0.0) * dose
    inside = _smooth_around((beyond < 0.0).astype(np.float64), math.radians(14.0))
    epi = endo + (epi - endo) * (1.0 + pathology.swelling * inside)

    strain = np.maximum(strain, strongest_strain(endo, epi))

    heart = Heart(endo, epi, strain, anatomy.twist * (1.0 - share), infarct, np.zeros_like(infarct))
    if not pathology.mvo:
        return heart
    weight = heart.weight
    core_share = pathology.mvo_share * math.exp(-0.5 * (away / 25.0) ** 2)
    muscle = 0.5 * float(np.sum(epi**2 - endo**2)) * 2.0 * math.pi / N_ANGLE
    infarcted = float(weight[infarct].sum())
    core_share = min(max(core_share, _MIN_CORE_MM2 / muscle), 0.45 * infarcted)
    core_score = np.full(infarct.shape, np.inf)
    for across, along, heaviness in pathology.foci:
        dx = (offset - along * half_angle) / half_angle
        dy = (DEPTHS[:, None] - MVO_START - across * 0.7 * reach) / (0.8 * reach)
        distance = np.sqrt((dx * pathology.focus_aspect) ** 2 + dy**2) / heaviness
        core_score = np.minimum(core_score, distance)
    core_score = core_score * (1.0 + 0.18 * _material_noise(pathology.mvo_border))
    allowed = infarct & (DEPTHS[:, None] > MVO_START)
    core, _ = _grow(np.where(allowed, core_score, np.inf), weight, core_share)
    return dataclasses.replace(heart, core=core & allowed)
