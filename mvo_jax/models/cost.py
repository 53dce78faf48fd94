"""Parameters, FLOPs and memory of a model from abstract shapes; nothing is computed."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

Clip = tuple[int, int, int, int]  # (T, H, W, C)


def parameter_count(tree: Any) -> int:
    """Number of scalars in a pytree of arrays or abstract shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _abstract(model: nn.Module, clip_shape: Clip) -> tuple[Any, Any, list[str]]:
    """Shapes of a model's variables and of a clip, and the parts of a model in order of use."""
    order: list[str] = []

    def init(video: jax.Array) -> Any:
        variables = model.init(jax.random.key(0), video, train=False)
        order.extend(variables["params"])  # as they were made; a traced result is sorted by name
        return variables

    clip = jax.ShapeDtypeStruct((1, *clip_shape), jnp.float32)
    return jax.eval_shape(init, clip), clip, order


def _call(model: nn.Module, variables: Any, video: jax.Array, **call: Any) -> Any:
    rngs = {"dropout": jax.random.key(0)}
    return model.apply(variables, video, rngs=rngs, mutable=["batch_stats"], **call)


def _flops(jaxpr: core.Jaxpr) -> int:
    """Multiply-adds times two of convolutions and matrix products, inner jaxprs included."""
    total = 0
    for equation in jaxpr.eqns:
        shapes: list[Any] = [getattr(v.aval, "shape", ()) for v in equation.invars]
        output = math.prod(getattr(equation.outvars[0].aval, "shape", ()))
        if equation.primitive.name == "conv_general_dilated":
            kernel = shapes[1]
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * output * math.prod(kernel) // features
        elif equation.primitive.name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            total += 2 * output * math.prod(shapes[0][axis] for axis in contract)
        for value in equation.params.values():
            inner = value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
            if isinstance(inner, core.Jaxpr):
                total += _flops(inner)
    return total


def forward_flops(model: nn.Module, clip_shape: Clip, **call: Any) -> int:
    """FLOPs of one clip's forward pass, dense (padding counted as work).

    The model has no device axis, as in all functions here; ``call`` is its train and with_mask.
    """
    variables, clip, _ = _abstract(model, clip_shape)
    traced = jax.make_jaxpr(lambda v, video: _call(model, v, video, **call))(variables, clip)
    return _flops(traced.jaxpr)


def activation_bytes(model: nn.Module, clip_shape: Clip) -> int:
    """Bytes kept between forward and backward pass of one clip: the residuals of ``jax.vjp``.

    An upper estimate: XLA may recompute cheap ones. Parameters are not counted.
    """
    variables, clip, _ = _abstract(model, clip_shape)

    def residuals(variables: Any, video: jax.Array) -> Any:
        def forward(params: Any) -> Any:
            return _call(model, {**variables, "params": params}, video, train=True, with_mask=True)

        return jax.vjp(forward, variables["params"])

    _, pullback = jax.eval_shape(residuals, variables, clip)
    return max(0, _bytes(pullback) - _bytes(variables["params"]))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs."""

    parameters: dict[str, int]  # scalars by child of the module, in the order of the forward pass
    inference_parameters: int  # scalars without the mask branch
    forward_flops: int  # one clip, inference
    training_flops: int  # one clip: forward pass plus twice that for the backward pass
    activation_bytes: int  # kept for the backward pass, one clip
    state_bytes: int  # parameters, gradients, optimiser moments and statistics


def model_cost(model: nn.Module, clip_shape: Clip, *, moments: int) -> Cost:
    """Cost of a model from abstract shapes.

    ``moments`` are the values that the optimiser keeps of a parameter: 2 for AdamW, 1 for SGD.
    """
    variables, _, order = _abstract(model, clip_shape)
    parts = {name: parameter_count(variables["params"][name]) for name in order}
    statistics = _bytes(variables.get("batch_stats", {}))
    return Cost(
        parameters=parts,
        inference_parameters=sum(n for name, n in parts.items() if name != "decoder"),
        forward_flops=forward_flops(model, clip_shape, train=False, with_mask=False),
        training_flops=3 * forward_flops(model, clip_shape, train=True, with_mask=True),
        activation_bytes=activation_bytes(model, clip_shape),
        state_bytes=(2 + moments) * _bytes(variables["params"]) + statistics,
    )
