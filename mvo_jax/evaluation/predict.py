"""Run a model over a split, or over clips of any origin."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mvo_jax.data.coarse_mask import coarse_mask
from mvo_jax.data.splits import AnySplit, StreamedSplit
from mvo_jax.data.stream import read_batches
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.training import parallel
from mvo_jax.training.setup import Experiment
from mvo_jax.training.step import make_eval_step

_READ_AHEAD = 2  # batches


class ClipPredictor:
    """Predicts clips that come from host memory, a batch at a time; one program for all.

    Args:
        experiment: the model and its devices.
        batch_size: cases at a time over all devices; rounded up to a multiple of the devices.
        with_mask: also predict the coarse mask where the model has the branch.
    """

    def __init__(self, experiment: Experiment, *, batch_size: int, with_mask: bool):
        self._devices = experiment.devices
        self._share = -(-batch_size // len(self._devices))
        self.batch_size = self._share * len(self._devices)
        self._step = parallel.data_parallel(
            make_eval_step(experiment.model, with_mask=with_mask),
            in_axes=(None, 0, None),
            out_axes=0,
            on=self._devices,
        )

    def __call__(self, variables: Any, video: np.ndarray) -> dict[str, np.ndarray]:
        """Predict up to ``batch_size`` clips.

        Args:
            variables: {'params', 'batch_stats'}, on the devices or as numpy arrays.
            video: uint8 ``[n, T, H, W, 1]``, filled up with its first clip to a whole batch.

        Returns:
            'probability' ``[n]``, 'logits' ``[n, K]`` and, with mask branch, 'coarse_mask'
            ``[n, m, m]``.
        """
        cases = len(video)
        filled = video[np.where(np.arange(self.batch_size) < cases, np.arange(self.batch_size), 0)]
        result = self._step(
            parallel.replicate(variables, self._devices),
            {"video": parallel.shard(filled, len(self._devices), axis=0)},
            np.arange(self._share, dtype=np.int32),
        )
        return {key: _join(value)[:cases] for key, value in result.items()}


class Predictor:
    """Predicts one split, compiled once and called with any variables.

    Args:
        experiment: the model and its devices.
        split: cases to predict; placed in device memory, or read from disk batch by batch.
        batch_size: cases at a time over all devices; rounded up to a multiple of the devices.
        with_mask: also predict the coarse mask where the model has the branch.
    """

    def __init__(
        self, experiment: Experiment, split: AnySplit, *, batch_size: int, with_mask: bool
    ):
        self._split, self._devices = split, experiment.devices
        self._mask_size = experiment.mask_size
        self._clips = ClipPredictor(experiment, batch_size=batch_size, with_mask=with_mask)
        if isinstance(split, StreamedSplit):
            return
        self._data = parallel.replicate({"video": split.video}, self._devices)
        self._step = parallel.data_parallel(
            make_eval_step(experiment.model, with_mask=with_mask),
            in_axes=(None, None, 0),
            out_axes=0,
            on=self._devices,
        )

    def __call__(self, variables: Any) -> Predictions:
        """Predict every case once.

        Args:
            variables: {'params', 'batch_stats'}, on the devices or as numpy arrays.

        Returns:
            Predictions in the order of the split. What the last batch is filled up with is cut off
            again, so it counts nowhere.
        """
        variables = parallel.replicate(variables, self._devices)
        split = self._split
        run = self._streamed if isinstance(split, StreamedSplit) else self._resident
        parts = list(run(variables, split))
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        return Predictions(
            split=split.name,
            case_id=split.case_id,
            patient_id=split.patient_id,
            label=split.label,
            probability=joined["probability"],
            coarse_mask=joined.get("coarse_mask"),
            coarse_target=joined["coarse_target"],
        )

    def _cases(self, k: int) -> np.ndarray:
        """Cases of batch k; the last batch may be shorter."""
        size = self._clips.batch_size
        return np.arange(k * size, min((k + 1) * size, len(self._split)), dtype=np.int32)

    def _steps(self) -> range:
        return range(-(-len(self._split) // self._clips.batch_size))

    def _streamed(self, variables: Any, split: Any) -> Iterator[dict[str, np.ndarray]]:
        for batch in read_batches(split, self._cases, self._steps(), ahead=_READ_AHEAD):
            target = coarse_mask(batch["lge_mask"], self._mask_size)
            yield {**self._clips(variables, batch["video"]), "coarse_target": target}

    def _resident(self, variables: Any, split: Any) -> Iterator[dict[str, np.ndarray]]:
        for k in self._steps():
            cases = self._cases(k)
            filled = np.zeros(self._clips.batch_size, np.int32)
            filled[: len(cases)] = cases
            result = self._step(variables, self._data, parallel.shard(filled, len(self._devices)))
            target = coarse_mask(split.lge_mask[cases], self._mask_size)
            yield {
                **{key: _join(value)[: len(cases)] for key, value in result.items()},
                "coarse_target": target,
            }


def _join(value: Any) -> np.ndarray:
    """``[D, b, ...]`` of the devices to ``[D * b, ...]``."""
    joined = np.array(value)
    return joined.reshape(-1, *joined.shape[2:])
