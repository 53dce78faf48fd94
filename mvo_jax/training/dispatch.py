"""Training steps in dispatches: several in one program, the next one sent before one has ended."""

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mvo_jax.data.splits import AnySplit
from mvo_jax.training.optim import learning_rate_schedule
from mvo_jax.training.programs import make_run_steps
from mvo_jax.training.recorder import Supervision
from mvo_jax.training.setup import Experiment
from mvo_jax.training.state import TrainState
from mvo_jax.training.trace import TracedSteps

_MOST_IN_FLIGHT = 2


class Dispatches:
    """Runs steps and gives back their metrics later, so that the device need not wait.

    Args:
        experiment: what is trained.
        split: training cases.
        first: updates done before.
        supervision: its clock hears of compilation and steps, its interruption that steps are
            at stake.
        profile_steps: steps to trace; 0 for none.
        profile_folder: where the trace goes.
    """

    def __init__(
        self,
        experiment: Experiment,
        split: AnySplit,
        first: int,
        supervision: Supervision,
        profile_steps: int,
        profile_folder: Path,
    ):
        self._experiment, self._split, self._supervision = experiment, split, supervision
        # On a CPU dispatch costs nothing and convolution gradients inside a scan are slow.
        self._on_cpu = jax.default_backend() == "cpu"
        self._longest = experiment.train.steps_per_dispatch or (1 if self._on_cpu else 20)
        steps = range(first, experiment.train.total_steps)
        run_steps = make_run_steps(experiment, split, steps, self._longest, supervision.clock)
        self._run_steps = TracedSteps(
            run_steps, first=first, steps=profile_steps, folder=profile_folder
        )
        self._rate = learning_rate_schedule(experiment.optimiser_settings)
        self._in_flight: collections.deque[tuple[int, np.ndarray, Any]] = collections.deque()
        self._compiled: set[int] = set()

    def run(self, state: TrainState, step: int) -> tuple[TrainState, int]:
        """Dispatch the steps up to the one after which something is due.

        Args:
            state: after ``step`` updates; its memory is reused.
            step: fewer than ``config.train.total_steps``.

        Returns:
            The state to come, and its step.
        """
        stop = self._experiment.train.next_stop(step, longest=self._longest)
        cases = len(self._split)
        indices = np.stack([self._experiment.draw(cases, k) for k in range(step, stop)])
        clock, interruption = self._supervision.clock, self._supervision.interruption
        if len(indices) in self._compiled:
            clock.enter("step")
            interruption.safe = False
        else:
            clock.enter("compile")
        state, metrics = self._run_steps(state, indices)
        interruption.safe = False
        clock.enter("step")
        self._compiled.add(len(indices))
        self._in_flight.append((step, indices, metrics))
        return state, stop

    def results(self, *, settle: bool) -> Iterator[tuple[int, list[str], dict[str, float]]]:
        """Step, cases and metrics of what has ended, in order.

        Args:
            settle: wait for everything that was dispatched; otherwise some may stay under way.
        """
        most = 0 if settle or self._on_cpu else _MOST_IN_FLIGHT
        while len(self._in_flight) > most:
            first, indices, metrics = self._in_flight.popleft()
            metrics = {key: np.asarray(value, np.float64) for key, value in metrics.items()}
            for offset, cases in enumerate(indices):
                row = {key: float(value[offset]) for key, value in metrics.items()}
                yield first + offset + 1, [self._split.case_id[i] for i in cases], row

    def learning_rate(self, step: int) -> float:
        """Of the last of ``step`` updates."""
        return float(np.asarray(self._rate(step - 1)))

    def close(self) -> None:
        """End a trace that is under way."""
        self._run_steps.close()
