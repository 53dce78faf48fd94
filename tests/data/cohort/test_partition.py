"""Splits: patients stay whole, classes are shared out, nothing depends on the order of files."""

import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest

from mvo_jax.data.cohort.partition import Partition, divide, parts_of_fold
from mvo_jax.data.cohort.prepare import prepare
from mvo_jax.data.importers.cine import Options
from mvo_jax.data.importers.table import read_table
from mvo_jax.data.slices import Target
from mvo_jax.errors import UserError


def patients(count: int, positive: float, seed: int = 0) -> dict[str, list[int]]:
    """Of one to five slices; a positive patient has at least one positive slice."""
    draws = np.random.default_rng(seed)
    out = {}
    for i in range(count):
        labels = [0] * int(draws.integers(1, 6))
        if draws.random() < positive:
            labels[int(draws.integers(len(labels)))] = 1
        out[f"patient {i}"] = labels
    return out


@pytest.mark.parametrize("count", [10, 61, 500])
@pytest.mark.parametrize(
    "partition", [Partition(), Partition(folds=3), Partition(seed=4), Partition(folds=10)]
)
def test_every_class_is_shared_out(count, partition):
    labels = patients(count, 0.34, seed=count)
    splits = divide(labels, partition)
    assert set(splits) == set(labels)
    for chosen in (0, 1):
        of_class = [p for p, values in labels.items() if max(values) == chosen]
        got = Counter(splits[p] for p in of_class)
        for split, share in partition.shares.items():
            assert abs(got[split] - share * len(of_class)) <= 2
    sizes = Counter(splits.values())
    for split, share in partition.shares.items():
        assert abs(sizes[split] - share * count) < 1 + 1e-9


def test_the_order_of_files_does_not_matter_and_the_seed_does():
    labels = patients(100, 0.4)
    backwards = dict(reversed(labels.items()))
    assert divide(labels, Partition()) == divide(backwards, Partition())
    assert divide(labels, Partition()) != divide(labels, Partition(seed=1))
    assert divide(labels, Partition()) == divide(labels, Partition(fractions=(0.65, 0.15, 0.2)))


def test_every_fold_is_the_test_split_once():
    for fold in range(4):
        parts = parts_of_fold(fold, 4)
        assert parts["test"] == [fold]
        assert sorted(itertools.chain(*parts.values())) == [0, 1, 2, 3]  # all, and none twice
        assert [len(parts[name]) for name in ("train", "validation", "test")] == [2, 1, 1]
    for fold in (-1, 4):
        with pytest.raises(UserError, match="there are 4 folds"):
            parts_of_fold(fold, 4)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Nine patients of one to three slices, every second with MVO, in one file each."""
    folder = tmp_path_factory.mktemp("slices")
    draws = np.random.default_rng(0)
    for i in range(9):
        count = 1 + i % 3
        masks = np.zeros((count, 32, 32), np.uint8)
        masks[:, 10:20, 10:20] = 3
        if i % 2 == 0:
            masks[0, 12:14, 12:14] = 2
        np.savez(
            folder / f"scan{i}.npz",
            cine=draws.integers(0, 255, (count, 10, 32, 32)).astype(np.uint8),
            pixel_mm=2.0,
            lge_mask=masks,
            patient_id=f"P{i % 8}",  # the last file is the first patient's second examination
        )
    return folder


def read(source, out, partition=None, **options):
    cohort = prepare(
        source, out, options=Options(**options), target=Target(frames=10, image_size=32),
        partition=partition or Partition(), jobs=1,
    )  # fmt: skip
    splits = defaultdict(set)
    for split in cohort.cases:
        builder = cohort.builder()
        for case in builder.as_data_source(split=split):  # pyright: ignore[reportCallIssue]
            splits[case["patient_id"].decode()].add(split)
    return cohort, splits


def test_no_patient_is_in_two_splits(source, tmp_path):
    for name, partition in (("shares", Partition()), ("folds", Partition(folds=4))):
        cohort, splits = read(source, tmp_path / name, partition)
        assert len(splits) == 8
        assert sum(cohort.cases.values()) == 18
        assert all(len(of_patient) == 1 for of_patient in splits.values())


def test_splits_of_a_table_by_patient(source, tmp_path):
    wanted = {f"P{i}": ("train", "validation", "test", "train")[i % 4] for i in range(8)}
    table = tmp_path / "splits.csv"
    table.write_text("patient_id,split\n" + "".join(f"{p},{s}\n" for p, s in wanted.items()))
    _, splits = read(source, tmp_path / "out", table=read_table(table))
    assert splits == {patient: {split} for patient, split in wanted.items()}
