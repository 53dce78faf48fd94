"""Series read ahead by child processes: the same clips in the same order, and one that crashes."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from mvo_jax.data import processes
from mvo_jax.data.cohort import ahead
from mvo_jax.data.importers.cine import Importer, Options, Series
from mvo_jax.data.slices import CineSlice, Clip, Rejected, Target

TARGET = Target(frames=8, image_size=32, spacing_mm=1.5)


def load(series: Series, options: Options) -> list[CineSlice]:
    """Noise of the series' number; 4 ends a child that reads it, 6 holds nothing."""
    number = int(series.name)
    if number == 4 and os.environ.get("READ_HERE") != "1":
        os._exit(3)
    if number == 6:
        return []
    cine = np.random.default_rng(number).integers(0, 200, (9, 40, 40))
    return [series.slice(i, 2, cine=cine + i, pixel_mm=(1.5, 1.5)) for i in range(2)]


def read(count: int) -> list[list[Clip | Rejected]]:
    importer = Importer(
        "numbers", "numbers", lambda path: True, lambda path, options: iter(()), load
    )
    todo = (Series(str(i), Path(f"{i}.n")) for i in range(count))
    return list(ahead.read_in_order(importer, Options(), TARGET, todo))


def test_children_give_the_same_in_the_same_order(monkeypatch):
    monkeypatch.setattr(ahead, "available_cores", lambda: 3)
    found = read(12)
    monkeypatch.setattr(ahead, "available_cores", lambda: 1)
    monkeypatch.setenv("READ_HERE", "1")
    alone = read(12)
    assert len(found) == len(alone) == 12
    for number, (there, here) in enumerate(zip(found, alone, strict=True)):
        if number == 4:
            (lost,) = there
            assert isinstance(lost, Rejected)
            assert "ended with status 3" in lost.cause
            continue
        assert len(there) == len(here)
        for one, other in zip(there, here, strict=True):
            first, second = dataclasses.asdict(one), dataclasses.asdict(other)
            np.testing.assert_equal(first, second)
    (empty,) = found[6]
    assert isinstance(empty, Rejected)
    assert "holds no short-axis cine" in empty.cause


def test_a_few_are_read_here_and_what_only_this_process_knows_too(monkeypatch):
    def never(function):
        raise AssertionError("a child was started")

    monkeypatch.setattr(ahead, "available_cores", lambda: 3)
    monkeypatch.setattr(processes, "_Child", never)
    monkeypatch.setenv("READ_HERE", "1")
    assert len(read(ahead._FEW)) == ahead._FEW
    with pytest.raises(AssertionError, match="a child"):
        read(ahead._FEW + 1)
    monkeypatch.setattr(load, "__module__", "__main__")  # as a function of a notebook
    monkeypatch.setattr("__main__.load", load, raising=False)
    assert len(read(ahead._FEW + 1)) == ahead._FEW + 1
