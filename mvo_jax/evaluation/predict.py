"""Run a model over a split, or over clips of any origin."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from mvo_jax.data.coarse_mask import coarse_mask
from mvo_jax.data.splits import AnySplit, StreamedSplit
from mvo_jax.data.stream import read_batches
from mvo_jax.devices import parallel
from mvo_jax.evaluation.metrics import (
    average_precision,
    brier_score,
    roc_auc,
    warn_of_one_class,
)
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.settings import LossSettings
from mvo_jax.training.losses import classification_loss
from mvo_jax.training.setup import Experiment
from mvo_jax.training.step import make_eval_step

_READ_AHEAD = 2  # batches


class ClipPredictor:
    """Predicts clips that come from host memory, a batch at a time; one program for all.

    Args:
        batch_size: cases at a time over all devices; rounded up to a multiple of the devices.
        with_mask: also predict the coarse mask where the model has the branch.
    """

    def __init__(self, experiment: Experiment, *, batch_size: int, with_mask: bool):
        self._devices = experiment.devices
        self._share = -(-batch_size // len(self._devices))
        self.batch_size = self._share * len(self._devices)
        step = make_eval_step(experiment.model, with_mask=with_mask)

        def gathered(variables: Any, clips: Any, indices: Any, beside: Any) -> Any:
            return parallel.gather({**step(variables, clips, indices), **beside})

        self._step = parallel.data_parallel(
            gathered, in_axes=(None, 0, None, 0), out_axes=None, on=self._devices
        )

    def __call__(self, variables: Any, video: np.ndarray) -> dict[str, np.ndarray]:
        """Predict up to ``batch_size`` clips.

        Args:
            variables: {'params', 'batch_stats'}, on the devices or as numpy arrays.
            video: uint8 ``[n, T, H, W, 1]``, all of it in each process.

        Returns:
            'probability' ``[n]``, 'logits' ``[n, K]`` and, with mask branch, 'coarse_mask' ``[n, m,
            m]``; the same in all processes.
        """
        cases = len(video)
        row = np.arange(self.batch_size)
        filled = parallel.own_rows(np.where(row < cases, row, 0), self._devices)
        result = self.own_rows(variables, video[filled])
        return {key: value[:cases] for key, value in result.items()}

    def own_rows(
        self, variables: Any, video: np.ndarray, **beside: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Predict a whole batch of which this process has its own rows only.

        ``video``, ``[b, T, H, W, 1]``, is ``parallel.own_rows`` of the batch; arrays ``[b, ...]``
        that are given ``beside`` are gathered with the results of all rows.
        """
        split = {"video": video, **beside}
        own = len(parallel.own(self._devices))
        split = {key: parallel.shard(value, own, axis=0) for key, value in split.items()}
        result = self._step(
            parallel.replicate(variables, self._devices),
            {"video": split.pop("video")},
            np.arange(self._share, dtype=np.int32),
            split,
        )
        return {key: _join(value) for key, value in result.items()}


class Predictor:
    """Predicts one split, compiled once and called with any variables; see ``ClipPredictor``.

    Several processes share the cases and have the same predictions. The split lies in device
    memory, or is read from disk batch by batch, by each process its own cases.
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
        step = make_eval_step(experiment.model, with_mask=with_mask)
        self._step = parallel.data_parallel(
            lambda variables, data, indices: parallel.gather(step(variables, data, indices)),
            in_axes=(None, None, 0),
            out_axes=None,
            on=self._devices,
        )

    def __call__(self, variables: Any) -> Predictions:
        """Predict every case once, in the order of the split."""
        variables = parallel.replicate(variables, self._devices)
        split = self._split
        run = self._streamed if isinstance(split, StreamedSplit) else self._resident
        parts = list(run(variables, split))
        # Cases are in order and whole batches, so that only the end is filled up.
        joined = {
            key: np.concatenate([part[key] for part in parts])[: len(split)] for key in parts[0]
        }
        return Predictions(
            split=split.name,
            case_id=split.case_id,
            patient_id=split.patient_id,
            label=split.label,
            probability=joined["probability"],
            coarse_mask=joined.get("coarse_mask"),
            coarse_target=joined["coarse_target"],
            logits=joined["logits"],
        )

    def _own_cases(self, k: int) -> np.ndarray:
        """This process's cases of batch k; the last batch is filled up with case 0."""
        size = self._clips.batch_size
        case = np.arange(k * size, (k + 1) * size, dtype=np.int32)
        return parallel.own_rows(np.where(case < len(self._split), case, 0), self._devices)

    def _steps(self) -> range:
        return range(-(-len(self._split) // self._clips.batch_size))

    def _streamed(self, variables: Any, split: Any) -> Iterator[dict[str, np.ndarray]]:
        for batch in read_batches(split, self._own_cases, self._steps(), ahead=_READ_AHEAD):
            target = coarse_mask(batch["lge_mask"], self._mask_size)
            yield self._clips.own_rows(variables, batch["video"], coarse_target=np.asarray(target))

    def _resident(self, variables: Any, split: Any) -> Iterator[dict[str, np.ndarray]]:
        own = len(parallel.own(self._devices))
        size = self._clips.batch_size
        for k in self._steps():
            result = self._step(variables, self._data, parallel.shard(self._own_cases(k), own))
            target = coarse_mask(split.lge_mask[k * size : (k + 1) * size], self._mask_size)
            yield {**{key: _join(value) for key, value in result.items()}, "coarse_target": target}


def _join(value: Any) -> np.ndarray:
    """``[D, b, ...]`` of all devices to ``[D * b, ...]``."""
    joined = np.array(value)
    return joined.reshape(-1, *joined.shape[2:])


def validation_metrics(
    predictions: Predictions, *, also: str = "auc", loss: LossSettings | None = None
) -> Mapping[str, float]:
    """What is logged of the validation split: AUC, Brier score, coarse-mask error.

    ``also`` is one of ``settings.BEST_METRICS`` to log beside these; 'loss' needs the ``loss``.
    """
    warn_of_one_class(predictions.label, predictions.split)
    metrics = {
        "auc": roc_auc(predictions.label, predictions.probability),
        "brier": brier_score(predictions.label, predictions.probability),
    }
    if predictions.coarse_mask is not None and predictions.coarse_target is not None:
        error = predictions.coarse_mask - predictions.coarse_target
        metrics["mask_mse"] = float(np.mean(np.square(error)))
    if also == "average_precision":
        metrics[also] = average_precision(predictions.label, predictions.probability)
    if also == "loss" and loss is not None and predictions.logits is not None:
        logits, label = jnp.asarray(predictions.logits), jnp.asarray(predictions.label)
        each = classification_loss(
            logits, label, form=loss.form, positive_weight=loss.positive_weight
        )
        metrics[also] = float(each.mean()) + loss.mask_loss_weight * metrics.get("mask_mse", 0.0)
    return metrics
