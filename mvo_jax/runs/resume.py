"""Going on with a run: what its newest checkpoint is of, and where its next start begins."""

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from mvo_jax.devices import computation, distributed
from mvo_jax.errors import UserError
from mvo_jax.runs.checkpoint import Checkpoints
from mvo_jax.runs.folder import RunFolder, config_changes

log = logging.getLogger(__name__)
NO_BEST = {"step": -1, "auc": -2.0, "score": None}
_LESS_IS_BETTER = ("brier", "loss")


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run is of: a checkpoint of anything else is refused, unless that is allowed."""

    config: Mapping[str, Any]  # resolved
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)  # hashes of the splits
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # see ``computation``
    rounding: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # see ``computation``
    allow_config_change: bool = False
    allow_data_change: bool = False
    allow_settings_change: bool = False

    def meta(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: JSON content."""
        kept = ("config", "data", "settings", "rounding")
        return json.loads(json.dumps({name: getattr(self, name) for name in kept}))

    def check(self, meta: Mapping[str, Any]) -> dict[str, list[str]]:
        """What a checkpoint keeps otherwise and is no reason to stop, for ``provenance.json``.

        Raises:
            UserError: it is of another config, of other data or of other settings, which is not
                allowed; every difference is listed.
        """
        # A checkpoint written through the library may say nothing of them.
        config = config_changes(meta.get("config") or self.config, self.config)
        before = meta.get("data") or {}
        data = [
            f"{name} {before[name][:12]} -> {now[:12]}"
            for name, now in self.data.items()
            if name in before and before[name] != now
        ]
        # Checkpoints of earlier revisions do not say under what they were computed.
        settings = computation.changes(meta.get("settings") or {}, self.settings)
        for what, changes, flag in (
            ("config", config, "allow_config_change"),
            ("content of the data", data, "allow_data_change"),
            ("setting of JAX", settings, "allow_settings_change"),
        ):
            if changes and not getattr(self, flag):
                raise UserError(
                    f"the checkpoint is of another {what} ({'; '.join(changes)})",
                    "restore what it was trained with, choose another --workdir, or go on with "
                    f"--{flag}",
                )
            if changes:
                _warn(f"going on under another {what}: {'; '.join(changes)}")
        rounding = computation.changes(meta.get("rounding") or {}, self.rounding)
        if rounding:
            _warn(f"going on where results round otherwise: {'; '.join(rounding)}")
        found = {"settings_changes": settings, "rounding_changes": rounding}
        return {name: changes for name, changes in found.items() if changes}


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a start of a run begins."""

    identity: Mapping[str, Any]  # of the run, as each checkpoint keeps it
    state: Any = None  # restored, as numpy arrays; None where the run begins from its seed
    step: int = 0  # updates done
    # Of the best checkpoint so far, see ``best_of``.
    best: Mapping[str, Any] = dataclasses.field(default_factory=lambda: dict(NO_BEST))
    evaluate: bool = False  # whether the state is still to be evaluated
    window: tuple[Mapping[str, float], ...] = ()  # metrics since the last training row of the log


def resume(
    folder: RunFolder,
    checkpoints: Checkpoints,
    identity: Identity,
    shapes: Callable[[], Any],
    *,
    is_evaluated: Callable[[int], bool],
    metric: str,
) -> Start:
    """Restore the newest checkpoint that is whole, and drop the metrics of what will be repeated.

    Args:
        folder: of the run.
        checkpoints: of the run.
        identity: what the checkpoint must be of.
        shapes: makes the shapes of the state.
        is_evaluated: whether a step is one to evaluate.
        metric: by which the best is chosen, ``config.train.best_metric``.

    Raises:
        UserError: a checkpoint is damaged, of something else, or does not fit the model.
    """
    if checkpoints.latest_step() is None:
        folder.forget_after(0)
        return Start(identity.meta())
    restored = checkpoints.read("latest")
    meta = restored.meta
    if changes := identity.check(meta):
        folder.note(changes)
    state, step = restored.fill(shapes()), meta["step"]
    best, evaluate = _best_that_is_kept(checkpoints, meta, metric), is_evaluated(step)
    # The state is saved before it is evaluated, so its evaluation may be missing.
    for row in folder.history() if evaluate else ():
        if (row["step"], row["kind"]) == (step, "validation"):
            found = best_of(step, row, metric)
            better = is_better(found, best)
            # Logged, and killed before the best was saved: evaluated again.
            evaluate = better and max(checkpoints.steps("best"), default=-1) < step
            if better and not evaluate:
                best = found
    # All do what the first one finds: it may be changing the files that the others look at.
    best, evaluate = json.loads(distributed.exchange(json.dumps([best, evaluate]))[0])
    folder.forget_after(step, evaluation=evaluate)
    return Start(identity.meta(), state, step, best, evaluate, tuple(meta.get("window", ())))


def best_of(step: int, row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """What is kept of a state that may be the best one, from its row of validation metrics.

    Returns:
        'step', 'auc' (-1 where it is undefined), 'metric', and 'score': its value, turned so that
        more is better; None where it is undefined.
    """
    auc, score = (
        None if value is None or math.isnan(value) else float(value)
        for value in (row.get("auc"), row.get(metric))
    )
    if score is not None and metric in _LESS_IS_BETTER:
        score = -score
    return {"step": step, "auc": -1.0 if auc is None else auc, "metric": metric, "score": score}


def is_better(found: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
    """Whether a state replaces the best, both as ``best_of`` has them.

    Where the metric is not defined, the newest does.
    """
    score, before = found["score"], best["score"]
    return before is None or (score is not None and score > before)


def _best_that_is_kept(
    checkpoints: Checkpoints, meta: Mapping[str, Any], metric: str
) -> dict[str, Any]:
    """The best up to a checkpoint, if it can still be evaluated."""
    best = dict(meta.get("best") or NO_BEST)
    if best["step"] < 0:
        return best
    kept = checkpoints.best_meta() if best["metric"] == metric else None
    # A newer one is at least as good, and this run is going to find it again.
    if kept is not None and kept["step"] >= best["step"]:
        return best
    why = "is missing" if best["metric"] == metric else f"was chosen by {best['metric']}"
    _warn(
        f"the best checkpoint, of step {best['step']}, {why}; the best by {metric} of the "
        "validations to come will be kept"
    )
    return dict(NO_BEST)


def _warn(text: str) -> None:
    if distributed.is_first():
        log.warning(text)
