"""Figures of the locator: ``python -m tools.score_locator --data FILE --weights DIR``.

Every figure is of patients that the weights have not seen: those of ``foldN.safetensors`` in DIR
are scored on fold N. With ``--samples`` also on the DICOM files and stacks of Sunnybrook, which are
patients of the same file, and the motion of the heart beside it.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from scipy import ndimage

from mvo_jax.data.cohort.heart import heart_centre
from mvo_jax.data.cohort.locate import (
    FRAMES,
    MIN_CONFIDENCE,
    Found,
    joint_centre,
    locate,
    probability,
)
from mvo_jax.data.cohort.window import bounds
from mvo_jax.data.locator.network import SIDE, SPACING_MM, Weights, cavity_probability
from mvo_jax.data.slices import CineSlice
from tools.locator.real_cine import PATIENT_OF, Drawn, read_cine
from tools.locator.samples import (
    FOLDS,
    SOURCE_MM,
    Frames,
    artificial,
    fold_of,
    read_sunnybrook,
)

_GROSS_MM, _CROP_MM, _AROUND_MM = 15.0, 128.0, 16.0
_PIXEL = (SOURCE_MM, SOURCE_MM)
Change = Callable[[np.ndarray], np.ndarray]


class Single(NamedTuple):
    """One frame alone."""

    off_mm: float  # distance from the centre of the drawn cavity
    found: bool  # with confidence
    dice: float  # of the cavity on the grid of the drawing
    area: float  # of the cavity found, in pixels of the drawing


def single(image: np.ndarray, cavity: np.ndarray, weights: Weights) -> Single:
    """Score one frame."""
    found = probability(image[None], _PIXEL, weights)
    place, confidence = joint_centre(found[None])
    there = (place + 0.5) * SPACING_MM - 0.5 * SOURCE_MM
    off = there - np.argwhere(cavity).mean(axis=0) * SOURCE_MM
    grid = (np.indices(cavity.shape) + 0.5) * (SOURCE_MM / SPACING_MM) - 0.5
    mask = ndimage.map_coordinates(found[0], grid, order=1, mode="nearest") > 0.5
    dice = 2 * (mask & cavity).sum() / max(int(mask.sum() + cavity.sum()), 1)
    area = float(found[0].sum() * (SPACING_MM / SOURCE_MM) ** 2)
    return Single(float(np.hypot(*off)), confidence >= MIN_CONFIDENCE, float(dice), area)


def changes() -> Mapping[str, Change]:
    """What may happen to an image without its heart being lost."""

    def zoomed(factor: float) -> Change:
        def change(image: np.ndarray) -> np.ndarray:
            middle = (np.array(image.shape) - 1) / 2
            order = 0 if image.dtype == bool else 1
            matrix = np.full(2, 1 / factor)
            offset: Any = middle - middle * matrix
            return ndimage.affine_transform(image, matrix, offset, order=order, mode="constant")

        return change

    def noisy(image: np.ndarray) -> np.ndarray:
        if image.dtype == bool:
            return image
        real, imaginary = np.random.default_rng(0).normal(0, 0.05 * image.max(), (2, *image.shape))
        return np.hypot(image + real, imaginary)

    return {
        "flipped": lambda image: image[:, ::-1],
        "upside down": lambda image: image[::-1],
        "turned by 90 degrees": lambda image: np.rot90(image).copy(),
        "turned by 180 degrees": lambda image: np.rot90(image, 2).copy(),
        "turned by 270 degrees": lambda image: np.rot90(image, 3).copy(),
        "shifted by 80 mm": lambda image: ndimage.shift(image, (-30, 0), order=0),
        "shifted by 75 mm both ways": lambda image: ndimage.shift(image, (20, -20), order=0),
        "zoom 0.8": zoomed(0.8),
        "zoom 1.25": zoomed(1.25),
        "noise of 5 %": noisy,
    }


def gross_rate(frames: Frames, weights: Mapping[str, Weights], change: Change) -> float:
    """Share of frames with the centre over 15 mm off or not found, after a change."""
    wrong = 0
    for image, cavity, patient in zip(frames.image, frames.cavity, frames.patient, strict=True):
        one = single(change(image), change(cavity), weights[patient])
        wrong += one.off_mm > _GROSS_MM or not one.found
    return wrong / len(frames.image)


def empty_cuts(images: np.ndarray, cavity: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Images of one patient in which nothing is to be found, by kind.

    Args:
        images: ``[N, H, W]``.
        cavity: bool ``[H, W]``, of all of them; its wall is left out too.
    """
    yield "inverted contrast", images.max(axis=(1, 2), keepdims=True) - images
    rows, columns = np.flatnonzero(cavity.any(1)), np.flatnonzero(cavity.any(0))
    wall = round(14 / SOURCE_MM)
    for kind, cut in (
        ("above the heart", images[:, : max(rows[0] - wall, 0)]),
        ("below the heart", images[:, rows[-1] + wall :]),
        ("left of the heart", images[:, :, : max(columns[0] - wall, 0)]),
        ("right of the heart", images[:, :, columns[-1] + wall :]),
    ):
        if min(cut.shape[1:]) >= 12:
            yield kind, cut


def score_frames(frames: Frames, weights: Mapping[str, Weights]) -> None:
    """Cavity, single frames and change of area."""
    scored = [
        single(i, c, weights[p])
        for i, c, p in zip(frames.image, frames.cavity, frames.patient, strict=True)
    ]
    dice = np.array([one.dice for one in scored])
    off = np.array([one.off_mm for one in scored])
    lost = np.array([one.off_mm > _GROSS_MM or not one.found for one in scored])
    row("cavity, Dice", f"mean {dice.mean():.3f}, 5 % {np.quantile(dice, 0.05):.2f}")
    row(
        "single frames, centre",
        f"median {np.median(off):.1f} mm, 95 % {np.quantile(off, 0.95):.1f} mm, "
        f"over 15 mm or none {lost.mean():.1%}",
    )


def score_area(frames: Frames, number: np.ndarray, weights: Mapping[str, Weights]) -> None:
    """Change of area from the larger to the smaller of a slice's two drawn frames."""
    pairs: dict[tuple[str, int], list[int]] = {}
    for i, patient in enumerate(frames.patient):
        pairs.setdefault((patient, (int(number[i]) - 1) // 20), []).append(i)
    apart, ratio = [], []
    for both in pairs.values():
        if len(both) != 2:
            continue
        both.sort(key=lambda i: -int(frames.cavity[i].sum()))
        drawn = [float(frames.cavity[i].sum()) for i in both]
        found = [
            single(frames.image[i], frames.cavity[i], weights[frames.patient[i]]).area for i in both
        ]
        apart.append(100 * ((1 - found[1] / max(found[0], 1e-6)) - (1 - drawn[1] / drawn[0])))
        ratio += [f / d for f, d in zip(found, drawn, strict=True)]
    apart = np.abs(apart)
    row(
        f"change of area, {len(apart)} slices",
        f"median {np.median(apart):.1f} points off, 95 % {np.quantile(apart, 0.95):.0f}; "
        f"area {np.median(ratio):.2f} of the drawn one at the median",
    )


def score_stacks(frames: Frames, weights: Mapping[str, Weights]) -> None:
    """All frames of a patient together: does the crop hold every cavity?

    A ventricle that is 96 mm wide leaves nothing to spare: beside it stands what a crop around the
    middle of all that is drawn would hold.
    """
    held, best, off, confidence = [], [], [], []
    for patient in np.unique(frames.patient):
        of = frames.of([patient])
        maps = np.stack([probability(i[None], _PIXEL, weights[patient]) for i in of.image])
        place, sure = joint_centre(maps)
        centre = (place + 0.5) * SPACING_MM
        confidence.append(sure)
        off.append(np.hypot(*(centre - (np.argwhere(of.cavity)[:, 1:].mean(0) + 0.5) * SOURCE_MM)))
        corners = np.argwhere(of.cavity.any(axis=0)) * SOURCE_MM
        middle = (corners.min(0) + corners.max(0) + SOURCE_MM) / 2
        for cavity in of.cavity:
            at = np.argwhere(cavity) * SOURCE_MM
            low, high = at.min(0) - _AROUND_MM, at.max(0) + SOURCE_MM + _AROUND_MM
            held.append((np.abs([low - centre, high - centre]) <= _CROP_MM / 2).all())
            best.append((np.abs([low - middle, high - middle]) <= _CROP_MM / 2).all())
    flagged = sum(one < MIN_CONFIDENCE for one in confidence)
    row(
        f"stacks, {len(off)}",
        f"cavity and 16 mm in the crop in {np.mean(held):.1%} of the frames (of the drawn middle: "
        f"{np.mean(best):.1%}); centre at most {max(off):.1f} mm off; flagged {flagged}",
    )


def score_empty(frames: Frames, weights: Mapping[str, Weights]) -> None:
    """How often nothing is found where nothing is: frames alone, and all of a patient together."""
    alone: dict[str, list[bool]] = {}
    together: dict[str, list[bool]] = {}
    for patient in np.unique(frames.patient):
        of = frames.of([patient])
        for kind, images in empty_cuts(of.image, np.asarray(of.cavity.any(axis=0))):
            maps = np.stack([probability(one[None], _PIXEL, weights[patient]) for one in images])
            together.setdefault(kind, []).append(unsure(maps))
            alone.setdefault(kind, []).extend(unsure(one[None]) for one in maps)
    rng = np.random.default_rng(1)
    networks = list(weights.values())
    for kind in ("texture", "noise", "constant"):
        for i in range(100):
            image = artificial(kind, rng)
            maps = cavity_probability(networks[i % len(networks)], image[None])[None]
            alone.setdefault(kind, []).append(unsure(maps))
    for kind, flagged in alone.items():
        text = f"{np.mean(flagged):.1%} of {len(flagged)} frames alone"
        if kind in together:
            text += f", {np.mean(together[kind]):.1%} of {len(together[kind])} patients"
        row(f"  {kind}", text)


def unsure(maps: np.ndarray) -> bool:
    """Whether maps ``[slices, frames, h, w]`` are flagged."""
    return joint_centre(maps)[1] < MIN_CONFIDENCE


def score_cine(samples: Path, networks: Sequence[Weights | None], folds: Mapping[str, int]) -> None:
    """Whole cine: the stacks and each slice alone, with the motion beside it."""
    print(
        "\nWhole cine: distance from the contours' centre, and from the contours to the crop's edge"
    )
    for name, slices in read_cine(samples).items():
        weights = networks[folds[PATIENT_OF[name.split()[0]]]]
        if weights is None:
            continue
        drawn = [(one, Drawn(*bounds(region))) for one, region in slices if region is not None]
        if len(slices) > 1:
            bare = [one for one, _ in slices]
            found, motion = locate(bare, weights), heart_centre(bare)
            report(f"{name}, stack", [(*one, found, motion) for one in drawn])
        alone = [(*one, locate([one[0]], weights), heart_centre([one[0]])) for one in drawn]
        report(f"{name}, slices alone", alone)


def report(name: str, scored: Sequence[tuple[CineSlice, Drawn, Found, np.ndarray]]) -> None:
    """Two lines: locator and motion."""
    least = min(found.confidence for *_, found, _ in scored)
    for by, centres, more in (
        ("locator", [found.centre for *_, found, _ in scored], f", confidence {least:.2f}"),
        ("motion", [motion for *_, motion in scored], ""),
    ):
        pairs = [(one, box, c) for (one, box, *_), c in zip(scored, centres, strict=True)]
        off = [box.off(centre, one) for one, box, centre in pairs]
        spare = min(box.spare(centre, one, _CROP_MM) for one, box, centre in pairs)
        text = f"median {np.median(off):.1f} mm, at most {max(off):.1f} mm; {spare:.0f} mm to spare"
        row(f"{name} ({len(off)}), {by}", text + more)


def score_time(weights: Weights) -> None:
    """One slice of 30 frames of 256x256, on one thread."""
    cine = np.random.default_rng(0).integers(0, 999, (30, 256, 256)).astype(np.int16)
    one = CineSlice(
        case_id="a", patient_id="a", slice_index=0, source="a", cine=cine, pixel_mm=(1.35, 1.35)
    )
    locate([one], weights)
    started = time.process_time()
    for _ in range(5):
        locate([one], weights)
    each = (time.process_time() - started) / 5
    row(f"one slice, {FRAMES} of its 30 frames", f"{1000 * each:.0f} ms of CPU time")
    started = time.process_time()
    cavity_probability(weights, np.zeros((30, SIDE, SIDE), np.float32))
    row("30 frames of 96x96", f"{1000 * (time.process_time() - started):.0f} ms of CPU time")


def row(name: str, text: str) -> None:
    """One line of the table."""
    print(f"{name:44} {text}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="lv_cavity.npz")
    parser.add_argument("--weights", type=Path, required=True, help="folder of foldN.safetensors")
    parser.add_argument("--samples", type=Path, help="folder with dicom/ and short_axis_cine.npz")
    parser.add_argument("--every", type=int, default=1, help="take every nth frame only")
    args = parser.parse_args()
    networks: list[Weights | None] = []
    for i in range(FOLDS):
        path = args.weights / f"fold{i}.safetensors"
        loaded = safetensors.numpy.load_file(path) if path.is_file() else None
        networks.append(loaded and {k: v.astype(np.float32) for k, v in loaded.items()})
    frames = read_sunnybrook(args.data)
    folds = fold_of(list(frames.patient))
    weights = {p: known for p, fold in folds.items() if (known := networks[fold]) is not None}
    number = np.load(args.data)["number"][np.isin(frames.patient, list(weights))]
    frames = frames.of(list(weights))
    few = Frames(*(getattr(frames, k)[:: args.every] for k in Frames.__dataclass_fields__))
    print(f"{len(weights)} patients, {len(frames.image)} frames, unseen by their network")
    score_frames(frames, weights)
    score_area(frames, number, weights)
    score_stacks(frames, weights)
    print(f"\nOver 15 mm off or none, after a change, {len(few.image)} frames")
    row("  as they are", f"{gross_rate(few, weights, lambda image: image):.1%}")
    for name, change in changes().items():
        row(f"  {name}", f"{gross_rate(few, weights, change):.1%}")
    print("\nFlagged, where there is nothing to find")
    score_empty(few, weights)
    if args.samples:
        score_cine(args.samples, networks, folds)
    print()
    score_time(next(iter(weights.values())))


if __name__ == "__main__":
    main()
