"""Everything a training run carries from one step to the next."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """State of a run; a pytree of arrays.

    Attributes:
        step: int32 scalar, updates done so far.
        params: parameters of the model.
        batch_stats: running statistics; empty for a model without BatchNorm.
        opt_state: state of the optimiser.
        ema_params: exponential moving average of ``params``; None when not kept.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema_params: PyTree = None

    def eval_variables(self) -> dict[str, PyTree]:
        """Variables to evaluate with: the averaged parameters where they are kept."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, "batch_stats": self.batch_stats}


def create_state(
    model: nn.Module,
    optimiser: optax.GradientTransformation,
    key: jax.Array,
    clip_shape: tuple[int, int, int, int],
    *,
    ema: bool = False,
) -> TrainState:
    """Initialise a model and its optimiser.

    Args:
        model: called as ``model(video, train=..., with_mask=...)``.
        optimiser: from ``optim.make_optimiser``.
        key: key of the initialisation.
        clip_shape: (T, H, W, C) of one clip.
        ema: keep a moving average of the parameters.

    Returns:
        The state at step 0. Under ``jax.eval_shape`` its shapes only.
    """

    variables = _initial(model, clip_shape)(key)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimiser.init(params),
        ema_params=jax.tree.map(jnp.array, params) if ema else None,
    )


def _initial(model: nn.Module, clip_shape: tuple[int, int, int, int]) -> Callable[..., PyTree]:
    """The program of a model's initial variables, one for all models that are equal.

    A network of a user's own may have lists or dicts among its fields, which no cache can hold: it
    is traced each time.
    """
    try:
        return _cached_initial(model, clip_shape)
    except TypeError:
        return _initial_program(model, clip_shape)


def _initial_program(
    model: nn.Module, clip_shape: tuple[int, int, int, int]
) -> Callable[..., PyTree]:
    def init(key: jax.Array) -> PyTree:
        return model.init(key, jnp.zeros((1, *clip_shape)), train=False)

    # Jitted, so that initialising does not run the convolutions one operation at a time. On a CPU
    # with little optimisation: the draws of each variable are a loop of their own, and LLVM spends
    # half a second on. Levels 1 to 3 give equal bits, level 0 does not.
    traced = jax.jit(init)
    level = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    compiled = jax.jit(init, compiler_options=level)
    # Only the outermost program takes options; where shapes are asked for, this is not that.
    return lambda key: (traced if isinstance(key, Tracer) else compiled)(key)


# Shapes and values of one model take one trace.
_cached_initial = functools.lru_cache(maxsize=8)(_initial_program)


def start_from(state: TrainState, variables: Mapping[str, PyTree]) -> TrainState:
    """A fresh state with some of its variables replaced, as in fine-tuning.

    Args:
        state: at step 0; its optimiser has seen nothing, so its moments stay as they are.
        variables: {'params', 'batch_stats'}, whole or in part, of the state's shapes.
    """

    def over(tree: PyTree, other: PyTree) -> PyTree:
        flat = flax.traverse_util.flatten_dict(tree)
        new = {
            key: jnp.asarray(value) for key, value in flax.traverse_util.flatten_dict(other).items()
        }
        return flax.traverse_util.unflatten_dict({**flat, **new})

    params = over(state.params, variables.get("params", {}))
    return dataclasses.replace(
        state,
        params=params,
        batch_stats=over(state.batch_stats, variables.get("batch_stats", {})),
        ema_params=None if state.ema_params is None else jax.tree.map(jnp.array, params),
    )
