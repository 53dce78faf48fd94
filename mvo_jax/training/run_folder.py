"""The folder of one run: its config, where it came from, and its metrics."""

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from mvo_jax.errors import UserError
from mvo_jax.files import replace_file
from mvo_jax.training import distributed, parallel

# A run may go on with other devices: its batches and random numbers do not depend on them.
FREE_KEYS = ("config.train.num_devices",)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")


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
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: {error}", "restore it from a copy, or start a new run folder"
        ) from error


def provenance(source: Path) -> dict[str, Any]:
    """Versions, devices and the git revision of the code in ``source``."""
    revision = subprocess.run(
        ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "command": " ".join(sys.argv),
        "git_revision": revision.stdout.strip() or "not a git checkout",
        "python": platform.python_version(),
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "devices": [str(device) for device in parallel.devices()],
        "processes": distributed.count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _flatten(config: Mapping[str, Any], prefix: str = "config") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        name = f"{prefix}.{key}"
        flat.update(_flatten(value, name) if isinstance(value, Mapping) else {name: value})
    return flat


class RunFolder:
    """A run's folder; opening it for training refuses the folder of another config.

    Files: ``config.json``, ``provenance.json`` (one entry a start), ``metrics.jsonl``,
    ``tensorboard/`` and ``checkpoints/``.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser().resolve()

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line: step, split ('train' or 'validation') and values."""
        return self.path / "metrics.jsonl"

    def config(self) -> dict[str, Any]:
        """The resolved config of the run.

        Raises:
            UserError: not the folder of a run.
        """
        return read_json(self.path / "config.json")

    def has_checkpoint(self) -> bool:
        """Whether a start would go on from a checkpoint."""
        latest = self.path / "checkpoints" / "latest"
        return latest.is_dir() and any(entry.name.isdigit() for entry in latest.iterdir())

    def open_for_training(
        self, config: Mapping[str, Any], source: Path, *, about: Mapping[str, Any] | None = None
    ) -> None:
        """Create the folder, or check that it belongs to the same config.

        The first process does; the others check that they see the same folder.

        Args:
            config: the resolved config.
            source: folder of the code, for the git revision.
            about: what else to keep of this start in ``provenance.json``.

        Raises:
            UserError: the folder belongs to another config (every difference is listed), or it
                cannot be written, or another process does not see it.
        """
        distributed.first_then_others(lambda: self._open(config, source, about or {}))
        distributed.check_shared(self.path / "provenance.json")

    def _open(self, config: Mapping[str, Any], source: Path, about: Mapping[str, Any]) -> None:
        if not distributed.is_first():
            return
        wanted = json.loads(json.dumps(config))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot create {self.path}: {error.strerror}", "choose another --workdir"
            ) from error
        if (self.path / "config.json").exists():
            self.check_config(wanted)
        else:
            write_json(self.path / "config.json", wanted)
        starts_path = self.path / "provenance.json"
        starts = read_json(starts_path) if starts_path.exists() else []
        write_json(starts_path, [*starts, {**provenance(source), **about}])

    def check_config(self, config: Mapping[str, Any]) -> None:
        """Check that the run of this folder has the same config.

        Args:
            config: the resolved config.

        Raises:
            UserError: it has another one; every difference is listed.
        """
        old, new = _flatten(self.config()), _flatten(json.loads(json.dumps(config)))
        changed = [
            f"{key} {old.get(key, 'absent')!r} -> {new.get(key, 'absent')!r}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key, "absent") != new.get(key, "absent") and key not in FREE_KEYS
        ]
        if changed:
            raise UserError(
                f"{self.path} holds a run of another config ({'; '.join(changed)})",
                "choose another --workdir, or repeat the command with the config of that run",
            )

    def history(self) -> list[dict[str, Any]]:
        """Rows of ``metrics.jsonl``; an incomplete last line is left out."""
        if not self.metrics_path.exists():
            return []
        rows = []
        for line in self.metrics_path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break  # a kill in the middle of a write; nothing valid follows it
        return rows

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps that a resumed run will repeat; the first process does."""
        if not distributed.is_first():
            return
        kept = [row for row in self.history() if row["step"] <= step]
        replace_file(self.metrics_path, "".join(json.dumps(row) + "\n" for row in kept))


class MetricsWriter:
    """Appends rows to ``metrics.jsonl`` and to TensorBoard's event files, in the first process."""

    def __init__(self, folder: RunFolder, first_step: int):
        self._writes = distributed.is_first()
        if not self._writes:
            return
        # Imported here: it takes a third of a second and only training needs it.
        from tensorboardX import SummaryWriter

        self._file = folder.metrics_path.open("a")
        self._tensorboard = SummaryWriter(
            str(folder.path / "tensorboard"), purge_step=first_step, flush_secs=30
        )

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write one row; values that are not finite become null, and a gap in TensorBoard."""
        if not self._writes:
            return
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._file.write(json.dumps({"step": step, "split": split, **finite}) + "\n")
        self._file.flush()
        for key, value in finite.items():
            if value is not None:
                self._tensorboard.add_scalar(f"{split}/{key}", value, step)

    def close(self) -> None:
        """Flush and close both."""
        if not self._writes:
            return
        self._file.close()
        self._tensorboard.close()
