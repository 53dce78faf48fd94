"""Which split a case belongs to. A patient's cases are never in two splits."""

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from mvo_jax.errors import UserError

SPLITS = ("train", "validation", "test")
_MIN_FOLDS = 3  # one to test, one to choose the threshold on, one to train


@dataclasses.dataclass(frozen=True)
class Partition:
    """How a cohort is divided.

    Attributes:
        fractions: shares of the patients in train, validation and test; sum 1.
        folds: number of folds; 0 for ``fractions``.
        seed: another seed, another division.

    Raises:
        UserError: shares that are no shares, or too few folds.
    """

    fractions: tuple[float, ...] = (0.65, 0.15, 0.2)
    folds: int = 0
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
    """Divide patients, each class in the same shares.

    A patient's class is whether any of its cases has MVO. Within a class the order is that of a
    hash of seed and name, so it depends on no other patient and on no order of files.

    Args:
        labels: patient -> labels of its cases (0, 1).

    Returns:
        Patient -> stored split.

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
    classes: dict[int, list[str]] = defaultdict(list)
    for patient, values in labels.items():
        classes[max(values)].append(patient)
    out: dict[str, str] = {}
    filled = dict.fromkeys(shares, 0)
    for value in sorted(classes):
        names = sorted(classes[value], key=lambda p: _hash(partition.seed, p))
        for patient in names:
            # The split that is farthest behind its share, so rounding evens out over the classes.
            done = len(out) + 1
            behind = {split: share * done - filled[split] for split, share in shares.items()}
            split = max(behind, key=behind.__getitem__)
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


def _hash(seed: int, patient: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{patient}".encode()).digest()


def check_table_splits(splits: Mapping[str, set[str]]) -> None:
    """Check that a user's splits keep patients together.

    Args:
        splits: patient -> splits its cases are in.

    Raises:
        UserError: naming a patient that is in two.
    """
    for patient, names in splits.items():
        if len(names) > 1:
            raise UserError(
                f"the table puts patient {patient} into {' and '.join(sorted(names))}",
                "a patient's cases belong to one split",
            )
