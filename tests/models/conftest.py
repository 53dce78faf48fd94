"""Random weights without compiling an initialiser, which takes longer than these tests."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

# Compiling takes far longer than running here: half the time without LLVM's optimisations.
QUICK_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def _random_variables(model: nn.Module, shape: tuple[int, ...], *, seed: int = 0, **call) -> Any:
    """Variables of the dtypes the model asks for: He kernels, scales and variances near one."""
    clip = jax.ShapeDtypeStruct(shape, np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, **call), clip)
    draws = np.random.default_rng(seed)

    def leaf(path: tuple[str, ...], of: Any) -> np.ndarray:
        normal = draws.standard_normal(of.shape)
        if path[-1] == "kernel":
            value = normal * np.sqrt(2 / np.prod(of.shape[:-1]))
        elif path[-1] in ("scale", "var"):
            value = 1 + 0.2 * np.tanh(normal)
        else:
            value = 0.1 * normal
        return value.astype(of.dtype)

    flat: dict[Any, Any] = flatten_dict(dict(shapes))
    return unflatten_dict({path: leaf(path, of) for path, of in flat.items()})


@pytest.fixture(scope="session")
def random_variables() -> Callable[..., Any]:
    return _random_variables


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
