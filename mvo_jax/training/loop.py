"""The training loop: one readable function from a config to a trained run folder."""

import collections
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from mvo_jax.data.batches import batch_indices
from mvo_jax.data.splits import AnySplit
from mvo_jax.devices import distributed, parallel
from mvo_jax.devices.memory import (
    device_bytes,
    is_out_of_memory,
    largest_batch,
    program_bytes,
    too_large,
)
from mvo_jax.errors import EXIT_NON_FINITE, RunInterrupted, UserError
from mvo_jax.runs.checkpoint import Checkpoints
from mvo_jax.runs.folder import MetricsWriter, RunFolder, write_json
from mvo_jax.runs.goodput import SPLIT, Clock, describe
from mvo_jax.runs.lock import RunLock
from mvo_jax.runs.resume import (
    check_identity,
    comparable,
    is_better,
    logged_rows,
    tell_of_missing_rows,
    where_it_stands,
)
from mvo_jax.runs.signals import Interruption
from mvo_jax.training.optim import learning_rate_schedule
from mvo_jax.training.programs import compile_step, make_run_steps
from mvo_jax.training.setup import Experiment
from mvo_jax.training.trace import TracedSteps

MAX_DISPATCHES_IN_FLIGHT = 2
NON_FINITE = "non_finite.json"


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
    profile_steps: int = 0,
    data: Mapping[str, str] | None = None,
    allow_config_change: bool = False,
    allow_data_change: bool = False,
    interruption: Interruption | None = None,
    clock: Clock | None = None,
    lock: RunLock | None = None,
) -> dict[str, Any]:
    """Train until ``config.train.total_steps``, or go on where an earlier start stopped.

    The run is a pure function of the config and the data: the batch, augmentation and dropout of
    step k depend on (seed, k) alone, so a resumed run ends in the same bytes. When it saves changes
    nothing either: what of a logged window is done already is in the checkpoint.

    Args:
        config: resolved config.
        experiment: ``setup.set_up(config)``.
        folder: opened for this config.
        split: training cases; those of a ``StreamedSplit`` are read while the device computes,
            with the same result.
        validate: maps {'params', 'batch_stats'} to metrics of the validation split, 'auc' among
            them, by which the best checkpoint is chosen. The test split is never seen here.
        initial: variables that a run without a checkpoint starts from, whole or in part.
        profile_steps: steps to trace into the folder 'profile' of the run; 0 for none.
        data: content hashes of the splits by name; a checkpoint of other ones is refused.
        allow_config_change: go on from a checkpoint of another config.
        allow_data_change: go on from a checkpoint of other data.
        interruption: entered by the caller; asks the loop to save and stop.
        clock: where the time goes; started by the caller.
        lock: of the folder, held by the caller.

    Returns:
        {'step', 'loss', 'best_step', 'best_auc', 'seconds'}: the last logged training loss and the
        best validation AUC, nan where it was never defined.

    Raises:
        UserError: a loss or gradient is not finite (the step and its cases are named, and the last
            checkpoint stays), a batch does not fit into memory, a checkpoint is damaged or does not
            fit, or something cannot be written.
        RunInterrupted: asked to stop, and everything is saved.
    """
    options = config.train
    interruption, clock = interruption or Interruption(), clock or Clock()
    on_cpu = jax.default_backend() == "cpu"
    # On a CPU dispatch costs nothing and convolution gradients inside a scan are slow.
    steps_per_dispatch = options.steps_per_dispatch or (1 if on_cpu else 20)
    identity = {"config": json.loads(json.dumps(config.to_dict())), "data": dict(data or {})}

    # 1. State: from the newest checkpoint that is whole, or from the seed.
    checkpoints = Checkpoints(folder.path, create=True, keep_latest=options.keep_latest)
    meta: Mapping[str, Any] = {}
    if checkpoints.latest_step() is None:
        state = experiment.init_state(config.seed, initial)
    else:
        restored = checkpoints.read("latest")
        meta = restored.meta
        check_identity(meta, identity, allow_config_change, allow_data_change)
        state = parallel.replicate(restored.fill(experiment.state_shapes()), experiment.devices)
    step = saved_step = clock.first_step = clock.step = int(state.step)
    folder.forget_after(step)
    tell_of_missing_rows(folder, step, meta.get("rows"))
    due = step > 0 and (step % options.eval_every == 0 or step == options.total_steps)
    best, evaluate = where_it_stands(folder, checkpoints, meta, step, due)
    if evaluate:
        folder.forget_evaluation(step)

    # 2. The compiled step and what feeds it.
    def draw(k: int) -> np.ndarray:
        cases = len(split)
        return batch_indices(config.seed, k, num_cases=cases, batch_size=options.batch_size)

    run_steps = make_run_steps(
        config,
        experiment,
        split,
        draw,
        range(step, options.total_steps),
        steps_per_dispatch,
        clock=clock,
    )
    run_steps = TracedSteps(
        run_steps, first=step, steps=profile_steps, folder=folder.path / "profile"
    )
    rate = learning_rate_schedule(experiment.optimiser_settings)

    progress = Progress(step, options.total_steps)
    writer = MetricsWriter(folder, step)
    for record in lock.account() if lock else ():
        if "last_step" in record:  # killed before it had a record of what it did otherwise
            known = {key: record[key] for key in clock.row() if key in record}
            writer.write(record["last_step"], SPLIT, {**known, "ended": "killed"})
    in_flight: collections.deque[tuple[int, np.ndarray, Any]] = collections.deque()
    window: list[dict[str, float]] = [dict(row) for row in meta.get("window", ())]
    speed, window_seconds, measured = math.nan, 0.0, 0
    compiled: set[int] = set()
    started = saved_at = time.perf_counter()
    loss = math.nan
    worked = evaluate or step < options.total_steps

    def collect_oldest() -> None:
        first, indices, metrics = in_flight.popleft()
        metrics = {key: np.asarray(value, np.float64) for key, value in metrics.items()}
        for offset in range(len(indices)):
            row = {key: float(value[offset]) for key, value in metrics.items()}
            if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
                cases = [split.case_id[i] for i in indices[offset]]
                raise _not_finite(folder, first + offset + 1, row, cases, saved_step)
            window.append(row)

    def save() -> None:
        nonlocal saved_step, saved_at
        with clock.during("save"):
            writer.sync()
            rows = logged_rows(folder, step)
            about = {**identity, "best": best, "window": window, "rows": rows}
            checkpoints.save_latest(state, about)
        saved_step, saved_at = step, time.perf_counter()
        interruption.safe = True

    def account(ended: str) -> None:
        row = {**clock.row(), "ended": ended}
        if worked:
            writer.write(step, SPLIT, row)
        starts = folder.starts()
        progress.line(describe(starts if worked else [*starts, row]))

    def before_leaving() -> None:
        checkpoints.wait()
        account("interrupted")

    interruption.before_leaving = before_leaving
    ended = "failed"
    try:
        while evaluate or step < options.total_steps:
            if parallel.agree(interruption.requested is not None):
                interruption.noticed = True
                while in_flight:
                    collect_oldest()
                if step != saved_step:
                    save()
                ended = "interrupted"
                raise RunInterrupted
            if not evaluate:
                # At most one save interval is ever at stake: a save overlaps evaluations only.
                with clock.during("save"):
                    checkpoints.wait()
                # A dispatch ends where something is due.
                due = [options.log_every, options.eval_every, options.save_every]
                stop = min(
                    [n - step % n for n in due if n]
                    + [options.total_steps - step, steps_per_dispatch]
                )
                indices = np.stack([draw(k) for k in range(step, step + stop)])
                clock.enter("step" if stop in compiled else "compile")
                window_start = time.perf_counter()
                if stop in compiled:
                    interruption.safe = False
                state, metrics = run_steps(state, indices)
                interruption.safe = False
                clock.enter("step")
                compiled.add(stop)
                in_flight.append((step, indices, metrics))
                step += stop

                evaluate = step % options.eval_every == 0 or step == options.total_steps
                late = time.perf_counter() - saved_at > (options.save_every_seconds or math.inf)
                save_due = (
                    evaluate or late or (options.save_every and step % options.save_every == 0)
                )
                log_due = step % options.log_every == 0 or evaluate
                settled = bool(log_due or save_due or on_cpu)
                while len(in_flight) > (0 if settled else MAX_DISPATCHES_IN_FLIGHT):
                    collect_oldest()
                clock.step = step
                measured += stop
                window_seconds += time.perf_counter() - window_start
                if window:
                    loss = float(np.mean([row["loss"] for row in window]))
                    speed = measured * options.batch_size / window_seconds
                    progress.advance(step, speed, loss)
                if log_due:
                    with clock.during("log"):
                        means = {
                            key: float(np.mean([row[key] for row in window])) for key in window[0]
                        }
                        means["learning_rate"] = float(np.asarray(rate(step - 1)))
                        means["clips_per_second"] = speed
                        writer.write(step, "train", means)
                        progress.log(speed, options.batch_size, loss)
                        window.clear()
                        window_seconds, measured = 0.0, 0
                if save_due:
                    save()
                continue

            clock.enter("validation")
            result = validate(state.eval_variables())
            clock.enter("log")
            writer.write(step, "validation", result)
            progress.line(
                f"step {step}: validation "
                + "  ".join(f"{key} {value:.4f}" for key, value in result.items())
            )
            if is_better(result["auc"], best):
                best = {"step": step, "auc": comparable(result["auc"])}
                with clock.during("save"):
                    checkpoints.save_best(state, {**identity, **best})
            evaluate = False
        ended = "finished"
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        limit = device_bytes(experiment.devices[0])
        if evaluate:
            raise too_large(
                config.eval.batch_size, None, limit, "config.eval.batch_size"
            ) from error
        fits = largest_batch(
            lambda size: program_bytes(compile_step(config, experiment, split, size)),
            failed=options.batch_size,
            multiple=len(experiment.devices),
            limit=limit,
        )
        raise too_large(options.batch_size, fits, limit, "config.train.batch_size") from error
    finally:
        run_steps.close()
        try:
            clock.enter("save")
            checkpoints.finish()  # also after an error: a save may be under way
        except UserError:
            ended = "failed"
            raise
        finally:
            progress.close()
            # The first error is the one to tell; a full disk takes no last row either.
            with contextlib.suppress(UserError):
                account(ended)
            writer.close()
    return {
        "step": step,
        "loss": loss,
        "best_step": best["step"],
        "best_auc": best["auc"] if best["auc"] >= 0 else math.nan,
        "seconds": time.perf_counter() - started,
    }


def _not_finite(
    folder: RunFolder, step: int, row: Mapping[str, float], cases: list[str], saved: int
) -> UserError:
    """Write ``non_finite.json`` and make the message."""
    values = {key: value if math.isfinite(value) else str(value) for key, value in row.items()}
    with contextlib.suppress(UserError):  # the message below says the same
        if distributed.is_first():
            write_json(
                folder.path / NON_FINITE,
                {"step": step, "cases": cases, "metrics": values, "last_checkpoint": saved},
            )
    return UserError(
        f"step {step}: loss {row['loss']} and gradient norm {row['grad_norm']} are not finite "
        f"(cases {', '.join(cases)})",
        "lower config.optimizer.learning_rate or set config.optimizer.clip_norm; the last "
        f"checkpoint is kept, and {NON_FINITE} has the cases",
        exit_code=EXIT_NON_FINITE,
    )
