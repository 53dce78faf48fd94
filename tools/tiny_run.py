"""The smallest run that has every part of a real one, for the tools that damage runs.

The loop, the checkpoints, the step, the augmentation and the files are those that ship; only the
network and the cohort are tiny, so that a start takes a fraction of a second.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from configs.mvo import get_config
from mvo_jax.data.splits import Split, content_hash
from mvo_jax.evaluation.metrics import roc_auc
from mvo_jax.evaluation.predict import Predictor
from mvo_jax.models.mvo_net import ModelOutput
from mvo_jax.training import parallel
from mvo_jax.training.checkpoint import Checkpoints
from mvo_jax.training.goodput import Clock
from mvo_jax.training.interruption import Interruption
from mvo_jax.training.loop import train
from mvo_jax.training.run_folder import RunFolder
from mvo_jax.training.run_lock import RunLock
from mvo_jax.training.setup import Experiment, set_up
from mvo_jax.training.watchdog import Watchdog

SAVE_EVERY = 4


class TinyNet(nn.Module):
    """Batch statistics, dropout and both outputs of the method, and nothing to compile."""

    @nn.compact
    def __call__(self, video: jax.Array, *, train: bool, with_mask: bool = False) -> ModelOutput:
        """As the method's network is called."""
        pooled = video.mean(axis=1).reshape(len(video), -1)
        hidden = nn.Dense(8, name="trunk")(pooled)
        hidden = nn.BatchNorm(use_running_average=not train, axis_name=parallel.AXIS)(hidden)
        hidden = nn.Dropout(0.1, deterministic=not train)(nn.relu(hidden))
        mask = nn.Dense(16, name="decoder")(hidden).reshape(-1, 4, 4)
        return ModelOutput(nn.Dense(1, name="classifier")(hidden), mask)


def tiny_config(**changes: Any) -> Any:
    """The paper's config with saves, logs and evaluations that do not fit each other."""
    config: Any = get_config()
    config.unlock()
    config.data.frames, config.data.image_size = 8, 32
    config.model.update(width=4, stage_sizes=(1,), in_channels=1, num_heads=2, mask_size=4)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=5, ema_decay=0.9)
    # Rotation and photometry take seconds to trace and say nothing about interruptions.
    config.augment.update(max_rotation_deg=0.0, brightness=0.0, contrast=0.0, gamma=0.0)
    config.train.update(batch_size=4, total_steps=20, log_every=5, eval_every=8, num_devices=1)
    config.train.update(save_every=SAVE_EVERY, save_every_seconds=0.0)
    config.eval.batch_size = 8
    config.update_from_flattened_dict(changes)
    return config.lock()


def tiny_split(name: str, seed: int, cases: int = 16) -> Split:
    """Noise with labels."""
    draws = np.random.default_rng(seed)
    label = (np.arange(cases) % 2).astype(np.int32)
    mask = draws.integers(0, 2, (cases, 32, 32)).astype(np.uint8)
    mask[:, 4:8, 4:8] = 2 * label[:, None, None]
    return Split(
        name=name,
        video=draws.integers(0, 256, (cases, 8, 32, 32, 1)).astype(np.uint8),
        lge_mask=mask,
        label=label,
        case_id=tuple(f"{name}{i}" for i in range(cases)),
        patient_id=tuple(f"{name}-patient{i}" for i in range(cases)),
        features={},
    )


def tiny_experiment(config: Any) -> Experiment:
    """The config's experiment with the tiny network in it."""
    experiment = set_up(config, devices=parallel.devices(1))
    return dataclasses.replace(experiment, model=TinyNet(), mask_size=4)


def start(
    path: Path,
    clock: Clock,
    config: Any = None,
    *,
    data_seed: int = 0,
    allow_config_change: bool = False,
    allow_data_change: bool = False,
) -> dict[str, Any]:
    """One start of the run in a folder, as `train.py` makes it; returns the summary."""
    config = config or tiny_config()
    with Interruption() as interruption:
        experiment, folder = tiny_experiment(config), RunFolder(path)
        folder.create()
        with (
            RunLock(path) as lock,
            Watchdog(
                clock,
                path,
                seconds=config.train.watchdog_seconds,
                leave=config.train.watchdog_leaves,
                record=lock.record,
            ),
        ):
            folder.open_for_training(
                config.to_dict(), path, allow_config_change=allow_config_change
            )
            training = tiny_split("train", data_seed)
            validation = tiny_split("validation", data_seed + 1)
            predict = Predictor(experiment, validation, batch_size=8, with_mask=True)

            def validate(variables: Any) -> dict[str, float]:
                predictions = predict(variables)
                auc = roc_auc(predictions.label, predictions.probability, split="validation")
                return {"auc": auc}

            return train(
                config,
                experiment,
                folder,
                training,
                validate,
                allow_config_change=allow_config_change,
                allow_data_change=allow_data_change,
                data={split.name: content_hash(split) for split in (training, validation)},
                interruption=interruption,
                clock=clock,
                lock=lock,
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
    # Hashes of arrays that were read and verified are as good as the arrays.
    return {
        "step": latest.meta["step"],
        "latest": latest.meta["arrays"],
        "best": [best.meta["step"], best.meta["auc"], best.meta["arrays"]],
        "rows": rows,
    }
