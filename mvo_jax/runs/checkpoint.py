"""Checkpoints with orbax: the latest states to resume from, and the best variables to evaluate.

    checkpoints/latest/STEP/    whole state           checkpoints/best/STEP/    variables
        arrays/     orbax
        meta/       JSON: format, kind, step, and what the caller keeps beside the arrays
        seal.json   size and CRC-32 of every file above, and one hash of all that; written last

orbax restores flipped bits without an error and takes an empty folder for a step. So a step counts
with its seal only, and is read when every file agrees with it.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from flax.serialization import from_state_dict, to_state_dict
from flax.traverse_util import flatten_dict, unflatten_dict

from mvo_jax.devices import distributed
from mvo_jax.errors import EXIT_DAMAGED, EXIT_NON_FINITE, UserError
from mvo_jax.files import cannot_write, replace_file

PyTree = Any
TrainState = Any  # training.state.TrainState, of a floor above
FORMAT = 3
_READABLE = (2, FORMAT)  # 2 had hashes in the metadata too, 1 had no seal
SEAL = "seal.json"
_BLOCK = 1 << 20

log = logging.getLogger(__name__)


def _to_tree(value: PyTree, name: str) -> dict[str, Any]:
    """Nested dict of host copies of the arrays; empty nodes left out.

    A state with a NaN must not push a good one out: it is refused.
    """
    flat: dict[Any, Any] = flatten_dict(to_state_dict(value))
    # Copied: on a CPU the host view of an array is the array's own memory, which the next step is
    # free to overwrite while a thread still saves it.
    arrays = {key: np.array(leaf) for key, leaf in flat.items() if leaf is not None}
    for key, array in arrays.items():
        # Of a dtype without NaN everything is finite.
        if array.dtype.kind not in "biu" and not np.isfinite(array).all():
            raise UserError(
                f"{'/'.join(key)} is not finite, so {name} is not saved",
                "lower config.optimizer.learning_rate or set config.optimizer.clip_norm; the last "
                "checkpoint is kept",
                exit_code=EXIT_NON_FINITE,
            )
    return unflatten_dict(arrays)


def _content_hash(seal: Mapping[str, Any]) -> str:
    """SHA-256 of a seal's content without its 'sha256': names, sizes and hashes of all files."""
    rest = {key: value for key, value in seal.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _file_hash(path: Path) -> list[int]:
    """[bytes, CRC-32] of a file: finds every burst of 32 bits, at three times SHA-256's speed."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def _seal(folder: Path) -> None:
    """Put everything on disk, then write the seal, whole or not at all."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in [*paths, *{path.parent for path in paths}, folder.parent]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    files = {path.relative_to(folder).as_posix(): _file_hash(path) for path in paths}
    seal: dict[str, Any] = {"format": FORMAT, "files": files}
    seal["sha256"] = _content_hash(seal)
    replace_file(folder / SEAL, json.dumps(seal, indent=1) + "\n")


def _damage(folder: Path) -> str | None:
    """How the files of a checkpoint differ from those that were sealed; None where they do not."""
    try:
        seal = json.loads((folder / SEAL).read_text())
        files, intact = seal["files"], seal["sha256"] == _content_hash(seal)
    except FileNotFoundError:
        return f"it has no {SEAL}: its save has not ended"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{SEAL} cannot be read"
    if not intact:
        return f"{SEAL} is not what was written"
    for name, expected in files.items():
        try:
            if _file_hash(folder / name) != expected:
                return f"{name} is not what was saved"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def _manager(folder: Path, *, writes: bool) -> ocp.CheckpointManager:
    # orbax reports saves and restores in detail, and what it raises by a traceback of each thread.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    own = distributed.index()
    # Every process has the whole state, so one writes it and each reads it without the others.
    # Otherwise orbax waits for all processes in every save and restore, and its threads may cross.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )
    return ocp.CheckpointManager(
        folder,
        item_handlers={
            "arrays": ocp.StandardCheckpointHandler(multiprocessing_options=alone),
            "meta": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        },
        options=ocp.CheckpointManagerOptions(
            create=False,
            read_only=not writes,
            cleanup_tmp_directories=writes,
            lightweight_initialize=True,  # reads nothing of steps that may be damaged
            # The thread of ``Checkpoints`` saves, seals and removes: one order of all three.
            enable_async_checkpointing=False,
            multiprocessing_options=alone,
        ),
    )


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read and verified: nested numpy arrays and what was saved with them."""

    arrays: dict[str, Any]
    meta: dict[str, Any]
    path: Path

    def fill(self, template: PyTree) -> PyTree:
        """The arrays in a template's structure.

        Raises:
            UserError: names, shapes or dtypes differ from the template's.
        """
        wanted: dict[Any, Any] = flatten_dict(to_state_dict(template), keep_empty_nodes=True)
        found: dict[Any, Any] = flatten_dict(self.arrays)
        ours, theirs = (
            {key: f"{one.dtype}{one.shape}" for key, one in flat.items() if hasattr(one, "shape")}
            for flat in (found, wanted)
        )
        problems = [
            f"{'/'.join(key)} is {ours.get(key, 'missing')}, not {theirs.get(key, 'expected')}"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise UserError(
                f"{self.path} does not fit the model: {'; '.join(problems[:3])}{more}",
                "was the code or the config changed? Use the revision in provenance.json",
            )
        return from_state_dict(template, unflatten_dict({**wanted, **found}))


class Checkpoints:
    """Checkpoints of one run: the ``keep_latest`` newest, and the best one.

    Saves are written one after the other by a thread; what goes wrong there is raised by the next
    call. A kill at any moment leaves the checkpoints before it whole. Of several processes the
    first one writes; all of them must call the same methods in the same order.

    Args:
        folder: the run's folder.
        create: make the folders, and clear away what a kill left; False to read only.
        keep_latest: at least 1.

    Raises:
        UserError: there are no checkpoints to read, or the folder cannot be written.
    """

    def __init__(self, folder: Path, *, create: bool, keep_latest: int = 2):
        self._root, self._keep = folder / "checkpoints", {"latest": keep_latest, "best": 1}
        self._writes = create and distributed.is_first()
        if not create and not (self._root / "latest").is_dir():
            raise UserError(
                f"{folder} has no checkpoints", "train first, or name the folder of a run"
            )
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending: list[concurrent.futures.Future[None]] = []
        self._managers: dict[str, ocp.CheckpointManager] = {}
        for kind in self._keep:
            try:
                if self._writes:
                    (self._root / kind).mkdir(parents=True, exist_ok=True)
                self._managers[kind] = _manager(self._root / kind, writes=self._writes)
                if self._writes:
                    self._clear_unsealed(kind)
            except OSError as error:
                raise cannot_write(self._root / kind, error) from error

    def steps(self, kind: str) -> list[int]:
        """Steps of the 'latest' or 'best' checkpoints that are there, damaged or not, in order."""
        folder = self._root / kind
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(name) for name in names if name.isdecimal())

    def latest_step(self) -> int | None:
        """Step of the newest resumable state; None when there is none."""
        return max(self._steps_seen_first("latest"), default=None)

    def best_meta(self) -> dict[str, Any] | None:
        """What was saved beside the best variables so far; None without any; raises as ``read``."""
        return self.read("best").meta if self._steps_seen_first("best") else None

    def _steps_seen_first(self, kind: str) -> list[int]:
        """Steps that the first process sees, which may be about to move a damaged one aside."""
        return json.loads(distributed.exchange(json.dumps(self.steps(kind)))[0])

    def save_latest(self, state: TrainState, meta: Mapping[str, Any] | None = None) -> None:
        """Start saving the whole state, and JSON content beside it; returns before it is on disk.

        The state may be on the devices; it is copied. What was saved before is on disk first: a run
        resumed from this state must find the best up to its step.

        Raises:
            UserError: an earlier save failed, or the state is not finite.
        """
        self._save("latest", int(state.step), state, meta or {})

    def save_best(self, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Start saving the variables to evaluate with, as ``save_latest`` does."""
        self._save("best", int(state.step), state.eval_variables(), meta)

    def wait(self) -> None:
        """Wait until everything is on disk; UserError where a save failed, those before it stay."""
        # Two threads may wait: a save is pending until it is done, whoever looks.
        for save in list(self._pending):
            save.result()
        self._pending = [save for save in self._pending if not save.done()]

    def finish(self) -> None:
        """Wait for saves under way and stop the thread; see ``wait`` for what it raises."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()
            for manager in self._managers.values():
                manager.close()

    def read(self, kind: str) -> Restored:
        """The newest 'latest' or 'best' checkpoint that is whole.

        Newer ones are named in the log as damaged and, where checkpoints may be written, renamed to
        ``STEP.damaged``, so that the run can save that step again.

        Raises:
            UserError: there is none, none is whole, or it has another format.
        """
        return distributed.first_then_others(lambda: self._newest_whole(kind))

    def _newest_whole(self, kind: str) -> Restored:
        damaged: dict[int, str] = {}
        for step in reversed(self.steps(kind)):
            restored = self._read(kind, step)
            if isinstance(restored, str):
                damaged[step] = f"the checkpoint {self._path(kind, step)} is damaged: {restored}"
                continue
            for bad, problem in damaged.items():
                log.warning(f"{problem}; falling back to the one of step {step}")
                if self._writes:
                    self._move_aside(kind, bad)
            return restored
        if not damaged:
            raise UserError(
                f"{self._root / kind} holds no checkpoint",
                "train until the first validation, or choose another --checkpoint",
            )
        problem, *others = damaged.values()
        problem += f", and so are {len(others)} older ones" if others else ""
        remedy = {
            "latest": "restore that folder from a copy, or move it away to start anew",
            "best": "restore that folder from a copy, evaluate with --checkpoint=latest, or move "
            "it away: training then keeps the best of the validations to come",
        }
        raise UserError(problem, remedy[kind], exit_code=EXIT_DAMAGED)

    def _read(self, kind: str, step: int) -> Restored | str:
        """One checkpoint, verified, or how it is damaged; UserError for another format."""
        path = self._path(kind, step)
        if damage := _damage(path):
            return damage
        try:
            # Without a template: given one, orbax casts and reshapes to it without a word. The
            # arrays were saved from host memory and come back there, whatever devices saved them.
            items = {"arrays": ocp.args.StandardRestore(), "meta": ocp.args.JsonRestore()}
            restored: Any = self._managers[kind].restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax and tensorstore raise many kinds
            return f"it cannot be read: {error!r:.200}".partition("\n")[0]
        meta = restored.meta
        if meta["format"] not in _READABLE:
            age = "older" if meta["format"] < FORMAT else "newer"
            cause = f"the checkpoint {path} has format {meta['format']}, not {FORMAT}"
            raise UserError(cause, f"use the {age} revision named in provenance.json")
        if (meta["kind"], meta["step"]) != (kind, step):
            return f"it is {meta['kind']}/{meta['step']} under another name"
        return Restored(restored.arrays, meta, path)

    def restore_latest(self, template: TrainState) -> TrainState:
        """The newest whole state, as numpy arrays; raises as ``read`` and ``Restored.fill``."""
        return self.read("latest").fill(template)

    def restore_variables(self, template: TrainState, which: str) -> tuple[PyTree, int]:
        """{'params', 'batch_stats'} of 'best' or 'latest' as numpy arrays, and their step.

        Raises as ``restore_latest``.
        """
        restored = self.read(which)
        if which == "latest":
            return restored.fill(template).eval_variables(), restored.meta["step"]
        return restored.fill(template.eval_variables()), restored.meta["step"]

    def _save(self, kind: str, step: int, value: PyTree, meta: Mapping[str, Any]) -> None:
        if not self._writes:
            return
        if len(self._pending) > 1:  # each holds a copy of the state
            self.wait()
        tree = _to_tree(value, f"{kind}/{step}")
        about = {**meta, "format": FORMAT, "kind": kind, "step": step}
        about = json.loads(json.dumps(about))  # as it is read: tuples become lists
        self._pending.append(self._worker.submit(self._write, kind, step, tree, about))

    def _write(self, kind: str, step: int, tree: dict[str, Any], meta: dict[str, Any]) -> None:
        """In the thread: one checkpoint from arrays to seal, then the old ones go."""
        path = self._path(kind, step)
        try:
            if path.exists():  # the run was resumed from before it
                self._remove(kind, step)
            items = {"arrays": ocp.args.StandardSave(tree), "meta": ocp.args.JsonSave(meta)}
            self._managers[kind].save(step, args=ocp.args.Composite(**items), force=True)
            _seal(path)
            # ``max_to_keep`` would remove the old ones before the new one has its seal.
            others = [other for other in self.steps(kind) if other != step]
            for old in others[::-1][self._keep[kind] - 1 :]:
                self._remove(kind, old)
        except Exception as error:  # orbax and tensorstore raise many kinds
            if not (path / SEAL).exists():  # half a checkpoint would keep what is left of the disk
                for left in (path, *path.parent.glob(f"{step}.orbax-checkpoint-tmp*")):
                    shutil.rmtree(left, ignore_errors=True)
            raise cannot_write(path, error) from error

    def _remove(self, kind: str, step: int) -> None:
        """Its seal first: half a checkpoint must not pass for a whole one."""
        (self._path(kind, step) / SEAL).unlink(missing_ok=True)
        self._managers[kind].delete(step)

    def _move_aside(self, kind: str, step: int) -> None:
        moved = self._root / kind / f"{step}.damaged"
        shutil.rmtree(moved, ignore_errors=True)
        self._path(kind, step).rename(moved)
        self._managers[kind].reload()

    def _clear_unsealed(self, kind: str) -> None:
        """Saves that a kill cut short have no seal yet, removals none any more.

        Several without a whole one beside them are no work of a kill; ``read`` refuses them.
        """
        steps = self.steps(kind)
        unsealed = [step for step in steps if not (self._path(kind, step) / SEAL).exists()]
        if unsealed and len(unsealed) < len(steps):
            log.warning(f"removing {kind} checkpoints that were cut short: steps {unsealed}")
            for step in unsealed:
                self._remove(kind, step)
        elif len(unsealed) == 1:  # the first save of a run, or a copy that lacks its seal
            log.warning(f"{self._path(kind, unsealed[0])} has no {SEAL} and is moved aside")
            self._move_aside(kind, unsealed[0])

    def _path(self, kind: str, step: int) -> Path:
        return self._root / kind / str(step)
