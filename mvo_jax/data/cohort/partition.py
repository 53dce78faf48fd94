"""Which split a case belongs to. A patient's cases are never in two splits."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

from mvo_jax.errors import UserError

SPLITS = ("train", "validation", "test")
_MIN_FOLDS = 3  # one to test, one to choose the threshold on, one to train


@dataclasses.dataclass(frozen=True)
class Partition:
    """How a cohort is divided.

    Raises:
        UserError: shares that are no shares, or too few folds.
    """

    fractions: tuple[float, ...] = (0.65, 0.15, 0.2)  # of patients in train, validation and test
    folds: int = 0  # their number; 0 for ``fractions``
    seed: int = 0

    def __post_init__(self):
        sound = len(self.fractions) == 3 and all(0 <= f <= 1 for f in self.fractions)
        if not sound or abs(sum(self.fractions) - 1) > 1e-6:
            raise UserError(
                f"fractions are {','.join(map(str, self.fractions))}",
                "give three shares of train, validation and test that add up to 1: 0.65,0.15,0.2",
            )
        if self.folds and self.folds < _MIN_FOLDS:
            raise UserError(
                f"{self.folds} folds: one is to test and one to choose the threshold on",
                f"give {_MIN_FOLDS} folds or more",
            )

    @property
    def shares(self) -> dict[str, float]:
        """Name of every stored split and its share of the patients."""
        if self.folds:
            return {f"fold_{i}": 1 / self.folds for i in range(self.folds)}
        return {n: f for n, f in zip(SPLITS, self.fractions, strict=True) if f > 0}


def divide(labels: Mapping[str, Sequence[int]], partition: Partition) -> dict[str, str]:
    """Stored split of every patient, from the labels (0, 1) of its cases; classes in equal shares.

    A patient's class is whether any of its cases has MVO. Within a class the order is that of a
    hash of seed and name, so it depends on no other patient and on no order of files.

    Raises:
        UserError: fewer patients than splits.
    """
    shares = partition.shares
    if len(labels) < len(shares):
        raise UserError(
            f"{len(labels)} labelled patients cannot fill {len(shares)} splits "
            f"({', '.join(shares)})",
            "add patients, or divide differently: --fractions 1,0,0 puts all into train",
        )

    def place(patient: str) -> tuple[int, bytes]:
        digest = hashlib.sha256(f"{partition.seed}\0{patient}".encode()).digest()
        return max(labels[patient]), digest

    out: dict[str, str] = {}
    filled = dict.fromkeys(shares, 0)
    for done, patient in enumerate(sorted(labels, key=place), 1):
        # The split that is farthest behind its share, so rounding evens out over the classes.
        split = max(shares, key=lambda name: shares[name] * done - filled[name])
        out[patient] = split
        filled[split] += 1
    return out


def parts_of_fold(fold: int, folds: int) -> dict[str, list[int]]:
    """Numbers of the folds that make up each split: ``fold`` is tested on, the next one validates.

    Raises:
        UserError: there is no such fold.
    """
    if not 0 <= fold < folds:
        raise UserError(
            f"data.fold is {fold}, and there are {folds} folds",
            f"set --config.data.fold to 0 to {folds - 1}",
        )
    validation = (fold + 1) % folds
    train = [i for i in range(folds) if i not in (fold, validation)]
    return {"train": train, "validation": [validation], "test": [fold]}


def split_order(name: str) -> tuple[int, str]:
    """Sorts splits as people list them: train, validation, test, then the others by name."""
    return (SPLITS.index(name) if name in SPLITS else len(SPLITS), name)
