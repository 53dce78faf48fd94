"""Parameters, FLOPs and memory of a model from abstract shapes; nothing is computed."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core


def parameter_count(tree: Any) -> int:
    """Number of scalars in a pytree of arrays or abstract shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


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
            if isinstance(value, core.ClosedJaxpr):
                total += _flops(value.jaxpr)
            elif isinstance(value, core.Jaxpr):
                total += _flops(value)
    return total


def forward_flops(model: nn.Module, clip_shape: tuple[int, int, int, int], **call: Any) -> int:
    """FLOPs of one clip's forward pass, dense (padding counted as work).

    Args:
        model: without device axis.
        clip_shape: (T, H, W, C).
        **call: ``train`` and ``with_mask`` of the model's call.
    """
    clip = jax.ShapeDtypeStruct((1, *clip_shape), jnp.float32)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros(clip.shape), train=False)
    )

    def forward(variables: Any, video: jax.Array) -> Any:
        return model.apply(
            variables,
            video,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
            **call,
        )

    return _flops(jax.make_jaxpr(forward)(variables, clip).jaxpr)


def activation_bytes(model: nn.Module, clip_shape: tuple[int, int, int, int]) -> int:
    """Bytes kept between forward and backward pass of one clip: the residuals of ``jax.vjp``.

    An upper estimate: XLA may recompute cheap ones. Parameters are not counted.
    """
    clip = jax.ShapeDtypeStruct((1, *clip_shape), jnp.float32)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros(clip.shape), train=False)
    )

    def residuals(params: Any, batch_stats: Any, video: jax.Array) -> Any:
        def forward(params: Any) -> Any:
            return model.apply(
                {"params": params, "batch_stats": batch_stats},
                video,
                train=True,
                with_mask=True,
                rngs={"dropout": jax.random.key(0)},
                mutable=["batch_stats"],
            )

        output, pullback = jax.vjp(forward, params)
        return output, pullback

    _, pullback = jax.eval_shape(
        residuals, variables["params"], variables.get("batch_stats", {}), clip
    )
    kept = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))
    parameters = sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables["params"])
    )
    return max(0, kept - parameters)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        parameters: scalars by part of the model (child of the module), in the order of the
            forward pass.
        inference_parameters: scalars without the mask branch.
        forward_flops: one clip, inference.
        training_flops: one clip: forward pass plus twice that for the backward pass.
        activation_bytes: kept for the backward pass, one clip.
        state_bytes: parameters, gradients, optimiser moments and statistics.
    """

    parameters: dict[str, int]
    inference_parameters: int
    forward_flops: int
    training_flops: int
    activation_bytes: int
    state_bytes: int


def model_cost(model: nn.Module, clip_shape: tuple[int, int, int, int], *, moments: int) -> Cost:
    """Cost of a model from abstract shapes.

    Args:
        model: without device axis.
        clip_shape: (T, H, W, C) of one clip.
        moments: values the optimiser keeps per parameter: 2 for AdamW, 1 for SGD with momentum.
    """
    order: list[str] = []

    def init() -> Any:
        variables = model.init(jax.random.key(0), jnp.zeros((1, *clip_shape)), train=False)
        order.extend(variables["params"])  # as they were made; a traced result is sorted by name
        return variables

    shapes: Any = jax.eval_shape(init)
    parts = {name: parameter_count(shapes["params"][name]) for name in order}
    size = {
        name: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
        for name, tree in shapes.items()
    }
    training = forward_flops(model, clip_shape, train=True, with_mask=True)
    return Cost(
        parameters=parts,
        inference_parameters=sum(n for name, n in parts.items() if name != "decoder"),
        forward_flops=forward_flops(model, clip_shape, train=False, with_mask=False),
        training_flops=3 * training,
        activation_bytes=activation_bytes(model, clip_shape),
        state_bytes=(2 + moments) * size["params"] + size.get("batch_stats", 0),
    )
