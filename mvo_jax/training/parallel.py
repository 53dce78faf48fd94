"""Devices: the one place that knows how many there are.

Data parallelism is ``jax.pmap`` in its unstacked form: the state is replicated, the batch carries a
leading device axis, and what leaves the step is one copy.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mvo_jax.errors import UserError

AXIS = "batch"
Device = Any  # jax.Device, which type checkers take for a value


def devices(limit: int = 0) -> list[Device]:
    """The devices of this process, at most ``limit`` of them (0 for all).

    Raises:
        UserError: more devices asked for than there are.
    """
    found = jax.local_devices()
    if limit > len(found):
        raise UserError(
            f"config.train.num_devices asks for {limit} devices, but JAX sees {len(found)}",
            "lower it, or set it to 0 to use all devices",
        )
    return found[: limit or None]


def check_divisible(batch_size: int, num_devices: int) -> None:
    """Refuse a batch that devices cannot share equally.

    Raises:
        UserError: the batch is not divisible by the number of devices.
    """
    if batch_size % num_devices:
        raise UserError(
            f"a batch of {batch_size} cannot be shared by {num_devices} devices",
            f"choose a batch size that is a multiple of {num_devices}, or set "
            "config.train.num_devices to a divisor of the batch size",
        )


def shard(array: np.ndarray, num_devices: int, *, axis: int = -1) -> np.ndarray:
    """Split the batch axis over devices: ``[..., B]`` to ``[D, ..., B / D]``.

    Args:
        array: of a whole batch.
        num_devices: D.
        axis: where the batch is.

    Raises:
        UserError: the batch is not divisible by the number of devices.
    """
    axis %= array.ndim
    check_divisible(array.shape[axis], num_devices)
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    return np.moveaxis(array.reshape(*before, num_devices, -1, *after), axis, 0)


def replicate(tree: Any, on: Sequence[Device]) -> Any:
    """Place a copy of every array on every device."""
    sharding = NamedSharding(Mesh(np.array(on), (AXIS,)), PartitionSpec())
    return jax.device_put(tree, sharding)


def data_parallel(
    function: Callable[..., Any],
    *,
    in_axes: tuple[int | None, ...],
    out_axes: Any,
    on: Sequence[Device],
    donate: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Run ``function`` on all devices at once; collectives inside use ``AXIS``.

    Args:
        function: pure function of arrays.
        in_axes: per argument, 0 for a leading device axis, None for a replicated argument.
        out_axes: 0 stacks the devices' results, None returns one (they must be equal).
        on: devices to run on.
        donate: arguments whose memory may be reused.
    """
    return jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=in_axes,
        out_axes=out_axes,
        donate_argnums=donate,
        devices=list(on),
    )
