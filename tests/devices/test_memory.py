"""The largest batch that fits, from the sizes of compiled programs."""

import jax
import pytest

from mvo_jax.devices import parallel
from mvo_jax.devices.memory import (
    device_bytes,
    is_out_of_memory,
    largest_batch,
    program_bytes,
    too_large,
)
from mvo_jax.errors import EXIT_OUT_OF_MEMORY
from mvo_jax.training.programs import compile_step
from mvo_jax.training.setup import set_up
from tools import tiny_run


@pytest.mark.parametrize(
    ("limit", "multiple", "fits"),
    [(1000, 1, 9), (1000, 4, 8), (199, 1, None), (200, 1, 1), (10**9, 1, 31), (10**9, 4, 28)],
)
def test_a_line_through_two_sizes(limit, multiple, fits):
    # 100 bytes, and 100 for each case.
    assert largest_batch(lambda n: 100 + 100 * n, failed=32, multiple=multiple, limit=limit) == fits


def test_the_shipped_step_takes_more_for_more_cases():
    config = tiny_run.tiny_config()
    experiment, split = set_up(config, devices=parallel.devices(1)), tiny_run.tiny_split("train", 0)
    sizes = [program_bytes(compile_step(experiment, split, n)) for n in (2, 4, 8)]
    assert sizes[0] < sizes[1] < sizes[2]
    # What a line says of 8 from 2 and 4 is right within a fifth: buffers are shared, not added.
    assert sizes[2] == pytest.approx(sizes[0] + 3 * (sizes[1] - sizes[0]), rel=0.2)


def test_a_device_has_some_memory():
    (device,) = parallel.devices(1)
    assert 10**8 < device_bytes(device) < 10**14


def test_errors_are_told_apart():
    assert is_out_of_memory(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: something else"))
    error = too_large(16, 12, 8 * 10**9, "config.train.batch_size")
    assert error.exit_code == EXIT_OUT_OF_MEMORY
    assert error.cause == "out of memory: a batch of 16 does not fit into the 8.0 GB of a device"
    assert "set config.train.batch_size=12" in error.remedy
