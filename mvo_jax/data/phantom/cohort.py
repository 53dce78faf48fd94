"""Named cohort sizes, and which patient is in which split with which label.

Every split owns a range of patient indices that no other split, of any cohort size, can reach.
Sizes that differ from ``paper`` in their training patients alone hold only these: their other
splits are those of ``paper``, so that a study over sizes scores all rows on the same cases.
"""

import dataclasses
from typing import NamedTuple

from mvo_jax.data.phantom.case import MISREGISTRATION_MM, CaseKey
from mvo_jax.data.phantom.draws import Draws
from mvo_jax.data.phantom.patient import PRESETS
from mvo_jax.errors import UserError

MIN_FRAMES, MIN_IMAGE_SIZE = 8, 32
MOST = 1024  # frames, or pixels of a side: more is a slip of the keyboard
MAX_SLICES = 9  # 10 mm apart, more would leave the ventricle
MAX_MISREGISTRATION_MM = 10.0  # the shift is cut at 25 mm then, and the heart stays in the image

_FIRST_PATIENT = {
    "train": 0,
    "validation": 100_000,
    "test": 200_000,
    "test_large": 300_000,
    "validation_large": 400_000,
}


class SplitSize(NamedTuple):
    """How many patients a split has, and how many of them have MVO."""

    patients: int
    positive: int


_SIZES = {
    # Yan et al.: 550 patients to train (221 with MVO), 130 to test (44). One in five of the 550
    # is kept for validation. test_large exists because 130 cases tell few methods apart.
    "paper": dict(train=(440, 177), validation=(110, 44), test=(130, 44), test_large=(1000, 338)),
    "demo": dict(train=(960, 384), validation=(160, 64), test=(240, 96)),
    "tiny": dict(train=(16, 8), validation=(8, 4), test=(8, 4)),
    "small": dict(train=(240, 96), validation=(60, 24), test=(80, 32)),
    # To choose between systems before test_large is scored once. A size of its own, because
    # another split in ``paper`` would change the cohorts that are stored.
    "choice": dict(validation_large=(1000, 338)),
    # The share of MVO is that of the 440.
    "patients110": dict(train=(110, 44)),
    "patients220": dict(train=(220, 89)),
    "patients1760": dict(train=(1760, 708)),
    "patients7040": dict(train=(7040, 2832)),
}
SIZES: dict[str, dict[str, SplitSize]] = {
    size: {split: SplitSize(*counts) for split, counts in splits.items()}
    for size, splits in _SIZES.items()
}

_HELD_OUT = ("validation", "test", "test_large")
# Size -> the size that holds a split which the size itself does not.
_ELSEWHERE: dict[str, dict[str, str]] = {
    "paper": {"validation_large": "choice"},
    **{
        size: {**dict.fromkeys(_HELD_OUT, "paper"), "validation_large": "choice"}
        for size in SIZES
        if size.startswith("patients")
    },
}


@dataclasses.dataclass(frozen=True)
class CohortSpec:
    """All that decides the bytes of a cohort.

    Raises:
        UserError: a name is unknown or a number out of range.
    """

    preset: str  # a name in PRESETS
    seed: int  # of every random number
    size: str  # a name in SIZES
    frames: int = 30  # a cine
    image_size: int = 64  # pixels along each side
    slices_per_patient: int = 1  # all carry the patient's label
    misregistration_mm: float = MISREGISTRATION_MM  # see ``draw_acquisition``

    def __post_init__(self):
        for key, known in (("preset", PRESETS), ("size", SIZES)):
            value = getattr(self, key)
            if value not in known:
                raise UserError(
                    f"data.{key} is {value!r}, which the simulated cohort does not have.",
                    f"Set data.{key} to one of: {', '.join(known)}.",
                )
        for key, least, most in (
            ("seed", 0, 2**32 - 1),
            ("frames", MIN_FRAMES, MOST),
            ("image_size", MIN_IMAGE_SIZE, MOST),
            ("slices_per_patient", 1, MAX_SLICES),
            ("misregistration_mm", 0, MAX_MISREGISTRATION_MM),
        ):
            value = getattr(self, key)
            kind = "" if key == "misregistration_mm" else "an integer of "
            whole = isinstance(value, int) and not isinstance(value, bool)
            if (kind and not whole) or not least <= value <= most:  # nan is not either
                raise UserError(
                    f"data.{key} is {value!r}, which the simulated cohort cannot have.",
                    f"Set data.{key} to {kind}{least} to {most:.10g}.",
                )

    @property
    def name(self) -> str:
        """Name of the cohort, fit for a folder."""
        name = (
            f"{self.preset}_{self.size}_seed{self.seed}_frames{self.frames}"
            f"_pixels{self.image_size}_slices{self.slices_per_patient}"
        )
        if self.misregistration_mm == MISREGISTRATION_MM:
            return name  # as it was before there was a choice
        return f"{name}_misregistration{float(self.misregistration_mm)}"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that are stored with this size."""
        return tuple(SIZES[self.size])

    def holding(self, split: str) -> "CohortSpec":
        """The cohort that holds a split: this one, or the one whose split all sizes share.

        Raises:
            UserError: there is no such split for this size.
        """
        elsewhere = _ELSEWHERE.get(self.size, {})
        if split in elsewhere:
            return dataclasses.replace(self, size=elsewhere[split])
        if split not in SIZES[self.size]:
            raise UserError(
                f"Cohort size {self.size!r} has no split {split!r}.",
                f"Use one of: {', '.join([*self.splits, *elsewhere])}.",
            )
        return self

    @property
    def cases(self) -> int:
        """Cases in all splits together."""
        return self.slices_per_patient * sum(s.patients for s in SIZES[self.size].values())

    def split_size(self, split: str) -> SplitSize:
        """Patients of a split, wherever it is held, see ``holding``."""
        return SIZES[self.holding(split).size][split]

    def keys(self, split: str) -> list[CaseKey]:
        """Cases of a split, by patient and slice, wherever it is held, see ``holding``.

        Exactly the right number have MVO.
        """
        held = self.holding(split).size
        size = SIZES[held][split]
        order = Draws(self.seed, "labels", held, split).permutation(size.patients)
        positive = set(order[: size.positive].tolist())
        return [
            CaseKey(
                preset=self.preset,
                seed=self.seed,
                patient=_FIRST_PATIENT[split] + i,
                slice_index=s,
                slices=self.slices_per_patient,
                mvo=i in positive,
                misregistration_mm=float(self.misregistration_mm),
            )
            for i in range(size.patients)
            for s in range(self.slices_per_patient)
        ]
