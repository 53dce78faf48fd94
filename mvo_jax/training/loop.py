"""The training loop: from an experiment and its data to a trained run folder."""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from mvo_jax.data.splits import AnySplit
from mvo_jax.devices import parallel
from mvo_jax.devices.memory import is_out_of_memory
from mvo_jax.errors import RunInterrupted
from mvo_jax.runs.checkpoint import Checkpoints
from mvo_jax.runs.folder import RunFolder
from mvo_jax.runs.resume import Identity, resume
from mvo_jax.training.dispatch import Dispatches
from mvo_jax.training.programs import explain
from mvo_jax.training.recorder import Recorder, Supervision
from mvo_jax.training.setup import Experiment
from mvo_jax.training.state import TrainState


def train(
    experiment: Experiment,
    folder: RunFolder,
    split: AnySplit,
    validate: Callable[[Any], Mapping[str, float]],
    identity: Identity,
    *,
    initial: Mapping[str, Any] | None = None,
    profile_steps: int = 0,
    supervision: Supervision | None = None,
) -> dict[str, Any]:
    """Train until ``config.train.total_steps``, or go on where an earlier start stopped.

    The run is a pure function of the config and the data: the batch, augmentation and dropout of
    step k depend on (seed, k) alone, so a resumed run ends in the same bytes. When it saves changes
    nothing either: what of a logged window is done already is in the checkpoint.

    Args:
        experiment: from ``setup.set_up``.
        folder: opened for its config.
        split: training cases; those of a ``StreamedSplit`` are read while the device computes,
            with the same result.
        validate: maps {'params', 'batch_stats'} to metrics of the validation split, among them
            'auc' and ``config.train.best_metric``. The test split is never seen here.
        identity: what a checkpoint must be of.
        initial: variables that a run without a checkpoint starts from, whole or in part.
        profile_steps: steps to trace into the folder 'profile' of the run; 0 for none.
        supervision: the clock, the signals and the lock of this start.

    Returns:
        {'step', 'loss', 'best_step', 'best_auc', 'stopped_early', 'seconds'}: the last logged
        training loss and the validation AUC of the best checkpoint, nan where it is not defined.

    Raises:
        UserError: a loss or gradient is not finite (the step and its cases are named, and the last
            checkpoint stays), a batch does not fit into memory, a checkpoint is damaged or does not
            fit, or something cannot be written.
        RunInterrupted: asked to stop, and everything is saved.
    """
    supervision = supervision or Supervision()

    # 1. State: from the newest checkpoint that is whole, or from the seed.
    checkpoints = Checkpoints(folder.path, create=True, keep_latest=experiment.train.keep_latest)
    start = resume(
        folder,
        checkpoints,
        identity,
        experiment.state_shapes,
        is_evaluated=lambda step: experiment.train.due(step).evaluate,
        metric=experiment.train.best_metric,
    )
    if start.state is None:
        state = experiment.init_state(initial)
    else:
        state = parallel.replicate(start.state, experiment.devices)

    # 2. The compiled step and what feeds it.
    dispatches = Dispatches(
        experiment, split, start.step, supervision, profile_steps, folder.path / "profile"
    )

    # 3. Steps until something is due, then that; a state is saved before it is evaluated.
    evaluate, began = start.evaluate, time.perf_counter()
    with (
        Recorder(experiment, folder, checkpoints, start, supervision) as recorder,
        contextlib.closing(dispatches),
    ):
        try:
            while evaluate or not recorder.done:
                # Of several processes all leave after the same step.
                if parallel.agree(supervision.interruption.requested is not None):
                    supervision.interruption.noticed = True
                    recorder.add(dispatches.results(settle=True))
                    recorder.save(state)
                    raise RunInterrupted
                if evaluate:
                    recorder.evaluate(state, validate)
                    evaluate = False
                else:
                    state, evaluate = take_steps(dispatches, recorder, state)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise explain(experiment, None if evaluate else split) from error
            raise
    return {**recorder.summary(), "seconds": time.perf_counter() - began}


def take_steps(
    dispatches: Dispatches, recorder: Recorder, state: TrainState
) -> tuple[TrainState, bool]:
    """Train until something is due, and log and save where that is.

    Returns:
        The state after these steps, and whether it is to be evaluated.
    """
    recorder.wait_for_saves()  # they overlap evaluations only: at most one interval is at stake
    began = time.perf_counter()
    state, step = dispatches.run(state, recorder.step)
    now = recorder.due(step)
    recorder.add(dispatches.results(settle=now.log or now.save))
    recorder.advance(step, time.perf_counter() - began)
    if now.log:
        recorder.log(dispatches.learning_rate(step))
    if now.save:
        recorder.save(state)
    return state, now.evaluate
