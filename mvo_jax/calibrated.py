"""A trained run whose probabilities are scaled by its temperature."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mvo_jax.errors import UserError
from mvo_jax.evaluation.calibration import Temperature, scaled_threshold
from mvo_jax.evaluation.thresholds import Threshold
from mvo_jax.trained_run import TrainedRun


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibratedRun(TrainedRun):
    """A run that calls the same cases MVO, at probabilities scaled by a temperature."""

    scaling: Temperature

    def facts(self) -> dict[str, Any]:
        """What tables and pages say of it."""
        value, origin = self.scaling.value, self.scaling.origin
        return {**super().facts(), "probability": f"scaled by temperature {value:.4f}, {origin}"}

    def decision(self, threshold: float | None = None) -> Threshold:
        """The run's thresholds on the scaled probabilities; a given one is of these already."""
        found = super().decision(threshold)
        if threshold is not None:
            return found
        return dataclasses.replace(
            found,
            value=scaled_threshold(found.value, self.scaling),
            origin=f"{found.origin}, scaled as the probabilities are",
            patient_value=scaled_threshold(found.patient_value, self.scaling),
            patient_origin=f"{found.patient_origin}, scaled as the probabilities are",
        )

    def predictor(
        self, batch_size: int, *, with_mask: bool
    ) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
        """As ``TrainedRun.predictor``, with 'probability' scaled."""
        predict = super().predictor(batch_size, with_mask=with_mask)

        def scaled(video: np.ndarray) -> dict[str, np.ndarray]:
            result = predict(video)
            return {**result, "probability": self.scaling.scale(result["probability"])}

        return scaled


def calibrated(run: TrainedRun) -> CalibratedRun:
    """A run with the temperature that its evaluation fitted on validation cases, or that is now.

    UserError where none could be fitted, or the validation split cannot be read.
    """
    temperature = run.temperature()
    if temperature.value is None:
        raise UserError(
            f"{run.folder.path} has no temperature: {temperature.origin}",
            "leave out --calibrated",
        )
    fields = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    return CalibratedRun(**fields, scaling=temperature)
