"""A model that says where it looked: as bright as the middle of the crop."""

from typing import Any

import numpy as np

from mvo_jax.data.slices import Target
from mvo_jax.evaluation.thresholds import Threshold


class BrightMiddle:
    """Probability: the mean grey value of the middle sixteenth of the clip."""

    name = "the bundle bright"
    simulated = True
    geometry = Target(frames=8, image_size=32, spacing_mm=1.5)
    threshold = Threshold(0.5, "by hand", "max", 0.5, "by hand")

    def predict(self, video: np.ndarray) -> dict[str, Any]:
        middle = video[:, :, 12:20, 12:20, 0].mean((1, 2, 3)) / 255
        return {"probability": middle, "coarse_mask": np.tile(middle[:, None, None], (1, 4, 4))}
