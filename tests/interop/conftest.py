"""Models of the size that converts in no time, and weights made of random bits."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from mvo_jax.models.registry import published_config

SMALL = published_config("mvo_net") | {
    "width": 8,
    "stage_sizes": (1, 1),
    "num_heads": 2,
    "decoder_layout": "released",
}


@pytest.fixture(scope="session")
def small_model() -> dict[str, Any]:
    """The ``model`` part of a config."""
    return SMALL


@pytest.fixture(scope="session")
def random_bits() -> Callable[[Any], Any]:
    """Arrays of random bytes: signed zeros, infinities and NaN payloads are among them."""

    def random_bits(like: Any) -> Any:
        rng = np.random.default_rng(0)

        def draw(leaf: Any) -> np.ndarray:
            dtype = np.dtype(leaf.dtype)
            return np.frombuffer(rng.bytes(leaf.size * dtype.itemsize), dtype).reshape(leaf.shape)

        return jax.tree.map(draw, like)

    return random_bits


def _same_bits(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture(scope="session")
def same_bits() -> Callable[[Any, Any], bool]:
    """Whether two dicts of arrays have the same names, dtypes, shapes and bytes."""

    def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
        return a.keys() == b.keys() and all(_same_bits(a[name], b[name]) for name in a)

    return same
