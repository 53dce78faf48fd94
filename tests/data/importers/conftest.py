"""A simulated case, whole and as a stack."""

import numpy as np
import pytest

from mvo_jax.data.phantom.case import simulate_case
from mvo_jax.data.phantom.cohort import CohortSpec


@pytest.fixture(scope="session")
def simulated() -> list[tuple[str, np.ndarray, np.ndarray, int]]:
    """(case id, uint8 [16, 64, 64], mask, label) of 16 cases, half of them with MVO."""
    keys = CohortSpec("paper", 0, "tiny").keys("train")
    cases = [simulate_case(key, frames=16) for key in keys]
    return [(c.key.case_id, c.video[..., 0], c.lge_mask, int(c.key.mvo)) for c in cases]


@pytest.fixture(scope="session")
def cine(simulated) -> np.ndarray:
    """A positive case's clip."""
    return next(video for _, video, _, label in simulated if label)


@pytest.fixture(scope="session")
def mask(simulated) -> np.ndarray:
    """Its mask."""
    return next(mask for _, _, mask, label in simulated if label)
