"""Run a model over a split."""

from typing import Any

import jax
import numpy as np

from mvo_jax.data.coarse_mask import coarse_mask
from mvo_jax.data.splits import Split
from mvo_jax.evaluation.predictions import Predictions
from mvo_jax.training import parallel
from mvo_jax.training.setup import Experiment
from mvo_jax.training.step import make_eval_step


class Predictor:
    """Predicts one split, compiled once and called with any variables.

    Args:
        experiment: the model and its devices.
        split: cases to predict; they are placed in device memory.
        batch_size: cases at a time over all devices; rounded up to a multiple of the devices.
        with_mask: also predict the coarse mask where the model has the branch.
    """

    def __init__(self, experiment: Experiment, split: Split, *, batch_size: int, with_mask: bool):
        self._split, self._devices = split, experiment.devices
        self._mask_size = experiment.mask_size
        num_devices = len(self._devices)
        self._batch_size = -(-batch_size // num_devices) * num_devices
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
            Predictions in the order of the split. The last batch is filled up with the first case;
            the filling is cut off again, so it counts nowhere.
        """
        variables = parallel.replicate(variables, self._devices)
        cases = len(self._split.label)
        parts = []
        for start in range(0, cases, self._batch_size):
            indices = np.arange(start, start + self._batch_size, dtype=np.int32)
            indices[indices >= cases] = 0
            result = self._step(variables, self._data, parallel.shard(indices, len(self._devices)))
            parts.append(jax.tree.map(lambda x: np.array(x).reshape(-1, *x.shape[2:]), result))
        joined = {key: np.concatenate([part[key] for part in parts])[:cases] for key in parts[0]}
        return Predictions(
            split=self._split.name,
            case_id=self._split.case_id,
            patient_id=self._split.patient_id,
            label=self._split.label,
            probability=joined["probability"],
            coarse_mask=joined.get("coarse_mask"),
            coarse_target=coarse_mask(self._split.lge_mask, self._mask_size),
        )
