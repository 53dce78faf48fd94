"""A profile of a few training steps, for TensorBoard or XProf."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

log = logging.getLogger(__name__)
_WARM_UP = 2  # dispatches before the trace: the first one compiles


class TracedSteps:
    """Calls ``run_steps`` and records some of its steps.

    Args:
        run_steps: ``(state, indices [K, B]) -> (state, metrics)``.
        first: number of the first step that will be run.
        steps: steps to record, rounded up to whole dispatches; 0 for none.
        folder: where the trace goes: 'plugins/profile/TIME' below it.
    """

    def __init__(
        self,
        run_steps: Callable[[Any, np.ndarray], tuple[Any, Any]],
        *,
        first: int,
        steps: int,
        folder: Path,
    ):
        self._run_steps = run_steps
        self._step, self._wanted, self._folder = first, steps, folder
        self._calls = self._recorded = 0
        self._running = False

    def __call__(self, state: Any, indices: np.ndarray) -> tuple[Any, Any]:
        """As ``run_steps``; waits for the device where a trace begins or ends."""
        if self._wanted and self._calls == _WARM_UP:
            jax.block_until_ready(state)  # what is under way belongs to earlier steps
            jax.profiler.start_trace(self._folder)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=self._step):
            state, metrics = self._run_steps(state, indices)
        self._calls += 1
        self._step += len(indices)
        if self._running:
            self._recorded += len(indices)
            if self._recorded >= self._wanted:
                jax.block_until_ready(metrics)
                self._stop()
        return state, metrics

    def close(self) -> None:
        """End a trace that the run did not fill, and say so."""
        if self._running:
            self._stop()
        elif self._wanted and not self._recorded:
            log.warning(
                f"no step was traced: the run ended within {_WARM_UP} dispatches, which are "
                "left out because the first one compiles"
            )

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running = False
        log.info(
            f"traced steps {self._step - self._recorded + 1} to {self._step}: {self._folder} "
            "(tensorboard --logdir, or xprof)"
        )
