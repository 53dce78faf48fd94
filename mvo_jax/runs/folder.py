"""The folder of one run: its config, where it came from, and its metrics."""

import contextlib
import datetime
import importlib.metadata
import json
import logging
import math
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from mvo_jax.data.processes import available_cores
from mvo_jax.devices import computation, distributed, parallel
from mvo_jax.devices.environment import processor
from mvo_jax.errors import UserError
from mvo_jax.files import cannot_write, local_path, replace_file
from mvo_jax.runs import goodput
from mvo_jax.settings import FREE_ON_RESUME, LATER

SOURCE = Path(__file__).resolve().parents[2]
_GIT_SECONDS = 30  # a file system of a cluster may take long to say what has changed
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")
_FROM_COPY = "restore it from a copy, or start a new run folder"

log = logging.getLogger(__name__)
OnMetrics = Callable[[int, str, Mapping[str, Any]], object]


def write_json(path: Path, content: Any) -> None:
    """Write JSON, replacing the file as a whole."""
    replace_file(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist", "is this the folder of a run?") from error
    except OSError as error:
        cause = f"cannot read {path}: {error.strerror}"
        raise UserError(cause, "is this the folder of a run, and readable?") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}", _FROM_COPY) from error


def git_revision() -> str:
    """Revision of this code, or why there is none."""
    if not (SOURCE / ".git").exists():  # a folder above may be a checkout of something else
        return "not a git checkout"
    # A hook's variables would point at its own repository.
    environment = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE")}
    try:
        told = subprocess.run(
            ["git", "-C", str(SOURCE), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            env={**environment, "LC_ALL": "C"},
            timeout=_GIT_SECONDS,
        )
    except OSError as error:
        return f"unknown: git cannot be run ({error.strerror})"
    except subprocess.TimeoutExpired:
        return f"unknown: git gave no answer in {_GIT_SECONDS} s"
    reason = (told.stderr.strip() or f"git ended with {told.returncode}").splitlines()[0]
    return told.stdout.strip() or f"unknown: {reason}"


def provenance() -> dict[str, Any]:
    """The command, versions, devices and the git revision of this code."""
    return {
        "command": " ".join(sys.argv),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": available_cores(),  # XLA divides sums among so many threads
        "backend": jax.default_backend(),
        "devices": [str(device) for device in parallel.devices()],
        "processes": distributed.count(),
        "settings": computation.settings(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _flatten(config: Mapping[str, Any], prefix: str = "config") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        name = f"{prefix}.{key}"
        flat.update(_flatten(value, name) if isinstance(value, Mapping) else {name: value})
    return flat


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Differences between two configs, one line each, without those of keys that are free."""
    before, after = LATER | _flatten(old), LATER | _flatten(json.loads(json.dumps(new)))
    return [
        f"{key} {before.get(key, 'absent')!r} -> {after.get(key, 'absent')!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, "absent") != after.get(key, "absent") and key not in FREE_ON_RESUME
    ]


class RunFolder:
    """A run's folder; opening it for training refuses the folder of another config.

    Files: ``config.json``, ``provenance.json`` (one entry a start), ``metrics.jsonl``,
    ``run.lock``, ``run.owner.json``, ``tensorboard/`` and ``checkpoints/``.
    """

    def __init__(self, path: str | Path):
        # Not Path.resolve, which does not return from a link to itself.
        self.path = Path(os.path.realpath(local_path(path, "the run folder")))

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line: step, kind ('train', 'validation' or 'goodput') and values."""
        return self.path / "metrics.jsonl"

    def config(self) -> dict[str, Any]:
        """The resolved config of the run; UserError where the folder is of none, or inside one."""
        for above in self.path.parents:
            if self.path.is_relative_to(above / "checkpoints") and (above / "config.json").exists():
                raise UserError(
                    f"{self.path} lies inside a run", f"name the folder of the run, {above}"
                )
        found = read_json(self.path / "config.json")
        if not isinstance(found, dict):
            cause = f"{self.path / 'config.json'} is damaged: it holds no config"
            raise UserError(cause, _FROM_COPY)
        return found

    def has_checkpoint(self) -> bool:
        """Whether a start would go on from a checkpoint."""
        latest = self.path / "checkpoints" / "latest"
        return latest.is_dir() and any(entry.name.isdigit() for entry in latest.iterdir())

    def open_for_training(
        self,
        config: Mapping[str, Any],
        *,
        about: Mapping[str, Any] | None = None,
        allow_config_change: bool = False,
    ) -> None:
        """Create the folder, or check that it belongs to the same config.

        The first process does; the others check that they see the same folder.

        Args:
            config: the resolved config.
            about: what else to keep of this start in ``provenance.json``.
            allow_config_change: go on under another config; ``provenance.json`` keeps the change.

        Raises:
            UserError: the folder belongs to another config (every difference is listed), or it
                cannot be written, or another process does not see it.
        """

        def open_in_first() -> None:
            if not distributed.is_first():
                return
            self.create()
            start, now = {**provenance(), **(about or {})}, json.loads(json.dumps(config))
            before = self.config() if (self.path / "config.json").exists() else None
            if before is not None and (changes := config_changes(before, now)):
                if not allow_config_change:
                    raise UserError(
                        f"{self.path} holds a run of another config ({'; '.join(changes)})",
                        "choose another --workdir, repeat the command with the config of that run, "
                        "or go on under the new one with --allow_config_change",
                    )
                start["config_changes"] = changes
            if before != now:
                write_json(self.path / "config.json", now)
            write_json(self.path / "provenance.json", [*self._provenance(), start])

        distributed.first_then_others(open_in_first)
        distributed.check_shared(self.path / "provenance.json")

    def create(self) -> None:
        """Make the folder; UserError where that fails, or checkpoints could not be read from it."""
        if self.path == self.path.parent:
            raise UserError(f"the run folder is {self.path}", "choose a folder for the run alone")
        # orbax finds what it has written by a pattern that begins with the path itself.
        if wrong := [letter for letter in "[*?\\" if letter in str(self.path)]:
            raise UserError(
                f"the path of the run folder, {self.path}, has {' '.join(wrong)} in it",
                "choose a --workdir without: its checkpoints could not be read",
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot create {self.path}: {error.strerror}", "choose another --workdir"
            ) from error

    def note(self, what: Mapping[str, Any]) -> None:
        """Add to what ``provenance.json`` keeps of the start under way; the first process does."""
        if distributed.is_first():
            *before, last = self._provenance()
            write_json(self.path / "provenance.json", [*before, {**last, **what}])

    def _provenance(self) -> list[dict[str, Any]]:
        path = self.path / "provenance.json"
        return read_json(path) if path.exists() else []

    def _last_known(self, what: str, otherwise: Any) -> Any:
        """What the last start that says it keeps; an evaluation can spare a damaged file."""
        known = [otherwise]
        with contextlib.suppress(UserError):
            known += [start[what] for start in self._provenance() if what in start]
        return known[-1]

    def data_dir(self, named: str) -> str:
        """Where the run's data lie: where its last start found them, if they are there still.

        Else ``named``, of ``config.data.dir``: it may be relative to a folder that is not this one.
        """
        place = self._last_known("data_dir", named)
        return place if Path(place).is_dir() else named

    def data_hashes(self) -> dict[str, str]:
        """Content hashes of the splits of the last start; empty where none is known."""
        return self._last_known("data", {})

    def history(self) -> list[dict[str, Any]]:
        """What was measured: whole rows of ``metrics.jsonl`` that are not on the starts."""
        return [row for row in self._rows() if row["kind"] != goodput.KIND]

    def starts(self) -> list[dict[str, Any]]:
        """Where the time of each start went; see ``goodput.Clock.row``."""
        return [row for row in self._rows() if row["kind"] == goodput.KIND]

    def _rows(self) -> list[dict[str, Any]]:
        if not self.metrics_path.exists():
            return []
        rows = []
        for line in self.metrics_path.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break  # a kill in the middle of a write; nothing valid follows it
            if not isinstance(row, dict) or "step" not in row:
                break
            if "split" in row:  # as the first revisions named it
                row = {"step": row.pop("step"), "kind": row.pop("split"), **row}
            rows.append(row)
        return rows

    def forget_after(self, step: int, *, evaluation: bool = False) -> None:
        """Drop metrics of steps that a run resumed at ``step`` will repeat; the first process does.

        Starts stay accounted for. ``evaluation``: that of the step will be repeated too.
        """

        def is_kept(row: Mapping[str, Any]) -> bool:
            end = step if evaluation and row["kind"] == "validation" else step + 1
            return row["kind"] == goodput.KIND or row["step"] < end

        if distributed.is_first():
            kept = [json.dumps(row) + "\n" for row in self._rows() if is_kept(row)]
            replace_file(self.metrics_path, "".join(kept))


class MetricsWriter:
    """Appends rows to ``metrics.jsonl`` and to TensorBoard's event files, in the first process.

    Both are written by the caller's thread: tensorboardX's own thread dies of a full disk and then
    blocks the run.

    Args:
        folder: the run's folder.
        first_step: TensorBoard hides what earlier starts wrote from this step on.
        on_metrics: called with step, kind and values of every row once it is written, in the first
            process. After a kill it hears of repeated steps again. What it raises is logged, once,
            and it is not called any more: a tracker that is down ends no run.

    Raises:
        UserError: here and in its methods: the files cannot be written.
    """

    def __init__(self, folder: RunFolder, first_step: int, on_metrics: OnMetrics | None = None):
        self._on_metrics = on_metrics
        self._writes = distributed.is_first()
        if not self._writes:
            return
        # Imported here: it takes a third of a second and only training needs it.
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import scalar

        self._path, self._scalar, self._lock = folder.metrics_path, scalar, threading.Lock()
        self._proto: Any = event_pb2  # made at run time from a descriptor; types do not know it
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        events = folder.path / "tensorboard"
        try:
            events.mkdir(exist_ok=True)
            # Unbuffered: a row is one write.
            self._file = self._path.open("ab", buffering=0)
            self._events = RecordWriter(str(events / name))
            self._write_event(file_version="brain.Event:2")
            start = self._proto.SessionLog(status=self._proto.SessionLog.START)
            self._write_event(step=first_step, session_log=start)
        except OSError as error:
            raise cannot_write(error.filename or self._path, error) from error

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Write one row; values that are not finite become null, and a gap in TensorBoard."""
        if not self._writes:
            return
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        line = json.dumps({"step": step, "kind": kind, **finite}) + "\n"
        try:
            with self._lock:
                self._write_all(line.encode())
                for key, value in finite.items():
                    if isinstance(value, int | float):
                        self._write_event(step=step, summary=self._scalar(f"{kind}/{key}", value))
                self._events.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from error
        try:
            if self._on_metrics is not None:
                self._on_metrics(step, kind, finite)
        except Exception as error:  # whatever a tracker raises
            log.warning(f"on_metrics failed and is not called any more: {error!r}")
            self._on_metrics = None

    def _write_all(self, content: bytes) -> None:
        while content:  # the last bytes before a full disk are written, and then it says so
            content = content[self._file.write(content) :]

    def _write_event(self, **fields: Any) -> None:
        event = self._proto.Event(wall_time=time.time(), **fields)
        self._events.write(event.SerializeToString())

    def sync(self) -> None:
        """Have the rows on disk, so that a checkpoint never knows more than they do."""
        try:
            if self._writes:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        """Close both."""
        if self._writes:
            self._file.close()
            with contextlib.suppress(OSError):  # every event was flushed when it was written
                self._events.close()
