"""Integrity of a cohort or a source: what is there, and what looks wrong with it.

One pass over the clips; kept of each are names and a hash, never pixels, and of the first thousand
how they were read.
"""

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import binary_fill_holes, convolve

from mvo_jax.data.accounting import Reading
from mvo_jax.data.cohort.partition import split_order
from mvo_jax.data.labels import (
    BACKGROUND,
    CAVITY,
    INFARCT,
    LABEL_NAMES,
    MVO,
    MYOCARDIUM,
    UNLABELLED,
    WALL,
    has_mvo,
)
from mvo_jax.data.names import spelt_alike
from mvo_jax.data.slices import Clip, Rejected

_BESIDE = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
_OUTSIDE = 0.9  # share of the MVO's edge on background; subendocardial MVO borders the cavity
_CASES_NAMED = 20
MOST_DECISIONS = 1000
ALIKE = "names of patients differ in capital letters, spaces or Unicode form only"
ALIKE_REMEDY = (
    "if they are one patient, whose slices may now be in two splits, give one patient_id in a table"
)
_NO_SPLIT = "source"
_UNLABELLED_SPLIT = LABEL_NAMES[UNLABELLED]  # neither trained nor evaluated on


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that looks wrong."""

    check: str
    is_fault: bool  # must be corrected before training; otherwise worth a look
    cause: str
    remedy: str
    cases: tuple[str, ...] = ()  # some of those concerned
    count: int = 0  # of all concerned


class Inspection:
    """Collects clips one by one; ``findings`` says what is wrong with them together."""

    def __init__(self):
        # Split -> patient -> how many slices have which label.
        self.labels: dict[str, dict[str, Counter[int]]] = defaultdict(lambda: defaultdict(Counter))
        self.shapes: Counter[tuple[int, ...]] = Counter()
        self.source_frames: Counter[int] = Counter()
        self.spacings: Counter[str] = Counter()
        self.placed: Counter[str] = Counter()
        self.rejected: list[Rejected] = []  # what could not be read or prepared
        self.decisions: list[dict[str, str]] = []  # of the first slices: how they were read
        self.reading = Reading()
        self._by_pixels: dict[str, str] = {}
        self._by_id: dict[str, str] = {}
        self._found: dict[str, list[str]] = defaultdict(list)
        self._rings = self._wrong_rings = 0

    def add(self, clip: Clip) -> list[str]:
        """Take a clip in; what is wrong with it alone or with one seen before it."""
        split = clip.split or _NO_SPLIT
        self.labels[split][clip.patient_id][clip.label] += 1
        self.shapes[clip.video.shape] += 1
        self.source_frames[clip.source_frames] += 1
        self.spacings["unknown" if clip.spacing_mm is None else f"{clip.spacing_mm:.3g}"] += 1
        self.reading.add(clip.case_id, clip.note, clip.images)
        if len(self.decisions) < MOST_DECISIONS:
            self.decisions.append(_decision(clip))
        if clip.centre_from is not None:
            self.placed[clip.centre_from] += 1
        if clip.needs_review:
            self._found[_MOTION].append(clip.case_id)
        where = f"{clip.case_id} ({clip.split})" if clip.split else clip.case_id
        wrong = [*self._repeated(clip, split), *_faults(clip), *self._ring(clip)]
        for name, detail in wrong:
            self._found[name].append(f"{where}{detail}")
        return [f"{name}{detail}" for name, detail in wrong]

    def add_rejected(self, one: Rejected) -> None:
        """Take in what could not be read or prepared."""
        self.rejected.append(one)
        self.reading.add_rejected([one])

    def table(self) -> list[dict[str, Any]]:
        """One row a split: its name, and how many cases and patients it has by label."""
        rows = []
        for split in sorted(self.labels, key=split_order):
            patients = self.labels[split].values()
            labels = sum(patients, Counter())
            row = {"split": split, "cases": labels.total(), "patients": len(patients)}
            row |= {"positive": labels[1], "negative": labels[0], "unknown": labels[UNLABELLED]}
            row["positive_patients"] = sum(1 in of_patient for of_patient in patients)
            rows.append(row)
        return rows

    def _repeated(self, clip: Clip, split: str) -> Iterator[tuple[str, str]]:
        stored = np.ascontiguousarray(clip.video).data
        digest = clip.source_pixels or hashlib.sha256(stored).hexdigest()[:32]
        where = f"{clip.case_id} ({split})"
        for what, key, seen in (
            ("pixels", digest, self._by_pixels),
            ("case id", clip.case_id, self._by_id),
        ):
            if seen.setdefault(key, where) is not where:
                yield f"same {what} as another case", f" = {seen[key]}"

    def _ring(self, clip: Clip) -> Iterator[tuple[str, str]]:
        """What the myocardium encloses must be the cavity of the left ventricle."""
        walls = [(mask, mask == WALL) for mask in clip.anatomy.values()]
        within = [mask[np.asarray(binary_fill_holes(wall)) & ~wall] for mask, wall in walls]
        wrong = [(inside == CAVITY).mean() < 0.5 for inside in within if inside.size]
        self._rings += len(wrong)
        self._wrong_rings += sum(wrong)
        if any(wrong):
            yield _RING, ""

    def findings(self) -> list[Finding]:
        """Everything that looks wrong, faults first."""
        splits_of: dict[str, list[str]] = defaultdict(list)
        for split in sorted(self.labels):
            for patient in self.labels[split]:
                splits_of[patient].append(split)
        named = {patient: f"{patient} ({', '.join(names)})" for patient, names in splits_of.items()}
        shared = [p for p in sorted(splits_of) if len({*splits_of[p]} - {_UNLABELLED_SPLIT}) > 1]
        reversed_map = 2 * self._wrong_rings > self._rings
        found = [
            _finding(
                "patient in two splits",
                True,
                f"{len(shared)} patients have slices in more than one split",
                "divide by patient: check the column patient_id, prepare again",
                [named[patient] for patient in shared],
            ),
            _finding(
                "patients spelt alike",
                False,
                ALIKE,
                ALIKE_REMEDY,
                [" and ".join(map(named.__getitem__, group)) for group in spelt_alike(splits_of)],
            ),
            *self._one_class(),
            _finding(
                "cannot be read or prepared",
                True,
                f"{len(self.rejected)} cases cannot be read or prepared",
                self.rejected[0].remedy if self.rejected else "",
                [f"{one.case_id}: {one.cause}" for one in self.rejected],
            ),
            *(_finding(name, *about, self._found[name]) for name, about in _CHECKS.items()),
            _finding(
                _RING,
                reversed_map,
                f"in {self._wrong_rings} of {self._rings} annotated frames the myocardium encloses "
                "something that is not called the cavity",
                "the labels of the two ventricles look exchanged (ACDC: 1 right, 3 left; M&Ms: "
                "1 left, 3 right): name the layout with --format"
                if reversed_map
                else "look at these contours",
                self._found[_RING],
            ),
            *self._mixture(),
        ]
        return sorted(filter(lambda one: one.count, found), key=lambda one: not one.is_fault)

    def _one_class(self) -> Iterator[Finding]:
        for row in self.table():
            name, one_class = row["split"], 0 in (row["positive"], row["negative"])
            if name != _NO_SPLIT and not row["unknown"] and one_class:
                yield Finding(
                    "one class in a split",
                    True,
                    f"all {row['cases']} cases of {name} have the label "
                    f"'{LABEL_NAMES[int(row['positive'] > 0)]}'",
                    "AUC is not defined there: divide again, stratified, or add cases",
                    count=row["cases"],
                )

    def _mixture(self) -> Iterator[Finding]:
        for name, is_fault, counts, remedy in (
            ("clips of several shapes", True, self.shapes, "prepare all with the same settings"),
            (
                "several frame counts",
                False,
                self.source_frames,
                "frames are interpolated to one number; check that all are whole heart beats",
            ),
            ("several spacings", False, self.spacings, "check the pixel spacing of the rare ones"),
        ):
            if len(counts) > 1:
                listed = ", ".join(f"{key}: {n}" for key, n in counts.most_common(6))
                yield Finding(name, is_fault, listed, remedy, count=counts.total())
        if unknown := self.spacings["unknown"]:
            cause = f"{unknown} cases do not say how large a pixel is"
            yield Finding("no spacing", False, cause, "give --pixel_mm if it is known", (), unknown)


def _decision(clip: Clip) -> dict[str, str]:
    """How a slice was read; a text is empty where there is nothing to say."""
    others = sorted(clip.images.items(), key=lambda item: (item[0] != "used", item[0]))
    sure = "" if clip.confidence is None else f" (confidence {clip.confidence:.2f})"
    return {
        "case_id": clip.case_id,
        "patient_id": clip.patient_id,
        "images": ", ".join(f"{n} {what}" for what, n in others if n),
        "axes": "" if clip.grid is None else str(clip.grid),
        "drawn_on": clip.drawn_on,
        "centre_from": f"{clip.centre_from or ''}{sure}",
        "label": LABEL_NAMES[clip.label],
        "note": clip.note,
    }


def _finding(name: str, is_fault: bool, cause: str, remedy: str, cases: Sequence[str]) -> Finding:
    """What is wrong with some cases, perhaps none."""
    return Finding(name, is_fault, cause, remedy, tuple(cases[:_CASES_NAMED]), len(cases))


_RING = "myocardium does not enclose the cavity"
_MOTION = "crop to review"


class _Check(NamedTuple):
    is_fault: bool
    cause: str
    remedy: str


_CHECKS = {
    "same case id as another case": _Check(
        True, "case ids are not unique", "give every slice an id of its own"
    ),
    "same pixels as another case": _Check(
        True,
        "the same images go under two ids",
        "keep one of them; in two splits they make results look better than they are",
    ),
    "label without MVO in the mask": _Check(
        True, "the label says MVO, the LGE mask has none", "correct the label or the mask"
    ),
    "MVO in the mask without label": _Check(
        True, "the label says no MVO, the LGE mask has some", "correct the label or the mask"
    ),
    "unexpected mask values": _Check(
        True,
        "LGE masks have values above 3",
        "say what the values mean with --mask_values and prepare again",
    ),
    "constant image": _Check(
        True,
        "clips or single frames are one constant grey",
        "export the images again or leave the case out",
    ),
    "no motion": _Check(
        True,
        "all frames of a clip are the same",
        "this is a single image, not a cine: leave it out",
    ),
    "MVO outside the myocardium": _Check(
        True,
        "MVO touches neither infarct nor myocardium",
        "the values of the mask look exchanged: check --mask_values",
    ),
    _MOTION: _Check(
        False,
        "no mask, contours or given centre, and the locator is not sure where the left ventricle "
        "is: these crops were placed by what moves, an estimate",
        "look at all of these crops; give the centre in a table where one misses the ventricle",
    ),
    "mask touches the edge of the crop": _Check(
        False,
        "the myocardium may be cut off",
        "look at these crops; give their centres in the table if the heart is not in the middle",
    ),
}


def _faults(clip: Clip) -> Iterator[tuple[str, str]]:
    """What is wrong with one clip: (name in ``_CHECKS``, detail)."""
    frames, mask = clip.video.reshape(len(clip.video), -1), clip.lge_mask
    constant = np.flatnonzero(frames.min(axis=1) == frames.max(axis=1))
    if constant.size:
        yield "constant image", "" if constant.size == len(frames) else f" frame {constant[0]}"
    elif (frames == frames[0]).all():
        yield "no motion", ""
    drawn = mask is not None and has_mvo(mask)
    if clip.label == 1 and not drawn:
        yield "label without MVO in the mask", ""
    if clip.label == 0 and drawn:
        yield "MVO in the mask without label", ""
    if mask is None:
        return
    if mask.max() > MYOCARDIUM:
        yield "unexpected mask values", f" {sorted(set(np.unique(mask).tolist()))}"
    edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if (edge != BACKGROUND).any():
        yield "mask touches the edge of the crop", ""
    if drawn and np.isin(mask, (INFARCT, MYOCARDIUM)).any():
        beside = convolve((mask == MVO).astype(int), _BESIDE, mode="constant") * (mask != MVO)
        if beside[mask == BACKGROUND].sum() > _OUTSIDE * beside.sum():
            yield "MVO outside the myocardium", ""
