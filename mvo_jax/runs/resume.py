"""Going on with a run: what its newest checkpoint is of, and where it stands."""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from mvo_jax.devices import distributed
from mvo_jax.errors import UserError
from mvo_jax.runs.checkpoint import Checkpoints
from mvo_jax.runs.folder import RunFolder, config_changes

NO_BEST = {"step": -1, "auc": -2.0}  # less than any AUC, and than the -1 of an undefined one


def check_identity(
    meta: Mapping[str, Any],
    identity: Mapping[str, Any],
    allow_config_change: bool,
    allow_data_change: bool,
) -> None:
    """Refuse, or tell, that a checkpoint is of another config or of other data."""
    # A checkpoint written through the library may say nothing of them.
    config = config_changes(meta.get("config") or identity["config"], identity["config"])
    before = meta.get("data") or {}
    data = [
        f"{name} {before[name][:12]} -> {now[:12]}"
        for name, now in identity["data"].items()
        if name in before and before[name] != now
    ]
    for what, changes, allowed, flag in (
        ("config", config, allow_config_change, "--allow_config_change"),
        ("content of the data", data, allow_data_change, "--allow_data_change"),
    ):
        if changes and not allowed:
            raise UserError(
                f"the checkpoint is of another {what} ({'; '.join(changes)})",
                f"restore what it was trained with, choose another --workdir, or go on with {flag}",
            )
        if changes:
            _tell(f"going on under another {what}: {'; '.join(changes)}")


def _tell(text: str) -> None:
    if distributed.is_first():
        print(text, file=sys.stderr)


def comparable(auc: float | None) -> float:
    """An AUC as a number that orders: -1 where it is undefined."""
    return -1.0 if auc is None or math.isnan(auc) else float(auc)


def is_better(auc: float | None, best: Mapping[str, Any]) -> bool:
    """Whether a state replaces the best; where no AUC is defined, the newest does."""
    value = comparable(auc)
    return value > best["auc"] or value == best["auc"] == -1.0


def _best_of(checkpoints: Checkpoints, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The best up to a checkpoint, if it can still be evaluated."""
    best = dict(meta.get("best") or NO_BEST)
    if best["step"] < 0:
        return dict(NO_BEST)
    there = checkpoints.best_meta()
    # A newer one is at least as good, and this run is going to find it again.
    if there is None or there["step"] < best["step"]:
        _tell(
            f"the best checkpoint, of step {best['step']}, is missing; the best of the validations "
            "to come will be kept"
        )
        return dict(NO_BEST)
    return best


def where_it_stands(
    folder: RunFolder, checkpoints: Checkpoints, meta: Mapping[str, Any], step: int, due: bool
) -> tuple[dict[str, Any], bool]:
    """The best so far, and whether a restored state is still to be evaluated.

    The state is saved before it is evaluated, so its evaluation may be missing. All processes do
    what the first one finds: it may be changing the files that the others look at.

    Args:
        folder: of the run.
        checkpoints: of the run.
        meta: of the restored state.
        step: its step.
        due: whether that step is one to evaluate.
    """
    best, evaluate = _best_of(checkpoints, meta), due
    for row in folder.history():
        if due and (row["step"], row["split"]) == (step, "validation"):
            better = is_better(row["auc"], best)
            # Logged, and killed before the best was saved: evaluated again.
            evaluate = better and max(checkpoints.steps("best"), default=-1) < step
            if better and not evaluate:
                best = {"step": step, "auc": comparable(row["auc"])}
    return tuple(json.loads(distributed.exchange(json.dumps([best, evaluate]))[0]))


def logged_rows(folder: RunFolder, step: int) -> int:
    """How many rows of the log of metrics were logged before the checkpoint of a step."""
    return sum(
        row["split"] == "train" or (row["split"] == "validation" and row["step"] < step)
        for row in folder.history()
    )


def tell_of_missing_rows(folder: RunFolder, step: int, saved: int | None) -> None:
    """Say so if the file holds fewer rows than the checkpoint of ``step`` counted."""
    rows = logged_rows(folder, step)
    if saved is not None and rows < saved:
        _tell(
            f"{folder.metrics_path} holds {rows} of the {saved} rows that were logged up to step "
            f"{step}: it was changed or damaged; the run itself is whole"
        )
