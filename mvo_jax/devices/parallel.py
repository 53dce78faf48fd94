"""Devices: the one place that knows how many there are.

Data parallelism is ``jax.pmap`` in its unstacked form: the state is replicated, the batch carries a
leading device axis, and what leaves the step is one copy. With several processes each holds the
state and its own rows of the batch; the axis and its collectives span the devices of all.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mvo_jax.devices import distributed
from mvo_jax.errors import UserError

AXIS = "batch"
Device = Any  # jax.Device, which type checkers take for a value


def devices(limit: int = 0) -> list[Device]:
    """The devices of all processes, process by process; ``limit`` of them, or all for 0.

    Raises:
        UserError: more devices asked for than there are, or not as many of each process.
    """
    found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    processes = jax.process_count()
    if limit % processes:
        raise UserError(
            f"config.train.num_devices asks for {limit} devices of {processes} processes",
            f"choose a multiple of {processes}, or set it to 0 to use all devices",
        )
    share = limit // processes or len(found)
    chosen = [
        device
        for _, of_process in itertools.groupby(found, key=lambda device: device.process_index)
        for device in itertools.islice(of_process, share)
    ]
    if len(chosen) < limit:
        raise UserError(
            f"config.train.num_devices asks for {limit} devices, {share} of each process, but JAX "
            f"sees only {len(chosen)} such",
            "lower it, or set it to 0 to use all devices",
        )
    return chosen


def own(on: Sequence[Device]) -> list[Device]:
    """Those of the devices that belong to this process."""
    return [device for device in on if device.process_index == jax.process_index()]


def own_rows(array: np.ndarray, on: Sequence[Device], *, axis: int = -1) -> np.ndarray:
    """This process's part of a batch along ``axis``; raises as ``check_divisible``.

    The devices, as ``devices`` returns them, share the batch equally.
    """
    check_divisible(array.shape[axis], len(on))
    share = array.shape[axis] // len(on)
    first = next(i for i, d in enumerate(on) if d.process_index == jax.process_index())
    rows = range(first * share, (first + len(own(on))) * share)
    return array.take(rows, axis=axis) if len(rows) < array.shape[axis] else array


def check_divisible(batch_size: int, num_devices: int) -> None:
    """Raise UserError for a batch that is not divisible by the number of devices."""
    if batch_size % num_devices:
        raise UserError(
            f"a batch of {batch_size} cannot be shared by {num_devices} devices",
            f"choose a batch size that is a multiple of {num_devices}, or set "
            "config.train.num_devices to a divisor of the batch size",
        )


def shard(array: np.ndarray, num_devices: int, *, axis: int = -1) -> np.ndarray:
    """Split the batch axis over this process's D devices: ``[..., B]`` to ``[D, ..., B / D]``.

    Raises as ``check_divisible``.
    """
    axis %= array.ndim
    check_divisible(array.shape[axis], num_devices)
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    return np.moveaxis(array.reshape(*before, num_devices, -1, *after), axis, 0)


def replicate(tree: Any, on: Sequence[Device]) -> Any:
    """Place a copy of every array on every one of the devices that belongs to this process."""
    sharding = NamedSharding(Mesh(np.array(own(on)), (AXIS,)), PartitionSpec())
    return jax.device_put(tree, sharding)


def gather(tree: Any) -> Any:
    """Inside ``data_parallel``: every array with a leading axis of all devices, on each of them."""
    return lax.all_gather(tree, AXIS)


def data_parallel(
    function: Callable[..., Any],
    *,
    in_axes: tuple[int | None, ...],
    out_axes: Any,
    on: Sequence[Device],
    donate: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Run a pure function of arrays on all devices at once; collectives inside use ``AXIS``.

    Every process passes what its own devices take, and gets what they return.

    Args:
        function: to run.
        in_axes: per argument, 0 for a leading device axis, None for a replicated argument.
        out_axes: 0 stacks the devices' results, None returns one (they must be equal).
        on: devices to run on.
        donate: arguments whose memory may be reused.
    """
    axes: dict[str, Any] = {"axis_name": AXIS, "in_axes": in_axes, "out_axes": out_axes}
    run = jax.pmap(function, **axes, donate_argnums=donate, devices=list(on))
    return run if len(own(on)) == len(on) else _compiled_together(run)


def _compiled_together(run: Any) -> Callable[..., Any]:
    """Compile in all processes before any of them runs.

    A first collective waits 30 s (gloo) for the others, and one of them may compile for longer.
    """
    known: set[Any] = set()

    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        form = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if form not in known:
            run.lower(*args).compile()  # the call finds the same program
            distributed.exchange("compiled")
            known.add(form)
        return run(*args)

    call.lower = run.lower
    return call


def agree(flag: bool) -> bool:
    """Whether any process says so; the same answer in all of them, and ``flag`` where there is one.

    For what must happen at one step everywhere, as saving after a signal that one host has got. A
    tiny all-reduce that waits for the steps dispatched before it, so ask once a dispatch. All
    processes must ask.
    """
    return flag if jax.process_count() == 1 else bool(_any()(np.array([flag])))


@functools.cache
def _any() -> Callable[[np.ndarray], Any]:
    def largest(flag: jax.Array) -> jax.Array:
        return lax.pmax(flag.astype(np.int32), AXIS)

    return data_parallel(largest, in_axes=(0,), out_axes=None, on=devices(jax.process_count()))
