"""A small simulated cohort, made once."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def simulated(tmp_path_factory) -> Callable[..., SimpleNamespace]:
    """``simulated(dir=...)``: what a config says of the cohort, with changes."""
    cohort = {
        "name": "phantom", "dir": str(tmp_path_factory.mktemp("data")), "preset": "easy", "seed": 3,
        "size": "tiny", "frames": 8, "image_size": 32, "slices_per_patient": 2,
        "device_budget_mb": 1000,
    }  # fmt: skip
    return lambda **changes: SimpleNamespace(**(cohort | changes))
