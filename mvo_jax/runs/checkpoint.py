"""Checkpoints with orbax: the latest states to resume from, and the best variables to evaluate.

    checkpoints/latest/STEP/    whole state           checkpoints/best/STEP/    variables
        arrays/     orbax
        meta/       JSON: format, kind, step, config, data, one hash an array, a hash of all that
        seal.json   size and hash of every file above; written last, when they are on disk

Nothing that is read is believed before its hashes agree: those of the files, that of the metadata
and those of the arrays as decoded.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import numpy as np
import orbax.checkpoint as ocp

from mvo_jax.devices import distributed
from mvo_jax.errors import EXIT_DAMAGED, EXIT_NON_FINITE, UserError
from mvo_jax.files import cannot_write, replace_file

PyTree = Any
TrainState = Any  # training.state.TrainState, of a floor above
FORMAT = 2  # 1 had no seal
SEAL = "seal.json"
_BLOCK = 1 << 20
_ASIDE = ".aside-"  # first part of the name of a folder that is going
_MOVED = ".damaged"


class _Damaged(Exception):
    """A checkpoint is not what was saved; says how."""


def _to_tree(value: PyTree) -> dict[str, Any]:
    """Nested dict of host copies of the arrays; empty nodes left out.

    Copied, because on a CPU the host view of an array is the array's own memory, which the next
    step is free to overwrite while an asynchronous save still reads it.
    """
    flat = flax.traverse_util.flatten_dict(flax.serialization.to_state_dict(value))
    arrays = {key: np.array(leaf) for key, leaf in flat.items() if leaf is not None}
    return flax.traverse_util.unflatten_dict(arrays)


def _check_finite(tree: Mapping[str, Any], kind: str, step: int) -> None:
    """A state with a NaN must not push a good one out."""
    flat: dict[Any, Any] = flax.traverse_util.flatten_dict(dict(tree))
    for key, array in flat.items():
        # Of a dtype without NaN everything is finite.
        if array.dtype.kind not in "biu" and not np.isfinite(array).all():
            raise UserError(
                f"step {step}: {'/'.join(key)} is not finite, so {kind}/{step} is not saved",
                "lower config.optimizer.learning_rate or set config.optimizer.clip_norm; the last "
                "checkpoint is kept",
                exit_code=EXIT_NON_FINITE,
            )


def _array_hashes(tree: Mapping[str, Any]) -> dict[str, list[Any]]:
    """[dtype, shape, CRC-32 of the bytes] by name.

    orbax restores an array file with a flipped bit without a word. CRC-32 finds every burst of up
    to 32 bits, at 7 GB/s where SHA-256 makes 2: it costs a save 3 % in place of 30.
    """
    flat: dict[Any, Any] = flax.traverse_util.flatten_dict(dict(tree))
    return {
        "/".join(key): [
            str(array.dtype),
            list(array.shape),
            # As bytes, because bfloat16 has no buffer protocol.
            zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data),
        ]
        for key, array in sorted(flat.items())
    }


def _own_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of JSON content without its 'sha256'."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _file_hash(path: Path) -> list[int]:
    """[bytes, CRC-32] of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def _files(folder: Path) -> dict[str, Path]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SEAL and not path.name.endswith(".tmp")
    }


def _seal(folder: Path) -> float:
    """Write the seal once everything is on disk; returns the seconds spent on hashes."""
    paths = _files(folder)
    for path in [*paths.values(), *{path.parent for path in paths.values()}, folder.parent]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    started = time.perf_counter()
    content: dict[str, Any] = {
        "format": FORMAT,
        "files": {name: _file_hash(path) for name, path in paths.items()},
    }
    content["sha256"] = _own_hash(content)
    seconds = time.perf_counter() - started
    replace_file(folder / SEAL, json.dumps(content, indent=1) + "\n")
    return seconds


def _check_seal(folder: Path) -> bool:
    """Whether there is a seal, and the files are those that were sealed.

    Raises:
        _Damaged: they are not, or the seal itself is damaged.
    """
    try:
        content = json.loads((folder / SEAL).read_text())
        intact = content["sha256"] == _own_hash(content)
        files = content["files"]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Damaged(f"{SEAL} cannot be read") from error
    if not intact:
        raise _Damaged(f"{SEAL} is not what was written")
    for name, expected in files.items():
        try:
            found = _file_hash(folder / name)
        except OSError as error:
            raise _Damaged(f"{name}: {error.strerror}") from error
        if found != expected:
            raise _Damaged(f"{name} is not what was saved")
    return True


def _read(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """(arrays, metadata, sealed) of a checkpoint, verified.

    A folder without a seal is one whose process was killed after orbax had finished, or one of an
    incomplete copy. Its metadata and arrays have hashes of their own, which tell the two apart.

    Raises:
        _Damaged: something is not what was saved.
        UserError: it is intact, but of another format.
    """
    sealed = _check_seal(folder)
    try:
        # Without a template: given one, orbax casts and reshapes to it without a word. The arrays
        # were saved from host memory and come back there, whatever devices saved the run.
        with _checkpointer() as checkpointer:
            restored = checkpointer.restore(
                folder,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()
                ),
            )
        arrays, meta = restored["arrays"], restored["meta"]
    except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise _Damaged(f"it cannot be read: {reason}") from error
    if not isinstance(meta, dict) or not isinstance(arrays, dict):
        raise _Damaged("it holds no metadata or no arrays")
    if meta.get("format", 1) != FORMAT:
        older = isinstance(meta.get("format", 1), int) and meta.get("format", 1) < FORMAT
        raise UserError(
            f"the checkpoint {folder} has format {meta.get('format', 1)}, not {FORMAT}",
            f"use the {'older' if older else 'newer'} revision named in provenance.json",
        )
    if meta.get("sha256") != _own_hash(meta):
        raise _Damaged("its metadata are not those that were saved")
    if (meta["kind"], meta["step"]) != (kind, int(folder.name)):
        raise _Damaged(f"it is {meta['kind']}/{meta['step']} under another name")
    found = _array_hashes(arrays)
    for name in sorted(found.keys() | meta["arrays"].keys()):
        if found.get(name) != meta["arrays"].get(name):
            raise _Damaged(f"its array {name} is not what was saved")
    return arrays, meta, sealed


def _checkpointer() -> ocp.Checkpointer:
    # orbax reports every save and restore in detail at level INFO and as absl warnings.
    logging.getLogger("absl").setLevel(logging.ERROR)
    own = distributed.index()
    # Every process has the whole state, so one writes it and each reads it by itself. Without this
    # orbax waits for all processes in every save and restore, and its threads may cross.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        arrays=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        meta=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


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


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read and verified.

    Attributes:
        arrays: nested dict of numpy arrays.
        meta: what was saved beside them.
        path: its folder.
    """

    arrays: dict[str, Any]
    meta: dict[str, Any]
    path: Path

    def fill(self, template: PyTree) -> PyTree:
        """The arrays in a template's structure.

        Raises:
            UserError: names, shapes or dtypes differ from the template's.
        """
        return _fill(template, self.arrays, str(self.path))


class Checkpoints:
    """Checkpoints of one run: ``checkpoints/latest`` and ``checkpoints/best`` (one).

    Saves are written one after the other by a thread; what goes wrong there is raised by the next
    call. A kill at any moment leaves the checkpoints before it whole. Of several processes the
    first one writes; all of them must call the same methods in the same order.

    Args:
        folder: the run's folder.
        create: make the folders, and clear away what a kill left; False to read only.
        keep_latest: how many of the latest to keep, at least 1.

    Attributes:
        hash_seconds: time spent on hashes so far, by the thread that saves.
        save_seconds: time spent on whole saves so far, by that thread and by the copies before.
    """

    def __init__(self, folder: Path, *, create: bool, keep_latest: int = 2):
        self._root, self._keep = folder / "checkpoints", keep_latest
        reads_only, create = not create, create and distributed.is_first()
        self._create = create
        if reads_only and not (self._root / "latest").is_dir():
            raise UserError(
                f"{folder} has no checkpoints", "train first, or name the folder of a run"
            )
        self.hash_seconds = self.save_seconds = 0.0
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending: list[concurrent.futures.Future[None]] = []
        if create:
            for kind in ("latest", "best"):
                try:
                    (self._root / kind).mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise cannot_write(self._root / kind, error) from error
                for entry in (self._root / kind).iterdir():
                    # A save or a removal that a kill cut short.
                    if "orbax-checkpoint-tmp" in entry.name or entry.name.startswith(_ASIDE):
                        shutil.rmtree(entry, ignore_errors=True)

    def steps(self, kind: str) -> list[int]:
        """Steps of the checkpoints that are there, damaged or not, in order.

        Args:
            kind: 'latest' or 'best'.
        """
        folder = self._root / kind
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(name) for name in names if name.isdecimal())

    def latest_step(self) -> int | None:
        """Step of the newest resumable state; None when there is none."""
        return max(self._steps_seen_first("latest"), default=None)

    def best_meta(self) -> dict[str, Any] | None:
        """What was saved beside the best variables so far, 'step' and 'auc'; None without any.

        Raises:
            UserError: it is damaged.
        """
        return self.read("best").meta if self._steps_seen_first("best") else None

    def _steps_seen_first(self, kind: str) -> list[int]:
        """Steps that the first process sees, which may be about to move a damaged one aside."""
        return json.loads(distributed.exchange(json.dumps(self.steps(kind)))[0])

    def save_latest(self, state: TrainState, meta: Mapping[str, Any] | None = None) -> None:
        """Start saving the whole state; returns before it is on disk.

        What was saved before is on disk first: a run resumed from this state must find the best up
        to its step.

        Args:
            state: on the devices or as numpy arrays; copied.
            meta: JSON content to keep beside it.

        Raises:
            UserError: an earlier save failed, or the state is not finite.
        """
        self._save("latest", int(state.step), state, meta or {})

    def save_best(self, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Start saving the variables to evaluate with, and what was measured with them.

        Raises:
            UserError: an earlier save failed.
        """
        self._save("best", int(state.step), state.eval_variables(), meta)

    def wait(self) -> None:
        """Wait until everything is on disk.

        Raises:
            UserError: a save failed; what was on disk before it stays usable.
        """
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

    def read(self, kind: str) -> Restored:
        """The newest checkpoint that is whole.

        Damaged ones that are newer are told on stderr. Where checkpoints may be written they are
        renamed to ``STEP.damaged``, so that the run can save that step again.

        Args:
            kind: 'latest' or 'best'.

        Raises:
            UserError: there is none, none is whole, or it has another format.
        """
        return distributed.first_then_others(lambda: self._newest_whole(kind))

    def _newest_whole(self, kind: str) -> Restored:
        damaged: list[tuple[Path, _Damaged]] = []
        for step in reversed(self.steps(kind)):
            path = self._root / kind / str(step)
            try:
                arrays, meta, sealed = _read(path, kind)
            except _Damaged as error:
                damaged.append((path, error))
                continue
            for bad, error in damaged:
                moved = f", kept as {self._move_aside(bad).name}" if self._create else ""
                print(
                    f"the checkpoint {bad} is damaged ({error}){moved}; "
                    f"falling back to the one of step {step}",
                    file=sys.stderr,
                )
            if not sealed:
                print(f"the checkpoint {path} had no seal; its content is whole", file=sys.stderr)
                if self._create:
                    _seal(path)
            return Restored(arrays, meta, path)
        if not damaged:
            raise UserError(
                f"{self._root / kind} holds no checkpoint",
                "train until the first validation, or choose another --checkpoint",
            )
        path, error = damaged[0]
        others = f", and so are {len(damaged) - 1} older ones" if len(damaged) > 1 else ""
        remedy = {
            "latest": "restore that folder from a copy, or move it away to start anew",
            "best": "restore that folder from a copy, evaluate with --checkpoint=latest, or move "
            "it away: training then keeps the best of the validations to come",
        }
        raise UserError(
            f"the checkpoint {path} is damaged: {error}{others}",
            remedy[kind],
            exit_code=EXIT_DAMAGED,
        )

    def restore_latest(self, template: TrainState) -> TrainState:
        """The newest whole state, as numpy arrays.

        Raises:
            UserError: there is none, none is whole, or it does not fit the template.
        """
        return self.read("latest").fill(template)

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
        best = self.read("best")
        return best.fill(template.eval_variables()), best.meta["step"]

    def _save(self, kind: str, step: int, value: PyTree, meta: Mapping[str, Any]) -> None:
        if not distributed.is_first():
            return
        if len(self._pending) > 1:  # each holds a copy of the state
            self.wait()
        started = time.perf_counter()
        tree = _to_tree(value)
        _check_finite(tree, kind, step)
        self.save_seconds += time.perf_counter() - started
        self._pending.append(self._worker.submit(self._write, kind, step, tree, dict(meta)))

    def _write(self, kind: str, step: int, tree: dict[str, Any], meta: dict[str, Any]) -> None:
        """In the thread: one checkpoint from arrays to seal, then the old ones go."""
        path = self._root / kind / str(step)
        started = time.perf_counter()
        meta = json.loads(json.dumps(meta))  # tuples become lists before they are hashed
        meta |= {"format": FORMAT, "kind": kind, "step": step, "arrays": _array_hashes(tree)}
        meta["sha256"] = _own_hash(meta)
        self.hash_seconds += time.perf_counter() - started
        try:
            if path.exists():
                # A kill came after this save and the resumed run is there again. If it is the same,
                # replacing it could only lose it.
                if self._is_sealed_as(path, kind, meta):
                    return
                self._remove(path)
            with _checkpointer() as checkpointer:
                checkpointer.save(
                    path,
                    args=ocp.args.Composite(
                        arrays=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta)
                    ),
                )
            self.hash_seconds += _seal(path)
            keep = self._keep if kind == "latest" else 1
            for old in self.steps(kind)[:-keep]:
                self._remove(self._root / kind / str(old))
        except UserError:
            raise
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise cannot_write(path, error) from error
        self.save_seconds += time.perf_counter() - started

    def _is_sealed_as(self, path: Path, kind: str, meta: Mapping[str, Any]) -> bool:
        try:
            _, there, sealed = _read(path, kind)
        except (_Damaged, UserError):
            return False
        return sealed and there == meta

    def _remove(self, path: Path) -> None:
        """Under another name first: half a checkpoint must not keep the name of a whole one."""
        aside = path.with_name(f"{_ASIDE}{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside)

    def _move_aside(self, path: Path) -> Path:
        moved = path.with_name(f"{path.name}{_MOVED}")
        shutil.rmtree(moved, ignore_errors=True)
        return path.rename(moved)
