"""Batches as a pure function of (seed, step)."""

import numpy as np
import pytest

from mvo_jax.data.batches import batch_indices


def stream(seed: int, *, num_cases: int, batch_size: int, steps: int) -> np.ndarray:
    batches = [
        batch_indices(seed, k, num_cases=num_cases, batch_size=batch_size) for k in range(steps)
    ]
    return np.concatenate(batches)


@pytest.mark.parametrize(("num_cases", "batch_size"), [(12, 4), (10, 4), (7, 3), (5, 5), (3, 8)])
def test_every_epoch_holds_every_case_once(num_cases, batch_size):
    epochs = 6
    cases = stream(3, num_cases=num_cases, batch_size=batch_size, steps=epochs * num_cases)
    for epoch in cases[: epochs * num_cases].reshape(epochs, num_cases):
        assert sorted(epoch) == list(range(num_cases))


def test_epochs_are_shuffled_differently():
    epochs = stream(0, num_cases=50, batch_size=50, steps=4).reshape(4, 50)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert all(list(epoch) != list(range(50)) for epoch in epochs)


def test_the_stream_does_not_depend_on_the_batch_size():
    np.testing.assert_array_equal(
        stream(2, num_cases=11, batch_size=4, steps=6),
        stream(2, num_cases=11, batch_size=8, steps=3),
    )


def test_neighbouring_seeds_and_epochs_are_unrelated():
    # Key and counter of the generator must not be mixed up: epoch 1 of seed 0 is not epoch 0 of 1.
    first = batch_indices(0, 1, num_cases=64, batch_size=64)
    second = batch_indices(1, 0, num_cases=64, batch_size=64)
    assert (first != second).any()


def test_cases_are_drawn_uniformly():
    # The first case of 4000 epochs over 8 cases: a count is binomial (4000, 1/8), sd 20.9; five of
    # them allow a false alarm in two million.
    first = [batch_indices(0, k, num_cases=8, batch_size=8)[0] for k in range(4000)]
    assert np.abs(np.bincount(first, minlength=8) - 500).max() < 105


@pytest.mark.parametrize(
    ("seed", "step", "num_cases", "cases"),
    [
        (0, 0, 680, [162, 670, 664, 185, 322, 431, 318, 207]),
        (7, 1000, 550, [451, 66, 375, 67, 86, 40, 390, 291]),
    ],
)
def test_values_are_pinned(seed, step, num_cases, cases):
    """A change here breaks the resuming of old runs and every published seed."""
    found = batch_indices(seed, step, num_cases=num_cases, batch_size=8)
    assert found.dtype == np.int32
    assert found.tolist() == cases


@pytest.mark.parametrize(("num_cases", "batch_size"), [(0, 4), (4, 0), (-1, 2)])
def test_empty_split_or_batch_is_refused(num_cases, batch_size):
    with pytest.raises(ValueError, match="cannot draw a batch"):
        batch_indices(0, 0, num_cases=num_cases, batch_size=batch_size)
