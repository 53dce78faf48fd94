"""What a start of a run leaves behind while it trains: rows, checkpoints and an account of time."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mvo_jax.devices import distributed
from mvo_jax.errors import EXIT_NON_FINITE, RunInterrupted, UserError
from mvo_jax.runs import goodput
from mvo_jax.runs.checkpoint import Checkpoints
from mvo_jax.runs.folder import MetricsWriter, OnMetrics, RunFolder, write_json
from mvo_jax.runs.goodput import Clock
from mvo_jax.runs.lock import RunLock
from mvo_jax.runs.resume import Start, best_of, is_better
from mvo_jax.runs.signals import Interruption
from mvo_jax.settings import Due
from mvo_jax.training.progress import Progress
from mvo_jax.training.setup import Experiment
from mvo_jax.training.state import TrainState

NON_FINITE = "non_finite.json"


@dataclasses.dataclass(frozen=True)
class Supervision:
    """What watches over a start of a run.

    Attributes:
        clock: where the time goes; started by the caller.
        interruption: entered by the caller; asks the loop to save and stop.
        lock: of the folder, held by the caller; None in all processes but the first.
        on_metrics: hears of every row of ``metrics.jsonl``; see ``folder.MetricsWriter``.
    """

    clock: Clock = dataclasses.field(default_factory=Clock)
    interruption: Interruption = dataclasses.field(default_factory=Interruption)
    lock: RunLock | None = None
    on_metrics: OnMetrics | None = None


class Recorder:
    """Context that logs, saves and chooses the best; on leaving it finishes saves and accounts.

    Args:
        experiment: what is trained.
        folder: of the run.
        checkpoints: of the run.
        start: where the run goes on.
        supervision: its clock, its signals and its lock.

    Attributes:
        step: updates so far, some of which may be under way.
        best: of the best checkpoint, see ``resume.best_of``.
        loss: mean training loss since the last row, or of it; nan before the first step.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        checkpoints: Checkpoints,
        start: Start,
        supervision: Supervision,
    ):
        self.step, self.best, self.loss = start.step, start.best, math.nan
        self._train, self._identity = experiment.train, start.identity
        self._folder, self._checkpoints = folder, checkpoints
        # Metrics of each step since the last row; the time of steps of an earlier start is unknown.
        self._window = [dict(row) for row in start.window]
        self._clips, self._seconds = 0, 0.0
        self._clock, self._interruption = supervision.clock, supervision.interruption
        self._clock.first_step = self._clock.step = start.step
        self._saved_step, self._saved_at = start.step, time.perf_counter()
        self._has_work = start.evaluate or not self.done
        self._progress = Progress(start.step, self._train.total_steps)
        self._writer = MetricsWriter(folder, start.step, supervision.on_metrics)
        self._exit = contextlib.ExitStack()
        for record in supervision.lock.account() if supervision.lock else ():
            if "last_step" in record:  # it was killed before it could account for itself
                known = {key: record[key] for key in self._clock.row() if key in record}
                self._writer.write(record["last_step"], goodput.KIND, {**known, "ended": "killed"})
        self._interruption.before_leaving = self._before_leaving

    def __enter__(self) -> "Recorder":
        # Last in, first out. A save may be under way also after an error, and its own error counts.
        self._exit.callback(self._writer.close)
        self._exit.push(self._account_on_exit)
        self._exit.callback(self._progress.close)
        self._exit.callback(self._checkpoints.finish)
        self._exit.callback(self._clock.enter, "save")
        return self

    def __exit__(self, *error: Any) -> None:
        self._exit.__exit__(*error)

    @property
    def stopped_early(self) -> bool:
        """Whether nothing became better for as long as ``config.train.early_stopping`` says."""
        return self._train.stops_early(self.step, self.best["step"])

    @property
    def done(self) -> bool:
        """Whether no step is left to do; asked after an evaluation that was due."""
        return self.step >= self._train.total_steps or self.stopped_early

    def due(self, step: int) -> Due:
        """What is due after ``step`` updates now."""
        return self._train.due(step, seconds_since_save=time.perf_counter() - self._saved_at)

    def add(self, results: Iterable[tuple[int, list[str], dict[str, float]]]) -> None:
        """Take in step, cases and metrics of steps.

        Raises:
            UserError: the loss or the gradient is not finite; ``non_finite.json`` has the cases.
        """
        for step, cases, row in results:
            if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
                self._refuse(step, cases, row)
            self._window.append(row)

    def _refuse(self, step: int, cases: list[str], row: dict[str, float]) -> None:
        values = {key: value if math.isfinite(value) else str(value) for key, value in row.items()}
        about = {"step": step, "cases": cases, "metrics": values}
        with contextlib.suppress(UserError):  # the message below says the same
            if distributed.is_first():
                path = self._folder.path / NON_FINITE
                write_json(path, {**about, "last_checkpoint": self._saved_step})
        raise UserError(
            f"step {step}: loss {row['loss']} and gradient norm {row['grad_norm']} are not finite "
            f"(cases {', '.join(cases)})",
            "lower config.optimizer.learning_rate or set config.optimizer.clip_norm; the last "
            f"checkpoint is kept, and {NON_FINITE} has the cases",
            exit_code=EXIT_NON_FINITE,
        )

    def advance(self, step: int, seconds: float) -> None:
        """Move on to a step that was dispatched, ``seconds`` after the one before."""
        self._clips += (step - self.step) * self._train.batch_size
        self._seconds += seconds
        self.step = self._clock.step = step
        if self._window:
            self.loss = self._mean("loss")
            self._progress.advance(step, self._clips / self._seconds, self.loss)

    def _mean(self, key: str) -> float:
        return float(np.mean([row[key] for row in self._window]))

    def log(self, learning_rate: float) -> None:
        """Write the row of training metrics, and begin a new window.

        Raises:
            UserError: it cannot be written.
        """
        with self._clock.during("log"):
            speed = self._clips / self._seconds
            values = {key: self._mean(key) for key in self._window[0]}
            values |= {"learning_rate": learning_rate, "clips_per_second": speed}
            self._writer.write(self.step, "train", values)
            self._progress.log(speed, self._train.batch_size, self.loss)
            self._window.clear()
            self._clips, self._seconds = 0, 0.0

    def save(self, state: TrainState) -> None:
        """Start saving the whole state, and what of the window is done, unless it was saved.

        Raises:
            UserError: an earlier save failed, or the state is not finite.
        """
        if self.step == self._saved_step:
            return
        with self._clock.during("save"):
            self._writer.sync()
            about = {"best": self.best, "window": list(self._window)}
            self._checkpoints.save_latest(state, {**self._identity, **about})
        self._saved_step, self._saved_at = self.step, time.perf_counter()
        self._interruption.safe = True

    def wait_for_saves(self) -> None:
        """Wait for saves under way, so that at most one save interval is ever at stake.

        Raises:
            UserError: a save failed.
        """
        with self._clock.during("save"):
            self._checkpoints.wait()

    def evaluate(self, state: TrainState, validate: Callable[[Any], Mapping[str, float]]) -> None:
        """Evaluate a state that was saved, and keep it where it is the best so far.

        Raises:
            UserError: the row cannot be written, or a save failed.
        """
        self._clock.enter("validation")
        result = validate(state.eval_variables())
        self._clock.enter("log")
        self._writer.write(self.step, "validation", result)
        values = "  ".join(f"{key} {value:.4f}" for key, value in result.items())
        self._progress.line(f"step {self.step}: validation {values}")
        found = best_of(self.step, result, self._train.best_metric)
        if is_better(found, self.best):
            self.best = found
            with self._clock.during("save"):
                self._checkpoints.save_best(state, {**self._identity, **self.best})
        elif self.stopped_early:
            self._progress.line(
                f"stopped early: {self._train.best_metric} was not better than at step "
                f"{self.best['step']} in {self._train.early_stopping} evaluations"
            )

    def summary(self) -> dict[str, Any]:
        """'step', 'loss', 'best_step', 'best_auc' and 'stopped_early'; nan where undefined."""
        auc = self.best["auc"] if self.best["auc"] >= 0 else math.nan
        return {
            "step": self.step,
            "loss": self.loss,
            "best_step": self.best["step"],
            "best_auc": auc,
            "stopped_early": self.stopped_early,
        }

    def _account(self, ended: str) -> None:
        """Write where the time of this start went; a start without any work is only described."""
        row = {**self._clock.row(), "ended": ended}
        if self._has_work:
            self._writer.write(self.step, goodput.KIND, row)
        starts = self._folder.starts()
        self._progress.line(goodput.describe(starts if self._has_work else [*starts, row]))

    def _account_on_exit(self, kind: type[BaseException] | None, *_: object) -> None:
        ended = "finished" if kind is None else "failed"
        if kind is not None and issubclass(kind, RunInterrupted):
            ended = "interrupted"
        # An error that is under way is the one to report; a full disk takes no last row either.
        with contextlib.suppress(UserError):
            self._account(ended)

    def _before_leaving(self) -> None:
        self._checkpoints.wait()
        self._account("interrupted")
