"""The compiled programs of a run: several training steps in one dispatch, and what feeds them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mvo_jax.data.batches import batch_indices
from mvo_jax.data.splits import AnySplit, StreamedSplit
from mvo_jax.data.stream import read_batches
from mvo_jax.devices import parallel
from mvo_jax.devices.memory import device_bytes, largest_batch, program_bytes, too_large
from mvo_jax.errors import UserError
from mvo_jax.runs.goodput import Clock
from mvo_jax.training.optim import frozen_parts
from mvo_jax.training.setup import Experiment
from mvo_jax.training.state import TrainState
from mvo_jax.training.step import make_resident_step, make_streamed_step, make_train_step


def make_run_steps(
    config: Any,
    experiment: Experiment,
    split: AnySplit,
    steps: range,
    longest: int,
    clock: Clock | None = None,
) -> Callable[[TrainState, np.ndarray], tuple[TrainState, Any]]:
    """Build ``run_steps(state, indices [K, B]) -> (state, metrics [K])``.

    Args:
        config: resolved config.
        experiment: what it describes.
        split: placed in device memory, or read from disk in the order of ``steps``.
        steps: the steps to come; the indices of each are those of ``draw``.
        longest: largest K.
        clock: of the time that reading takes.
    """
    devices, own = experiment.devices, len(parallel.own(experiment.devices))
    clock = clock or Clock()
    # Initialisation and the run draw from different keys.
    run_key = parallel.replicate(jax.random.fold_in(jax.random.key(config.seed), 1), devices)
    step = parallel_step(config, experiment, streamed=isinstance(split, StreamedSplit))
    if isinstance(split, StreamedSplit):
        # The next dispatch is read while one runs, by each process its own rows.
        read = read_batches(
            split,
            lambda k: parallel.own_rows(draw(config, split, k), devices),
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
            return step(state, clips, run_key)

        return run_streamed

    data = parallel.replicate(
        {"video": split.video, "lge_mask": split.lge_mask, "label": split.label}, devices
    )

    def run_resident(state: TrainState, indices: np.ndarray) -> tuple[TrainState, Any]:
        rows = parallel.own_rows(indices, devices)
        return step(state, data, parallel.shard(rows, own), run_key)

    return run_resident


def draw(config: Any, split: AnySplit, step: int) -> np.ndarray:
    """Cases of a step: ``[B]``, see ``data.batches.batch_indices``."""
    batch_size = config.train.batch_size
    return batch_indices(config.seed, step, num_cases=len(split), batch_size=batch_size)


def compile_step(config: Any, experiment: Experiment, split: AnySplit, batch_size: int) -> Any:
    """One step at some batch size, compiled from shapes alone.

    Args:
        config: resolved config.
        experiment: what it describes.
        split: whether it is streamed, and how large it is, decides what the step takes.
        batch_size: over all devices.

    Returns:
        The compiled program, which tells its memory.
    """
    own, share = len(parallel.own(experiment.devices)), batch_size // len(experiment.devices)
    streamed = isinstance(split, StreamedSplit)
    cases = (own, 1, share) if streamed else (len(split),)
    clip = experiment.clip_shape
    of = jax.ShapeDtypeStruct
    data = {
        "video": of((*cases, *clip), np.uint8),
        "lge_mask": of((*cases, *clip[1:3]), np.uint8),
        "label": of(cases, np.int32),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    indices = of((own, 1, share), np.int32)
    arguments = (data, key) if streamed else (data, indices, key)
    step: Any = parallel_step(config, experiment, streamed=streamed)
    return step.lower(experiment.state_shapes(), *arguments).compile()


def explain(config: Any, experiment: Experiment, split: AnySplit | None) -> UserError:
    """The message for a batch that did not fit into memory, with one that does.

    Args:
        config: resolved config.
        experiment: what it describes.
        split: training cases; None where the batch was one of an evaluation.
    """
    limit = device_bytes(experiment.devices[0])
    if split is None:
        return too_large(config.eval.batch_size, None, limit, "config.eval.batch_size")
    fits = largest_batch(
        lambda size: program_bytes(compile_step(config, experiment, split, size)),
        failed=config.train.batch_size,
        multiple=len(experiment.devices) * config.train.accumulate,
        limit=limit,
    )
    return too_large(config.train.batch_size, fits, limit, "config.train.batch_size")


def parallel_step(config: Any, experiment: Experiment, *, streamed: bool) -> Callable[..., Any]:
    """The step on all devices: of clips from the host, or of cases in device memory."""
    update = make_train_step(
        experiment.model,
        experiment.optimiser,
        experiment.loss,
        ema_decay=experiment.ema_decay,
        axis_name=parallel.AXIS,
        accumulate=config.train.accumulate,
        frozen=frozen_parts(experiment.optimiser_settings),
    )
    make = make_streamed_step if streamed else make_resident_step
    step = make(
        update,
        augmentation=experiment.augmentation,
        mask_size=experiment.mask_size,
        axis_name=parallel.AXIS,
    )
    in_axes = (None, 0, None) if streamed else (None, None, 0, None)
    return parallel.data_parallel(
        step, in_axes=in_axes, out_axes=None, on=experiment.devices, donate=(0,)
    )
