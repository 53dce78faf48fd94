"""At which steps a run logs, saves, evaluates and stops: pure functions of the step and the config.

Rows and checkpoints of step k are written after k updates.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Due:
    """What is due after a step: a row of training metrics, a checkpoint, an evaluation."""

    log: bool
    save: bool
    evaluate: bool


def due(step: int, options: Any, *, seconds_since_save: float = 0.0) -> Due:
    """What is due after ``step`` updates.

    A state is saved before it is evaluated, and what was trained up to there is logged.

    Args:
        step: updates done.
        options: ``config.train``.
        seconds_since_save: how long ago the last checkpoint was begun.
    """
    evaluate = step > 0 and (step % options.eval_every == 0 or step == options.total_steps)
    late = 0 < options.save_every_seconds < seconds_since_save
    regular = options.save_every > 0 and step % options.save_every == 0
    return Due(
        log=evaluate or step % options.log_every == 0,
        save=evaluate or late or regular,
        evaluate=evaluate,
    )


def next_stop(step: int, options: Any, *, longest: int) -> int:
    """The step at which a dispatch that begins after ``step`` updates must end.

    Args:
        step: updates done; fewer than ``options.total_steps``.
        options: ``config.train``.
        longest: most steps of one dispatch.
    """
    intervals = (options.log_every, options.eval_every, options.save_every)
    stops = [step + every - step % every for every in intervals if every]
    return min(*stops, options.total_steps, step + longest)
