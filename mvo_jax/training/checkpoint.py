"""Checkpoints with orbax: the latest state to resume from, and the best variables to evaluate."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import numpy as np
import orbax.checkpoint as ocp

from mvo_jax.errors import UserError
from mvo_jax.training.state import TrainState

PyTree = Any


def _to_tree(value: PyTree) -> dict[str, Any]:
    """Nested dict of host copies of the arrays; empty nodes left out.

    Copied, because on a CPU the host view of an array is the array's own memory, which the next
    step is free to overwrite while an asynchronous save still reads it.
    """
    flat = flax.traverse_util.flatten_dict(flax.serialization.to_state_dict(value))
    arrays = {key: np.array(leaf) for key, leaf in flat.items() if leaf is not None}
    return flax.traverse_util.unflatten_dict(arrays)


def _digest(tree: Mapping[str, Any]) -> str:
    """SHA-256 over the names and bytes of all arrays.

    orbax restores an array file with a flipped bit without a word.
    """
    digest = hashlib.sha256()
    flat: dict[Any, Any] = flax.traverse_util.flatten_dict(dict(tree))
    for key in sorted(flat):
        digest.update("/".join(key).encode())
        digest.update(np.ascontiguousarray(flat[key]).data)
    return digest.hexdigest()


def _fill(template: PyTree, tree: Mapping[str, Any], source: str) -> PyTree:
    """Put restored arrays into a template's structure; names, shapes and dtypes must agree."""
    state_dict = flax.serialization.to_state_dict(template)
    wanted: dict[Any, Any] = flax.traverse_util.flatten_dict(state_dict, keep_empty_nodes=True)
    leaves = {key: leaf for key, leaf in wanted.items() if hasattr(leaf, "shape")}
    found: dict[Any, Any] = flax.traverse_util.flatten_dict(dict(tree))
    problems = [
        f"{'/'.join(key)} {'missing' if key not in found else 'unexpected'}"
        for key in sorted(leaves.keys() ^ found.keys())
    ] + [
        f"{'/'.join(key)} is {found[key].dtype}{found[key].shape}, not {leaf.dtype}{leaf.shape}"
        for key, leaf in leaves.items()
        if key in found and (found[key].shape, found[key].dtype) != (leaf.shape, leaf.dtype)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{source} does not fit the model: {'; '.join(problems[:3])}{more}",
            "was the code or the config changed? Use the revision in provenance.json",
        )
    filled = flax.traverse_util.unflatten_dict({**wanted, **found})
    return flax.serialization.from_state_dict(template, filled)


class Checkpoints:
    """Checkpoints of one run: ``checkpoints/latest`` (two kept) and ``checkpoints/best`` (one).

    Args:
        folder: the run's folder.
        create: make the folders; False to read only.
    """

    def __init__(self, folder: Path, *, create: bool):
        self._root = folder / "checkpoints"
        # orbax reports every save and restore in detail at level INFO and as absl warnings.
        logging.getLogger("absl").setLevel(logging.ERROR)

        def manager(name: str, keep: int) -> ocp.CheckpointManager:
            return ocp.CheckpointManager(
                self._root / name,
                options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=create),
                item_names=("arrays", "meta"),
            )

        if not create and not (self._root / "latest").is_dir():
            raise UserError(
                f"{folder} has no checkpoints", "train first, or name the folder of a run"
            )
        self._latest, self._best = manager("latest", 2), manager("best", 1)

    def latest_step(self) -> int | None:
        """Step of the newest resumable state; None when there is none."""
        return self._latest.latest_step()

    def best_meta(self) -> dict[str, Any] | None:
        """'step' and 'auc' of the best variables so far; None when there are none."""
        step = self._best.latest_step()
        if step is None:
            return None
        restored = self._restore(self._best, "best", step, meta=ocp.args.JsonRestore())
        return restored["meta"]

    def save_latest(self, state: TrainState) -> None:
        """Start saving the whole state; returns before it is on disk.

        Waits for the best: a run resumed from this state must find the best up to its step.
        """
        self._best.wait_until_finished()
        self._save(self._latest, int(state.step), state, {"step": int(state.step)})

    def save_best(self, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Start saving the variables to evaluate with, and what was measured with them."""
        self._save(self._best, int(state.step), state.eval_variables(), meta)

    def restore_latest(self, template: TrainState) -> TrainState:
        """The newest state, as numpy arrays.

        Raises:
            UserError: there is none, it is damaged, or it does not fit the template.
        """
        return self._restore_into(self._latest, "latest", template)

    def restore_variables(self, template: TrainState, which: str) -> tuple[PyTree, int]:
        """Variables to evaluate with.

        Args:
            template: shapes of the state.
            which: 'best' or 'latest'.

        Returns:
            ({'params', 'batch_stats'} as numpy arrays, their step).

        Raises:
            UserError: there is none, it is damaged, or it does not fit the template.
        """
        if which == "latest":
            state = self.restore_latest(template)
            return state.eval_variables(), int(state.step)
        variables = self._restore_into(self._best, "best", template.eval_variables())
        return variables, int(self._best.latest_step() or 0)

    def finish(self) -> None:
        """Wait for saves under way and close."""
        for manager in (self._latest, self._best):
            manager.wait_until_finished()
            manager.close()

    def _save(
        self, manager: ocp.CheckpointManager, step: int, value: PyTree, meta: Mapping[str, Any]
    ) -> None:
        if step in manager.all_steps():
            # A kill came between saving the best and the latest of one step, and the resumed run
            # is there again. orbax does not overwrite.
            manager.delete(step)
        tree = _to_tree(value)
        args = ocp.args.Composite(
            arrays=ocp.args.StandardSave(tree),
            meta=ocp.args.JsonSave({**meta, "sha256": _digest(tree)}),
        )
        manager.save(step, args=args, force=True)

    def _restore_into(self, manager: ocp.CheckpointManager, name: str, template: PyTree) -> PyTree:
        step = manager.latest_step()
        if step is None:
            raise UserError(
                f"{self._root / name} holds no checkpoint",
                "train until the first validation, or choose another --checkpoint",
            )
        # Without a template: given one, orbax casts and reshapes to it without a word. The arrays
        # were saved from host memory and come back there, whatever devices saved the run.
        restored = self._restore(
            manager, name, step, arrays=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()
        )
        if _digest(restored["arrays"]) != restored["meta"].get("sha256"):
            raise UserError(
                f"the checkpoint {self._root / name / str(step)} is damaged: its arrays are not "
                "those that were saved",
                "move that folder away to go on from the checkpoint before it",
            )
        return _fill(template, restored["arrays"], str(self._root / name / str(step)))

    def _restore(self, manager: ocp.CheckpointManager, name: str, step: int, **items: Any) -> Any:
        try:
            return manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
            path = self._root / name / str(step)
            raise UserError(
                f"the checkpoint {path} cannot be read: {str(error).splitlines()[0][:200]}",
                "move that folder away to go on from the checkpoint before it",
            ) from error
