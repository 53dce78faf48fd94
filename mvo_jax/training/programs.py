"""The compiled programs of a run: several training steps in one dispatch, and what feeds them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mvo_jax.data.splits import AnySplit, StreamedSplit
from mvo_jax.data.stream import read_batches
from mvo_jax.devices import parallel
from mvo_jax.devices.memory import device_bytes, largest_batch, program_bytes, too_large
from mvo_jax.errors import UserError
from mvo_jax.runs.goodput import Clock
from mvo_jax.training.setup import Experiment
from mvo_jax.training.state import TrainState
from mvo_jax.training.step import make_batch, make_loss, make_steps, make_train_step


def make_run_steps(
    experiment: Experiment,
    split: AnySplit,
    steps: range,
    longest: int,
    clock: Clock | None = None,
) -> Callable[[TrainState, np.ndarray], tuple[TrainState, Any]]:
    """Build ``run_steps(state, indices [K, B]) -> (state, metrics [K])``.

    Args:
        experiment: its model, optimiser and devices.
        split: placed in device memory, or read from disk in the order of ``steps``.
        steps: the steps to come; the indices of each are those of ``Experiment.draw``.
        longest: largest K.
        clock: of the time that reading takes.
    """
    devices, own = experiment.devices, len(parallel.own(experiment.devices))
    clock = clock or Clock()
    # Initialisation and the run draw from different keys.
    run_key = parallel.replicate(jax.random.fold_in(jax.random.key(experiment.seed), 1), devices)
    step = parallel_step(experiment, streamed=isinstance(split, StreamedSplit))
    if isinstance(split, StreamedSplit):
        # The next dispatch is read while one runs, by each process its own rows.
        read = read_batches(
            split,
            lambda k: parallel.own_rows(experiment.draw(len(split), k), devices),
            steps,
            ahead=2 * longest,
        )

        def run_streamed(state: TrainState, indices: np.ndarray) -> tuple[TrainState, Any]:
            with clock.during("input"):
                taken = [next(read) for _ in indices]
                clips = {
                    key: parallel.shard(np.stack([clip[key] for clip in taken]), own, axis=1)
                    for key in taken[0]
                }
            return step(state, clips, None, run_key)

        return run_streamed

    data = parallel.replicate(
        {"video": split.video, "lge_mask": split.lge_mask, "label": split.label}, devices
    )

    def run_resident(state: TrainState, indices: np.ndarray) -> tuple[TrainState, Any]:
        rows = parallel.own_rows(indices, devices)
        return step(state, data, parallel.shard(rows, own), run_key)

    return run_resident


def parallel_step(experiment: Experiment, *, streamed: bool) -> Callable[..., Any]:
    """``step.make_steps`` on all devices: of clips from the host, or of cases in device memory."""
    update = make_train_step(
        make_loss(experiment.model, experiment.loss),
        experiment.optimiser,
        ema_decay=experiment.optimiser_settings.ema_decay,
        axis_name=parallel.AXIS,
        accumulate=experiment.train.accumulate,
        frozen=experiment.optimiser_settings.frozen,
    )
    batch_of = functools.partial(
        make_batch,
        augmentation=experiment.augmentation,
        mask_size=experiment.mask_size,
        axis_name=parallel.AXIS,
    )
    return parallel.data_parallel(
        make_steps(update, batch_of),
        in_axes=(None, 0, None, None) if streamed else (None, None, 0, None),
        out_axes=None,
        on=experiment.devices,
        donate=(0,),
    )


def compile_step(experiment: Experiment, split: AnySplit, batch_size: int) -> Any:
    """One step at a batch size over all devices, compiled from shapes alone, to ask its memory."""
    own, share = len(parallel.own(experiment.devices)), batch_size // len(experiment.devices)
    streamed, clip = isinstance(split, StreamedSplit), experiment.clip_shape
    of = jax.ShapeDtypeStruct
    cases = (own, 1, share) if streamed else (len(split),)
    data = {
        "video": of((*cases, *clip), np.uint8),
        "lge_mask": of((*cases, *clip[1:3]), np.uint8),
        "label": of(cases, np.int32),
    }
    indices = None if streamed else of((own, 1, share), np.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    step: Any = parallel_step(experiment, streamed=streamed)
    return step.lower(experiment.state_shapes(), data, indices, key).compile()


def explain(experiment: Experiment, split: AnySplit | None) -> UserError:
    """The message for a batch that did not fit into memory, with one that does.

    Args:
        experiment: its batch sizes and devices.
        split: training cases; None where the batch was one of an evaluation.
    """
    limit = device_bytes(experiment.devices[0])
    if split is None:
        return too_large(experiment.eval_batch_size, None, limit, "config.eval.batch_size")
    fits = largest_batch(
        lambda size: program_bytes(compile_step(experiment, split, size)),
        failed=experiment.train.batch_size,
        multiple=len(experiment.devices) * experiment.train.accumulate,
        limit=limit,
    )
    return too_large(experiment.train.batch_size, fits, limit, "config.train.batch_size")
