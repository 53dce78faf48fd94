"""Splits on disk: the same cases and batches as in memory."""

import shutil
import threading
from typing import Any

import numpy as np
import pytest

from mvo_jax.data.batches import batch_indices
from mvo_jax.data.splits import Split, StreamedSplit, load_split
from mvo_jax.data.stream import read_batches
from mvo_jax.errors import UserError


@pytest.fixture(scope="module")
def resident(simulated) -> Split:
    split = load_split(simulated(), "train")
    assert isinstance(split, Split)
    return split


@pytest.fixture
def streamed(simulated, resident) -> StreamedSplit:
    split = load_split(simulated(device_budget_mb=0), "train")
    assert isinstance(split, StreamedSplit)
    return split


def draw(step: int) -> np.ndarray:
    return batch_indices(7, step, num_cases=32, batch_size=12)


def test_the_budget_decides(simulated, resident):
    # 32 cases of 8 frames and a mask of 32x32 pixels: 0.294912 MB.
    for budget, kind in ((0.2949, StreamedSplit), (0.2950, Split)):
        split = load_split(simulated(device_budget_mb=budget), "train")
        assert isinstance(split, kind)


def test_what_is_in_memory_is_the_same(resident, streamed):
    assert len(streamed) == 32
    for name in ("name", "case_id", "patient_id"):
        assert getattr(streamed, name) == getattr(resident, name)
    np.testing.assert_array_equal(streamed.label, resident.label)
    assert streamed.label.dtype == resident.label.dtype
    assert streamed.features.keys() == resident.features.keys()
    for name, values in resident.features.items():
        np.testing.assert_array_equal(streamed.features[name], values)
        assert streamed.features[name].dtype == values.dtype
    assert streamed.size_bytes == resident.video.nbytes + resident.lge_mask.nbytes


def test_images_are_the_same_in_any_order(resident, streamed):
    order = np.random.default_rng(0).permutation(32)
    for indices in (order, [3], [5, 5, 0]):
        ours, theirs = streamed.read(indices), resident.read(indices)
        for name in ("video", "lge_mask"):
            np.testing.assert_array_equal(ours[name], theirs[name])
            assert ours[name].dtype == np.uint8


@pytest.mark.parametrize("first", [0, 5])
def test_batches_are_those_of_their_steps_wherever_the_stream_starts(resident, streamed, first):
    batches = list(read_batches(streamed, draw, range(first, 9), ahead=3))
    assert len(batches) == 9 - first
    for step, batch in zip(range(first, 9), batches, strict=True):
        np.testing.assert_array_equal(batch["video"], resident.video[draw(step)])
        np.testing.assert_array_equal(batch["lge_mask"], resident.lge_mask[draw(step)])
        np.testing.assert_array_equal(batch["label"], resident.label[draw(step)])


def test_no_more_is_read_ahead_than_asked_for(streamed):
    drawn = []

    def watched(step: int) -> np.ndarray:
        drawn.append(step)
        return draw(step)

    batches: Any = read_batches(streamed, watched, range(1000), ahead=4)
    for _ in range(3):
        next(batches)
    batches.close()
    assert max(drawn) < 3 + 4
    # Reading ends with the generator; Grain does not wait for the batches it is at.
    for thread in threading.enumerate():
        if thread.name.startswith("grain"):
            thread.join(timeout=10)
            assert not thread.is_alive()


def test_files_that_go_while_they_are_read(simulated, resident, tmp_path):
    shutil.copytree(simulated().dir, tmp_path, dirs_exist_ok=True)
    copy = simulated(dir=str(tmp_path), device_budget_mb=0)
    split = load_split(copy, "train")
    for path in tmp_path.rglob("*array_record*"):
        path.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        split.read([0])
    assert "'train' can no longer be read" in caught.value.cause
    assert "\n" not in caught.value.cause
