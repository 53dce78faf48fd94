"""Named cohort sizes, and which patient is in which split with which label.

Every split owns a range of patient indices that no other split, of any cohort size, can reach.
"""

import dataclasses

from mvo_jax.data.phantom.case import CaseKey
from mvo_jax.data.phantom.draws import Draws
from mvo_jax.data.phantom.patient import PRESETS
from mvo_jax.errors import UserError

MIN_FRAMES, MIN_IMAGE_SIZE = 8, 32
MAX_SLICES = 9  # 10 mm apart, more would leave the ventricle

_FIRST_PATIENT = {"train": 0, "validation": 100_000, "test": 200_000, "test_large": 300_000}


@dataclasses.dataclass(frozen=True)
class SplitSize:
    """How many patients a split has, and how many of them have MVO."""

    patients: int
    positive: int


SIZES: dict[str, dict[str, SplitSize]] = {
    # Yan et al.: 550 patients to train (221 with MVO), 130 to test (44). One in five of the 550
    # is kept for validation. test_large exists because 130 cases tell few methods apart.
    "paper": {
        "train": SplitSize(440, 177),
        "validation": SplitSize(110, 44),
        "test": SplitSize(130, 44),
        "test_large": SplitSize(1000, 338),
    },
    "demo": {
        "train": SplitSize(960, 384),
        "validation": SplitSize(160, 64),
        "test": SplitSize(240, 96),
    },
    "tiny": {
        "train": SplitSize(16, 8),
        "validation": SplitSize(8, 4),
        "test": SplitSize(8, 4),
    },
}


@dataclasses.dataclass(frozen=True)
class CohortSpec:
    """All that decides the bytes of a cohort.

    Args:
        preset: ``easy``, ``paper`` or ``null``.
        seed: of every random number.
        size: a name in SIZES.
        frames: frames a cine, at least 8.
        image_size: pixels along each side, at least 32.
        slices_per_patient: slices of each patient, 1 to 9; all carry the patient's label.

    Raises:
        UserError: a name is unknown or a number out of range.
    """

    preset: str
    seed: int
    size: str
    frames: int = 30
    image_size: int = 64
    slices_per_patient: int = 1

    def __post_init__(self):
        for key, known in (("preset", PRESETS), ("size", SIZES)):
            value = getattr(self, key)
            if value not in known:
                raise UserError(
                    f"data.{key} is {value!r}, which the simulated cohort does not have.",
                    f"Set data.{key} to one of: {', '.join(known)}.",
                )
        for key, least in (
            ("seed", 0),
            ("frames", MIN_FRAMES),
            ("image_size", MIN_IMAGE_SIZE),
            ("slices_per_patient", 1),
        ):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(
                    f"data.{key} is {value!r}; the simulated cohort needs an integer of at least "
                    f"{least}.",
                    f"Set data.{key} to {least} or more.",
                )
        if self.slices_per_patient > MAX_SLICES:
            raise UserError(
                f"data.slices_per_patient is {self.slices_per_patient}; a simulated ventricle has "
                f"room for {MAX_SLICES} slices.",
                f"Set data.slices_per_patient to {MAX_SLICES} or less.",
            )

    @property
    def name(self) -> str:
        """Name of the cohort, fit for a folder."""
        return (
            f"{self.preset}_{self.size}_seed{self.seed}_frames{self.frames}"
            f"_pixels{self.image_size}_slices{self.slices_per_patient}"
        )

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(SIZES[self.size])

    @property
    def cases(self) -> int:
        """Cases in all splits together."""
        return self.slices_per_patient * sum(s.patients for s in SIZES[self.size].values())

    def split_size(self, split: str) -> SplitSize:
        """Patients of a split.

        Raises:
            UserError: this size has no such split.
        """
        if split not in SIZES[self.size]:
            raise UserError(
                f"Cohort size {self.size!r} has no split {split!r}.",
                f"Use one of: {', '.join(self.splits)}.",
            )
        return SIZES[self.size][split]

    def keys(self, split: str) -> list[CaseKey]:
        """Cases of a split, by patient and slice. Exactly the right number have MVO.

        Raises:
            UserError: this size has no such split.
        """
        size = self.split_size(split)
        order = Draws(self.seed, "labels", self.size, split).permutation(size.patients)
        positive = set(order[: size.positive].tolist())
        return [
            CaseKey(
                preset=self.preset,
                seed=self.seed,
                patient=_FIRST_PATIENT[split] + i,
                slice_index=s,
                slices=self.slices_per_patient,
                mvo=i in positive,
            )
            for i in range(size.patients)
            for s in range(self.slices_per_patient)
        ]
