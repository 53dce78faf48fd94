"""A trained run whose probabilities are scaled by its temperature."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mvo_jax.data.slices import Target
from mvo_jax.errors import UserError
from mvo_jax.evaluation.calibration import Temperature, scaled_threshold
from mvo_jax.evaluation.thresholds import Threshold
from mvo_jax.runs.folder import RunFolder
from mvo_jax.trained_run import TrainedRun


@dataclasses.dataclass(frozen=True)
class CalibratedRun:
    """A run as ``predict_images`` takes it: the same cases are called MVO, at other probabilities.

    Attributes:
        run: gives the probabilities.
        temperature: that they are scaled with.
    """

    run: TrainedRun
    temperature: Temperature

    @property
    def folder(self) -> RunFolder:
        """Of the run."""
        return self.run.folder

    @property
    def config(self) -> Any:
        """Of the run."""
        return self.run.config

    @property
    def geometry(self) -> Target:
        """Of the run."""
        return self.run.geometry

    @property
    def batch_size(self) -> int:
        """Of the run."""
        return self.run.batch_size

    @property
    def simulated(self) -> bool:
        """Of the run."""
        return self.run.simulated

    @property
    def name(self) -> str:
        """What pages call it."""
        return self.run.name

    def facts(self) -> dict[str, Any]:
        """What tables and pages say of it."""
        value, origin = self.temperature.value, self.temperature.origin
        return {**self.run.facts(), "probability": f"scaled by temperature {value:.4f}, {origin}"}

    def decision(self, threshold: float | None = None) -> Threshold:
        """The run's thresholds on the scaled probabilities; a given one is of these already."""
        found = self.run.decision(threshold)
        if threshold is not None:
            return found
        return dataclasses.replace(
            found,
            value=scaled_threshold(found.value, self.temperature),
            origin=f"{found.origin}, scaled as the probabilities are",
            patient_value=scaled_threshold(found.patient_value, self.temperature),
            patient_origin=f"{found.patient_origin}, scaled as the probabilities are",
        )

    def predictor(
        self, batch_size: int, *, with_mask: bool
    ) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
        """As ``TrainedRun.predictor``, with 'probability' scaled."""
        predict = self.run.predictor(batch_size, with_mask=with_mask)

        def scaled(video: np.ndarray) -> dict[str, np.ndarray]:
            result = predict(video)
            return {**result, "probability": self.temperature.scale(result["probability"])}

        return scaled


def calibrated(run: TrainedRun) -> CalibratedRun:
    """A run with the temperature that its evaluation fitted on validation cases, or that is now.

    Raises:
        UserError: none could be fitted, or the validation split cannot be read.
    """
    temperature = run.temperature()
    if temperature.value is None:
        raise UserError(
            f"{run.folder.path} has no temperature: {temperature.origin}",
            "leave out --calibrated",
        )
    return CalibratedRun(run, temperature)
