"""Training images of the locator: real and simulated frames as other scanners might show them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from mvo_jax.data.locator.network import SIDE, SPACING_MM, normalised
from mvo_jax.data.phantom.case import CaseKey, plan_case
from mvo_jax.data.phantom.draws import Draws
from mvo_jax.data.phantom.kinematics import time_curve
from mvo_jax.data.phantom.render import Deformed, render_video
from mvo_jax.errors import UserError

SOURCE_MM = 2.67  # pixels of the file are two of 1.29 to 1.37 mm; it does not say of which patient
FOLDS = 5
_GROUPS = ("SC-HF-I-", "SC-HF-NI-", "SC-HYP-", "SC-N-")
_SIMULATED = 0.2  # share of a batch
_SIMULATED_SIDE, _SIMULATED_FRAMES = 80, 8


@dataclasses.dataclass(frozen=True)
class Frames:
    """Single frames with the cavity drawn."""

    image: np.ndarray  # uint8 ``[N, H, W]``
    cavity: np.ndarray  # bool ``[N, H, W]``
    patient: np.ndarray  # ``[N]``
    spacing_mm: np.ndarray  # ``[N]``, side of a pixel

    def of(self, patients: Sequence[str]) -> "Frames":
        """The frames of some patients."""
        keep = np.isin(self.patient, patients)
        return Frames(*(getattr(self, f.name)[keep] for f in dataclasses.fields(self)))


def read_sunnybrook(path: Path) -> Frames:
    """Frames of ``lv_cavity.npz``.

    Raises:
        UserError: the file is missing or another.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            image, cavity, patient = (content[k] for k in ("image", "cavity", "patient"))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read as the frames to train on ({error})",
            "give the .npz with image, cavity and patient as --data",
        ) from error
    return Frames(image, cavity, patient.astype(str), np.full(len(image), SOURCE_MM))


def fold_of(patients: Sequence[str]) -> dict[str, int]:
    """Patient -> the fold that does not see it; each group of patients is spread over all."""
    ordered = sorted(set(patients), key=lambda p: (_group(p), p))
    return {patient: i % FOLDS for i, patient in enumerate(ordered)}


def _group(patient: str) -> int:
    return next((i for i, start in enumerate(_GROUPS) if patient.startswith(start)), len(_GROUPS))


def simulated_frames(cases: int, seed: int) -> Frames:
    """Frames of simulated slices with wide fields of view, and what lies within the endocardium."""
    images, cavities, patients, spacings = [], [], [], []
    side, frames = _SIMULATED_SIDE, _SIMULATED_FRAMES
    rng = np.random.default_rng(seed)
    for patient in range(cases):
        slice_index = int(rng.integers(5))
        key = CaseKey("paper", seed, patient, slice_index, 5, bool(rng.integers(2)))
        plan = plan_case(key)
        view = float(rng.uniform(115, 230))
        anatomy = dataclasses.replace(plan.anatomy, field_of_view=view)
        scan = dataclasses.replace(plan.scan, drift=np.zeros((2, 3)), blur=False)
        draws = Draws(seed, patient, "texture", slice_index)
        video = render_video(
            plan.heart, anatomy, scan, draws=draws, frames=frames, image_size=side
        )[..., 0]
        contractions = time_curve(
            (np.arange(frames) + scan.start) / frames % 1.0,
            end_systole=anatomy.end_systole,
            filling_delay=anatomy.filling_delay,
        )
        line = ((np.arange(side) + 0.5) / side - 0.5) * view
        dx, dy = line[None, :] - anatomy.centre[0], -line[:, None] - anatomy.centre[1]
        radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx) - anatomy.rotation
        for k in rng.choice(frames, 3, replace=False):
            depth, _ = Deformed(plan.heart, float(contractions[k])).trace(radius, angle)
            images.append(video[k])
            cavities.append(depth < 0)
            patients.append(f"simulated-{patient}")
            spacings.append(view / side)
    return Frames(np.stack(images), np.stack(cavities), np.array(patients), np.array(spacings))


def draw_batch(
    real: Frames | None, simulated: Frames, size: int, seed: Sequence[int], *, empty: float
) -> tuple[np.ndarray, np.ndarray]:
    """A batch that depends on its seed alone, so that training can go on where it stopped.

    Args:
        real: drawn patient by patient; None for simulated frames only.
        simulated: a fifth of the batch.
        empty: share of images without a ventricle.

    Returns:
        Images and how much of each pixel is cavity, float32 ``[size, SIDE, SIDE]``.
    """
    rng = np.random.default_rng(seed)
    images, targets = [], []
    for _ in range(size):
        frames = simulated if real is None or rng.random() < _SIMULATED else real
        patient = rng.choice(np.unique(frames.patient))
        at = int(rng.choice(np.flatnonzero(frames.patient == patient)))
        image = frames.image[at].astype(np.float32)
        cavity, spacing = frames.cavity[at].astype(np.float32), float(frames.spacing_mm[at])
        if rng.random() < empty:
            image, target = without_heart(image, cavity, spacing, rng)
        else:
            image, target = transformed(image, cavity, spacing, rng)
        images.append(image)
        targets.append(target)
    return np.stack(images), np.stack(targets)


def transformed(
    image: np.ndarray,
    cavity: np.ndarray,
    spacing: float,
    rng: np.random.Generator,
    *,
    invert: bool = False,
    leave_out: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """One frame turned, shifted, cut and shown as another scanner might; black where nothing is.

    Args:
        spacing: side of a pixel, mm.
        leave_out: cut so that the heart is outside.
    """
    inside = _field_of_view(cavity, spacing, rng, leave_out=leave_out)
    shown = _as_scanned(image * inside, inside, rng, invert=invert)
    turn = rng.uniform(0, 2 * np.pi) if rng.random() < 0.7 else rng.normal(0, 0.2)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    if rng.random() < 0.5:
        turned = turned @ np.diag([1, -1])
    zoom = np.exp(rng.uniform(np.log(0.75), np.log(1.35)))
    stretch = np.exp(rng.normal(0, 0.03, 2))
    matrix = turned @ np.diag(stretch) * (SPACING_MM / spacing / zoom)
    middle = np.argwhere(cavity).mean(axis=0)
    reach = 0.5 * SIDE - 40 / SPACING_MM  # of the heart's centre from the picture's
    to = rng.uniform(-reach, reach, 2) if rng.random() < 0.6 else rng.normal(0, 4, 2)
    offset: Any = middle - matrix @ (to + (SIDE - 1) / 2)

    def carried(array: np.ndarray, order: int = 1) -> np.ndarray:
        return ndimage.affine_transform(array, matrix, offset, (SIDE, SIDE), order=order)

    out = np.maximum(carried(shown), 0)
    if rng.random() < 0.5:
        out = ndimage.gaussian_filter(out, rng.uniform(0, 0.7))
    pixels = carried(inside, 0) > 0.5
    if not pixels.any():
        return np.zeros((SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), np.float32)
    target = np.zeros_like(out) if invert or leave_out else np.clip(carried(cavity), 0, 1)
    return _normalised(out, pixels), target.astype(np.float32)


def _normalised(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """As ``normalised`` does before padding: of the pixels that are there."""
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    out = np.zeros_like(image, dtype=np.float32)
    out[box] = normalised(image[box][None])[0]
    return out


def _field_of_view(
    cavity: np.ndarray, spacing: float, rng: np.random.Generator, *, leave_out: bool
) -> np.ndarray:
    """1 where the picture shows something: all of it, or a rectangle with or without the heart."""
    out = np.ones(cavity.shape, np.float32)
    rows, columns = np.flatnonzero(cavity.any(1)), np.flatnonzero(cavity.any(0))
    heart = np.array([[rows[0], rows[-1]], [columns[0], columns[-1]]], float)
    if leave_out:
        # Everything on one side of the cavity, its wall left out too.
        wall = 14 / spacing
        axis, upper = int(rng.integers(2)), bool(rng.integers(2))
        cut = [slice(None), slice(None)]
        low, high = int(heart[axis, 0] - wall), int(heart[axis, 1] + wall)
        cut[axis] = slice(max(low, 0), None) if upper else slice(None, max(high, 0))
        out[tuple(cut)] = 0
    elif rng.random() < 0.4:
        edge = rng.uniform(18, 150, (2, 2)) / spacing
        (top, bottom), (left, right) = (heart + edge * [-1, 1]).astype(int)
        out[:] = 0
        out[max(top, 0) : bottom, max(left, 0) : right] = 1
    return out


def _as_scanned(
    image: np.ndarray, inside: np.ndarray, rng: np.random.Generator, *, invert: bool
) -> np.ndarray:
    """Contrast, coils, noise and a grey offset of another scanner."""
    top = np.quantile(image[inside > 0], 0.995) if inside.any() else 1.0
    x = np.clip(image / max(float(top), 1.0), 0, 1.5)
    x = x ** np.exp(rng.uniform(np.log(0.6), np.log(1.6)))
    if rng.random() < 0.6:
        rows, columns = np.mgrid[: x.shape[0], : x.shape[1]] / max(x.shape)
        field = sum(
            rng.normal(0, 0.5) * np.cos(np.pi * (a * rows + b * columns) + rng.uniform(0, 6.3))
            for a, b in ((1, 0), (0, 1), (1, 1), (1, -1), (2, 0), (0, 2))
        )
        x = x * np.exp(np.clip(field, -1.2, 1.2))
    if rng.random() < 0.15:  # a ghost of the chest or the heart along one axis
        shift = int(rng.integers(x.shape[0] // 6, x.shape[0] // 2))
        x = x + rng.uniform(0.03, 0.15) * np.roll(x, shift, int(rng.integers(2)))
    if invert:
        x = float(x.max()) - x
    if rng.random() < 0.7:
        level = rng.uniform(0, 0.08) * float(np.quantile(x, 0.99))
        real, imaginary = rng.normal(0, level, (2, *x.shape))
        x = np.hypot(x + real, imaginary)
    if rng.random() < 0.2:
        x = x + rng.uniform(0, 0.5)
    return (x * inside).astype(np.float32)


def without_heart(
    image: np.ndarray, cavity: np.ndarray, spacing: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A picture in which nothing is to be found: inverted, beside the heart, or no body at all."""
    kind = rng.choice(["inverted", "beside", "texture", "noise", "constant"], p=_KINDS)
    nothing = np.zeros((SIDE, SIDE), np.float32)
    if kind == "inverted":
        return transformed(image, cavity, spacing, rng, invert=True)
    if kind == "beside":
        return transformed(image, cavity, spacing, rng, leave_out=True)
    return artificial(kind, rng), nothing


_KINDS = (0.35, 0.4, 0.15, 0.05, 0.05)


def artificial(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Texture, noise or one grey, ``[SIDE, SIDE]``, normalised."""
    if kind == "constant":
        x = np.full((SIDE, SIDE), rng.uniform(0, 255)) + rng.normal(0, 1, 2) @ [1, 0]
    elif kind == "noise":
        x = np.abs(rng.normal(rng.uniform(0, 3), 1, (SIDE, SIDE)))
    else:
        x = sum(
            rng.uniform(0.2, 1) * s * ndimage.gaussian_filter(rng.normal(0, 1, (SIDE, SIDE)), s)
            for s in (1, 3, 6)
        )
        x = np.maximum(x - np.quantile(x, rng.uniform(0, 0.6)), 0)
        x += rng.uniform(0, 0.1) * np.abs(rng.normal(0, 1, x.shape))
    return normalised(np.asarray(x, np.float32)[None])[0]
