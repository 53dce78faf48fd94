"""The smallest run that has every part of a real one, for the tools that damage runs.

The assembly, the loop, the checkpoints, the step, the augmentation and the files are those that
ship; only the network and the cohort are tiny, so that a start takes a fraction of a second.
"""

import hashlib
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from mvo_jax.config_files import load_config
from mvo_jax.data.splits import Split
from mvo_jax.models.mvo_net import ModelOutput
from mvo_jax.models.registry import MODELS, published_config
from mvo_jax.run import train_and_evaluate
from mvo_jax.runs.checkpoint import Checkpoints
from mvo_jax.runs.folder import RunFolder
from mvo_jax.runs.goodput import Clock

SAVE_EVERY = 4


class TinyNet(nn.Module):
    """Batch statistics, dropout and both outputs of the method, and nothing to compile."""

    num_outputs: int = 1
    mask_size: int = 4
    axis_name: str | None = None

    @nn.compact
    def __call__(self, video: jax.Array, *, train: bool, with_mask: bool = False) -> ModelOutput:
        """As the method's network is called."""
        pooled = video.mean(axis=1).reshape(len(video), -1)
        hidden = nn.Dense(8, name="trunk")(pooled)
        hidden = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name)(hidden)
        hidden = nn.Dropout(0.1, deterministic=not train)(nn.relu(hidden))
        mask = nn.Dense(self.mask_size**2, name="decoder")(hidden)
        mask = mask.reshape(-1, self.mask_size, self.mask_size)
        return ModelOutput(nn.Dense(self.num_outputs, name="classifier")(hidden), mask)


def tiny_config(**changes: Any) -> Any:
    """The paper's config with saves, logs and evaluations that do not fit each other."""
    MODELS["tiny"] = TinyNet
    config: Any = load_config("mvo")
    config.unlock()
    config.data.frames, config.data.image_size = 8, 32
    config.model = ConfigDict(published_config("tiny"))
    config.optimizer.update(learning_rate=1e-2, warmup_steps=5, ema_decay=0.9)
    # Rotation and photometry take seconds to trace and say nothing about interruptions.
    config.augment.update(max_rotation_deg=0.0, brightness=0.0, contrast=0.0, gamma=0.0)
    config.train.update(batch_size=4, total_steps=20, log_every=5, eval_every=8, num_devices=1)
    config.train.update(save_every=SAVE_EVERY, save_every_seconds=0.0)
    config.eval.batch_size = 8
    config.update_from_flattened_dict(changes)
    return config.lock()


def tiny_split(name: str, seed: int, cases: int = 16, *, lesion: tuple[int, int] = (4, 8)) -> Split:
    """Noise with labels; positive cases have MVO in rows and columns from and to ``lesion``."""
    draws = np.random.default_rng(seed)
    label = (np.arange(cases) % 2).astype(np.int32)
    mask = draws.integers(0, 2, (cases, 32, 32)).astype(np.uint8)
    mask[:, slice(*lesion), slice(*lesion)] = 2 * label[:, None, None]
    return Split(
        name=name,
        video=draws.integers(0, 256, (cases, 8, 32, 32, 1)).astype(np.uint8),
        lge_mask=mask,
        label=label,
        case_id=tuple(f"{name}{i}" for i in range(cases)),
        patient_id=tuple(f"{name}-patient{i}" for i in range(cases)),
        features={},
    )


def start(
    path: Path, clock: Clock, config: Any = None, *, data_seed: int = 0, **allowed: Any
) -> dict[str, Any]:
    """One start of the run in a folder, as `train.py` makes it; returns the summary.

    Args:
        clock: where the time goes.
        config: ``tiny_config()`` where None.
        allowed: ``allow_config_change`` and ``allow_data_change``.
    """
    splits = {
        name: tiny_split(name, data_seed + i) for i, name in enumerate(("train", "validation"))
    }
    return train_and_evaluate(
        config or tiny_config(), path, evaluate_on=None, splits=splits, clock=clock, **allowed
    )


def outcome(path: Path) -> dict[str, Any]:
    """What must not depend on interruptions: arrays of latest and best, and the metrics."""
    checkpoints = Checkpoints(path, create=False)
    latest, best = checkpoints.read("latest"), checkpoints.read("best")
    checkpoints.finish()
    rows = [
        {key: value for key, value in row.items() if key != "clips_per_second"}
        for row in RunFolder(path).history()
    ]
    return {
        "step": latest.meta["step"],
        "latest": array_hashes(latest.arrays),
        "best": [best.meta["step"], best.meta["auc"], array_hashes(best.arrays)],
        "rows": rows,
    }


def array_hashes(arrays: dict[str, Any]) -> dict[str, list[Any]]:
    """[dtype, shape, SHA-256 of the bytes] by name, as JSON keeps them."""
    return {
        "/".join(key): [
            str(array.dtype),
            list(array.shape),
            hashlib.sha256(array.tobytes()).hexdigest(),
        ]
        for key, array in sorted(flatten_dict(arrays).items())
    }
