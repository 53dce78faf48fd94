"""Integrity of a cohort or a source: what is there, and what looks wrong with it.

One pass over the clips; kept of each are names and a hash, never pixels, and of the first thousand
how they were read.
"""

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_fill_holes, convolve

from mvo_jax.data.accounting import Reading
from mvo_jax.data.labels import (
    BACKGROUND,
    CAVITY,
    INFARCT,
    LABEL_NAMES,
    MVO,
    MYOCARDIUM,
    UNLABELLED,
    WALL,
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
_UNLABELLED_SPLIT = LABEL_NAMES[UNLABELLED]  # neither trained nor evaluated on


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that looks wrong.

    Attributes:
        check: name of the check.
        is_fault: must be corrected before training; otherwise worth a look.
        cause: one line.
        remedy: one line.
        cases: some of the cases concerned.
        count: how many there are.
    """

    check: str
    is_fault: bool
    cause: str
    remedy: str
    cases: tuple[str, ...] = ()
    count: int = 0


@dataclasses.dataclass(frozen=True)
class Decision:
    """How a slice was read: all that was decided without asking.

    Attributes:
        case_id: of the slice.
        patient_id: of the slice.
        images: what became of its images; empty of formats with one cine a file.
        axes: how the stored axes are shown; empty where nobody knows.
        drawn_on: slices of the LGE that its mask is from.
        centre_from: what placed the crop, and the locator's confidence where it was asked.
        label: in words.
        note: what was left out or taken for granted.
    """

    case_id: str
    patient_id: str
    images: str
    axes: str
    drawn_on: str
    centre_from: str
    label: str
    note: str


@dataclasses.dataclass
class SplitCount:
    """What one split holds."""

    cases: int = 0
    positive: int = 0
    negative: int = 0
    unknown: int = 0
    patients: set[str] = dataclasses.field(default_factory=set)
    positive_patients: set[str] = dataclasses.field(default_factory=set)


class Inspection:
    """Collects clips one by one; ``findings`` says what is wrong with them together."""

    def __init__(self):
        self.splits: dict[str, SplitCount] = {}
        self.shapes: Counter[tuple[int, ...]] = Counter()
        self.source_frames: Counter[int] = Counter()
        self.spacings: Counter[str] = Counter()
        self.placed: Counter[str] = Counter()
        self.rejected: list[Rejected] = []
        self.decisions: list[Decision] = []
        self.reading = Reading()
        self._splits_of: dict[str, set[str]] = defaultdict(set)
        self._by_pixels: dict[str, str] = {}
        self._by_id: dict[str, str] = {}
        self._found: dict[str, list[str]] = defaultdict(list)
        self._rings = self._wrong_rings = 0

    def add(self, clip: Clip) -> list[str]:
        """Take a clip in.

        Returns:
            What is wrong with this clip alone or with one seen before it; empty if nothing.
        """
        split = clip.split or "source"
        self._count(clip, split)
        self.reading.add(clip.case_id, clip.note, clip.images)
        if len(self.decisions) < MOST_DECISIONS:
            self.decisions.append(_decision(clip))
        self._splits_of[clip.patient_id].add(split)
        wrong = [*self._repeated(clip, split), *_faults(clip)]
        self._ring(clip, wrong)
        if clip.centre_from is not None:
            self.placed[clip.centre_from] += 1
        if clip.needs_review:
            self._found[_MOTION].append(clip.case_id)
        where = f"{clip.case_id} ({clip.split})" if clip.split else clip.case_id
        for name, detail in wrong:
            self._found[name].append(f"{where}{detail}")
        return [f"{name}{detail}" for name, detail in wrong]

    def add_rejected(self, one: Rejected) -> None:
        """Take in what could not be read or prepared."""
        self.rejected.append(one)
        self.reading.add_rejected([one])

    def _count(self, clip: Clip, split: str) -> None:
        count = self.splits.setdefault(split, SplitCount())
        count.cases += 1
        count.positive += clip.label == 1
        count.negative += clip.label == 0
        count.unknown += clip.label == UNLABELLED
        count.patients.add(clip.patient_id)
        if clip.label == 1:
            count.positive_patients.add(clip.patient_id)
        self.shapes[clip.video.shape] += 1
        self.source_frames[clip.source_frames] += 1
        self.spacings["unknown" if clip.spacing_mm is None else f"{clip.spacing_mm:.3g}"] += 1

    def _repeated(self, clip: Clip, split: str) -> list[tuple[str, str]]:
        wrong = []
        stored = np.ascontiguousarray(clip.video).data
        digest = clip.source_pixels or hashlib.sha256(stored).hexdigest()[:32]
        where = f"{clip.case_id} ({split})"
        if digest in self._by_pixels:
            wrong.append(("same pixels as another case", f" = {self._by_pixels[digest]}"))
        if clip.case_id in self._by_id:
            wrong.append(("same case id as another case", f" = {self._by_id[clip.case_id]}"))
        self._by_pixels.setdefault(digest, where)
        self._by_id.setdefault(clip.case_id, where)
        return wrong

    def _ring(self, clip: Clip, wrong: list[tuple[str, str]]) -> None:
        """What the myocardium encloses must be the cavity of the left ventricle."""
        for mask in clip.anatomy.values():
            wall = mask == WALL
            hole = np.asarray(binary_fill_holes(wall)) & ~wall
            if hole.any():
                self._rings += 1
                if (mask[hole] == CAVITY).mean() < 0.5:
                    self._wrong_rings += 1
                    if not any(name == _RING for name, _ in wrong):
                        wrong.append((_RING, ""))

    def findings(self) -> list[Finding]:
        """Everything that looks wrong, faults first."""
        found = [*self._patients_in_two_splits(), *self._patients_alike()]
        found += [*self._one_class(), *self._rejections()]
        for name, (is_fault, cause, remedy) in _CHECKS.items():
            found += _finding(name, is_fault, cause, remedy, self._found.get(name, []))
        found += [*self._ring_findings(), *self._mixture()]
        return sorted(found, key=lambda finding: not finding.is_fault)

    def _patients_in_two_splits(self) -> list[Finding]:
        shared = [
            f"{patient} ({', '.join(sorted(splits))})"
            for patient, splits in sorted(self._splits_of.items())
            if len(splits - {_UNLABELLED_SPLIT}) > 1
        ]
        return _finding(
            "patient in two splits",
            True,
            f"{len(shared)} patients have slices in more than one split",
            "divide by patient: check the column patient_id, prepare again",
            shared,
        )

    def _patients_alike(self) -> list[Finding]:
        alike = [
            " and ".join(f"{one} ({', '.join(sorted(self._splits_of[one]))})" for one in group)
            for group in spelt_alike(self._splits_of)
        ]
        return _finding("patients spelt alike", False, ALIKE, ALIKE_REMEDY, alike)

    def _one_class(self) -> list[Finding]:
        return [
            Finding(
                "one class in a split",
                True,
                f"all {count.cases} cases of {name} have the label "
                f"'{LABEL_NAMES[int(count.positive > 0)]}'",
                "AUC is not defined there: divide again, stratified, or add cases",
                count=count.cases,
            )
            for name, count in self.splits.items()
            if name != "source" and not count.unknown and 0 in (count.positive, count.negative)
        ]

    def _rejections(self) -> list[Finding]:
        return _finding(
            "cannot be read or prepared",
            True,
            f"{len(self.rejected)} cases cannot be read or prepared",
            self.rejected[0].remedy if self.rejected else "",
            [f"{one.case_id}: {one.cause}" for one in self.rejected],
        )

    def _ring_findings(self) -> list[Finding]:
        reversed_map = 2 * self._wrong_rings > self._rings
        return _finding(
            _RING,
            reversed_map,
            f"in {self._wrong_rings} of {self._rings} annotated frames the myocardium encloses "
            "something that is not called the cavity",
            "the labels of the two ventricles look exchanged (ACDC: 1 right, 3 left; M&Ms: "
            "1 left, 3 right): name the layout with --format"
            if reversed_map
            else "look at these contours",
            self._found.get(_RING, []),
        )

    def _mixture(self) -> list[Finding]:
        found = []
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
                found.append(Finding(name, is_fault, listed, remedy, count=sum(counts.values())))
        if unknown := self.spacings.get("unknown"):
            cause = f"{unknown} cases do not say how large a pixel is"
            remedy = "give --pixel_mm if it is known"
            found.append(Finding("no spacing", False, cause, remedy, count=unknown))
        return found


def _placed_by(clip: Clip) -> str:
    sure = "" if clip.confidence is None else f" (confidence {clip.confidence:.2f})"
    return f"{clip.centre_from or ''}{sure}"


def _decision(clip: Clip) -> Decision:
    others = sorted(clip.images.items(), key=lambda item: (item[0] != "used", item[0]))
    return Decision(
        case_id=clip.case_id,
        patient_id=clip.patient_id,
        images=", ".join(f"{n} {what}" for what, n in others if n),
        axes="" if clip.grid is None else str(clip.grid),
        drawn_on=clip.drawn_on,
        centre_from=_placed_by(clip),
        label=LABEL_NAMES[clip.label],
        note=clip.note,
    )


def _finding(
    name: str, is_fault: bool, cause: str, remedy: str, cases: Sequence[str]
) -> list[Finding]:
    """What is wrong with some cases; nothing where there are none."""
    named = tuple(cases[:_CASES_NAMED])
    return [Finding(name, is_fault, cause, remedy, named, len(cases))] if cases else []


_RING = "myocardium does not enclose the cavity"
_MOTION = "crop to review"

# name -> (is a fault, cause, remedy)
_CHECKS = {
    "same case id as another case": (
        True,
        "case ids are not unique",
        "give every slice an id of its own",
    ),
    "same pixels as another case": (
        True,
        "the same images go under two ids",
        "keep one of them; in two splits they make results look better than they are",
    ),
    "label without MVO in the mask": (
        True,
        "the label says MVO, the LGE mask has none",
        "correct the label or the mask",
    ),
    "MVO in the mask without label": (
        True,
        "the label says no MVO, the LGE mask has some",
        "correct the label or the mask",
    ),
    "unexpected mask values": (
        True,
        "LGE masks have values above 3",
        "say what the values mean with --mask_values and prepare again",
    ),
    "constant image": (
        True,
        "clips or single frames are one constant grey",
        "export the images again or leave the case out",
    ),
    "no motion": (
        True,
        "all frames of a clip are the same",
        "this is a single image, not a cine: leave it out",
    ),
    "MVO outside the myocardium": (
        True,
        "MVO touches neither infarct nor myocardium",
        "the values of the mask look exchanged: check --mask_values",
    ),
    _MOTION: (
        False,
        "no mask, contours or given centre, and the locator is not sure where the left ventricle "
        "is: these crops were placed by what moves, an estimate",
        "look at all of these crops; give the centre in a table where one misses the ventricle",
    ),
    "mask touches the edge of the crop": (
        False,
        "the myocardium may be cut off",
        "look at these crops; give their centres in the table if the heart is not in the middle",
    ),
}


def _faults(clip: Clip) -> list[tuple[str, str]]:
    """What is wrong with one clip: (name in ``_CHECKS``, detail)."""
    wrong = []
    frames = clip.video.reshape(len(clip.video), -1)
    constant = np.flatnonzero(frames.min(axis=1) == frames.max(axis=1))
    if constant.size:
        everywhere = constant.size == len(frames)
        wrong.append(("constant image", "" if everywhere else f" frame {constant[0]}"))
    elif (frames == frames[0]).all():
        wrong.append(("no motion", ""))
    mask = clip.lge_mask
    has_mvo = mask is not None and bool((mask == MVO).any())
    if clip.label == 1 and not has_mvo:
        wrong.append(("label without MVO in the mask", ""))
    if clip.label == 0 and has_mvo:
        wrong.append(("MVO in the mask without label", ""))
    if mask is None:
        return wrong
    if mask.max() > MYOCARDIUM:
        wrong.append(("unexpected mask values", f" {sorted(set(np.unique(mask).tolist()))}"))
    edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if (edge != BACKGROUND).any():
        wrong.append(("mask touches the edge of the crop", ""))
    wall = np.isin(mask, (INFARCT, MYOCARDIUM))
    if has_mvo and wall.any():
        beside = convolve((mask == MVO).astype(int), _BESIDE, mode="constant") * (mask != MVO)
        if beside[mask == BACKGROUND].sum() > _OUTSIDE * beside.sum():
            wrong.append(("MVO outside the myocardium", ""))
    return wrong
