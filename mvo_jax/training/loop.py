"""The training loop: one readable function from a config to a trained run folder."""

import collections
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from mvo_jax.data.batches import batch_indices
from mvo_jax.data.splits import AnySplit, StreamedSplit
from mvo_jax.data.stream import read_batches
from mvo_jax.errors import EXIT_NON_FINITE, UserError
from mvo_jax.training import distributed, parallel
from mvo_jax.training.checkpoint import Checkpoints
from mvo_jax.training.optim import learning_rate_schedule
from mvo_jax.training.run_folder import MetricsWriter, RunFolder
from mvo_jax.training.setup import Experiment
from mvo_jax.training.state import TrainState
from mvo_jax.training.step import make_resident_step, make_streamed_step, make_train_step

MAX_DISPATCHES_IN_FLIGHT = 2


class Progress:
    """A progress bar with clips/s and time left on a terminal, plain lines elsewhere."""

    def __init__(self, step: int, total: int):
        self._speaks = distributed.is_first()
        hidden = not (self._speaks and sys.stderr.isatty())
        self._bar = tqdm(total=total, initial=step, unit="step", disable=hidden, file=sys.stderr)
        self._total, self._step = total, step

    def advance(self, step: int, clips_per_second: float, loss: float) -> None:
        """Move on to ``step``."""
        self._bar.set_postfix_str(f"{clips_per_second:.1f} clips/s, loss {loss:.4f}", refresh=False)
        self._bar.update(step - self._step)
        self._step = step

    def line(self, text: str) -> None:
        """Print a line beside the bar."""
        if self._speaks:
            self._bar.write(text, file=sys.stderr)

    def log(self, clips_per_second: float, clips_per_step: int, loss: float) -> None:
        """Without a terminal: one line with speed and time left."""
        if self._bar.disable:
            left = (self._total - self._step) * clips_per_step / clips_per_second
            self.line(
                f"step {self._step}/{self._total}  loss {loss:.4f}  "
                f"{clips_per_second:.1f} clips/s  {left / 60:.1f} min left"
            )

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


def train(
    config: Any,
    experiment: Experiment,
    folder: RunFolder,
    split: AnySplit,
    validate: Callable[[Any], Mapping[str, float]],
    *,
    initial: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train until ``config.train.total_steps``, or go on where an earlier start stopped.

    The run is a pure function of the config and the data: the batch, augmentation and dropout of
    step k depend on (seed, k) alone, so a resumed run ends in the same bytes.

    Args:
        config: resolved config.
        experiment: ``setup.set_up(config)``.
        folder: opened for this config.
        split: training cases; those of a ``StreamedSplit`` are read while the device computes,
            with the same result.
        validate: maps {'params', 'batch_stats'} to metrics of the validation split, 'auc' among
            them, by which the best checkpoint is chosen. The test split is never seen here.
        initial: variables that a run without a checkpoint starts from, whole or in part.

    Returns:
        {'step', 'loss', 'best_step', 'best_auc', 'seconds'}: the last logged training loss and the
        best validation AUC, nan where it was never defined.

    Raises:
        UserError: a loss or gradient is not finite (the step and its cases are named, and the last
            checkpoint stays), or a checkpoint does not fit.
    """
    options = config.train
    on_cpu = jax.default_backend() == "cpu"
    # On a CPU dispatch costs nothing and convolution gradients inside a scan are slow.
    steps_per_dispatch = options.steps_per_dispatch or (1 if on_cpu else 20)

    # 1. State: from the newest checkpoint, or from the seed.
    checkpoints = Checkpoints(folder.path, create=True)
    if checkpoints.latest_step() is None:
        state = experiment.init_state(config.seed, initial)
    else:
        restored = checkpoints.restore_latest(experiment.state_shapes())
        state = parallel.replicate(restored, experiment.devices)
    step = int(state.step)
    folder.forget_after(step)
    best = checkpoints.best_meta() or {"step": -1, "auc": -math.inf}
    if best["step"] > step:  # the kill came between saving the best and the latest
        best = {"step": -1, "auc": -math.inf}

    # 2. The compiled step and what feeds it.
    def draw(k: int) -> np.ndarray:
        cases = len(split)
        return batch_indices(config.seed, k, num_cases=cases, batch_size=options.batch_size)

    run_steps = make_run_steps(
        config, experiment, split, draw, range(step, options.total_steps), steps_per_dispatch
    )
    rate = learning_rate_schedule(experiment.optimiser_settings)

    progress = Progress(step, options.total_steps)
    writer = MetricsWriter(folder, step)
    in_flight: collections.deque[tuple[int, np.ndarray, Any]] = collections.deque()
    rows: list[dict[str, float]] = []
    since = time.perf_counter()
    started, loss = since, math.nan

    def collect_oldest() -> None:
        first, indices, metrics = in_flight.popleft()
        metrics = {key: np.asarray(value, np.float64) for key, value in metrics.items()}
        for offset in range(len(indices)):
            row = {key: float(value[offset]) for key, value in metrics.items()}
            if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
                cases = ", ".join(split.case_id[i] for i in indices[offset])
                raise UserError(
                    f"step {first + offset + 1}: loss {row['loss']} and gradient norm "
                    f"{row['grad_norm']} are not finite (cases {cases})",
                    "lower config.optimizer.learning_rate or set config.optimizer.clip_norm; "
                    "the last checkpoint is kept",
                    exit_code=EXIT_NON_FINITE,
                )
            rows.append(row)

    try:
        while step < options.total_steps:
            # A dispatch ends where something is due.
            due = [options.log_every, options.eval_every, options.total_steps]
            stop = min([n - step % n for n in due[:2]] + [due[2] - step, steps_per_dispatch])
            indices = np.stack([draw(k) for k in range(step, step + stop)])
            state, metrics = run_steps(state, indices)
            in_flight.append((step, indices, metrics))
            step += stop

            eval_due = step % options.eval_every == 0 or step == options.total_steps
            # Also before a checkpoint, so that a resumed run logs the same windows.
            log_due = step % options.log_every == 0 or eval_due
            keep = 0 if log_due or eval_due or on_cpu else MAX_DISPATCHES_IN_FLIGHT
            while len(in_flight) > keep:
                collect_oldest()
            if rows:
                loss = float(np.mean([row["loss"] for row in rows]))
                speed = len(rows) * options.batch_size / (time.perf_counter() - since)
                progress.advance(step, speed, loss)
            if log_due:
                means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
                means["learning_rate"] = float(np.asarray(rate(step - 1)))
                means["clips_per_second"] = speed
                writer.write(step, "train", means)
                progress.log(speed, options.batch_size, loss)
                rows.clear()
                since = time.perf_counter()
            if eval_due:
                paused = time.perf_counter()
                result = validate(state.eval_variables())
                writer.write(step, "validation", result)
                progress.line(
                    f"step {step}: validation "
                    + "  ".join(f"{key} {value:.4f}" for key, value in result.items())
                )
                auc = -1.0 if math.isnan(result["auc"]) else float(result["auc"])
                # Where no AUC is defined, nothing tells checkpoints apart: the newest is kept.
                if auc > best["auc"] or auc == best["auc"] == -1.0:
                    best = {"step": step, "auc": auc}
                    checkpoints.save_best(state, best)
                checkpoints.save_latest(state)
                since += time.perf_counter() - paused
    finally:
        writer.close()
        progress.close()
        checkpoints.finish()  # also after an error: a save may be under way
    return {
        "step": step,
        "loss": loss,
        "best_step": best["step"],
        "best_auc": best["auc"] if best["auc"] >= 0 else math.nan,
        "seconds": time.perf_counter() - started,
    }


def make_run_steps(
    config: Any,
    experiment: Experiment,
    split: AnySplit,
    draw: Callable[[int], np.ndarray],
    steps: range,
    steps_per_dispatch: int,
) -> Callable[[TrainState, np.ndarray], tuple[TrainState, Any]]:
    """Build ``run_steps(state, indices [K, B]) -> (state, metrics [K])``.

    Args:
        config: resolved config.
        experiment: what it describes.
        split: placed in device memory, or read from disk in the order of ``steps``.
        draw: cases of a step; what ``run_steps`` is called with.
        steps: the steps to come.
        steps_per_dispatch: largest K.
    """
    devices, own = experiment.devices, len(parallel.own(experiment.devices))
    update = make_train_step(
        experiment.model,
        experiment.optimiser,
        experiment.loss,
        ema_decay=experiment.ema_decay,
        axis_name=parallel.AXIS,
    )
    batches: dict[str, Any] = {
        "augmentation": experiment.augmentation,
        "mask_size": experiment.mask_size,
        "axis_name": parallel.AXIS,
    }
    placed: dict[str, Any] = {"out_axes": None, "on": devices, "donate": (0,)}
    # Initialisation and the run draw from different keys.
    run_key = parallel.replicate(jax.random.fold_in(jax.random.key(config.seed), 1), devices)

    if isinstance(split, StreamedSplit):
        streamed = parallel.data_parallel(
            make_streamed_step(update, **batches), in_axes=(None, 0, None), **placed
        )
        # The next dispatch is read while one runs, by each process its own rows.
        read = read_batches(
            split,
            lambda k: parallel.own_rows(draw(k), devices),
            steps,
            ahead=2 * steps_per_dispatch,
        )

        def run_streamed(state: TrainState, indices: np.ndarray) -> tuple[TrainState, Any]:
            taken = [next(read) for _ in indices]
            clips = {
                key: parallel.shard(np.stack([clip[key] for clip in taken]), own, axis=1)
                for key in taken[0]
            }
            return streamed(state, clips, run_key)

        return run_streamed

    resident = parallel.data_parallel(
        make_resident_step(update, **batches), in_axes=(None, None, 0, None), **placed
    )
    data = parallel.replicate(
        {"video": split.video, "lge_mask": split.lge_mask, "label": split.label}, devices
    )

    def run_resident(state: TrainState, indices: np.ndarray) -> tuple[TrainState, Any]:
        rows = parallel.own_rows(indices, devices)
        return resident(state, data, parallel.shard(rows, own), run_key)

    return run_resident
