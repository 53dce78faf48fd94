"""A model that says where it looked: as bright as the middle of the crop."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mvo_jax.data.slices import Target
from mvo_jax.evaluation.thresholds import Threshold


class BrightMiddle:
    """Probability: the mean grey value of the middle sixteenth of the clip."""

    name = "the bundle bright"
    simulated = True
    geometry = Target(frames=8, image_size=32, spacing_mm=1.5)
    batch_size = 2

    def decision(self, threshold: float | None = None) -> Threshold:
        value = 0.5 if threshold is None else threshold
        return Threshold(value, "by hand", "max", value, "by hand")

    def facts(self) -> dict[str, Any]:
        return {"checkpoint": "none"}

    def predictor(
        self, batch_size: int, *, with_mask: bool
    ) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        assert (batch_size, with_mask) == (2, True)

        def predict(video: np.ndarray) -> dict[str, np.ndarray]:
            assert len(video) <= batch_size
            middle = video[:, :, 12:20, 12:20, 0].mean((1, 2, 3)) / 255
            return {"probability": middle, "coarse_mask": np.tile(middle[:, None, None], (1, 4, 4))}

        return predict
