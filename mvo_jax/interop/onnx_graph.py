"""A model as an ONNX graph, from grey values to probabilities: its PyTorch twin, exported.

torch, onnx and onnxscript are imported here.
"""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from mvo_jax.errors import UserError
from mvo_jax.interop.layouts import twin_layout
from mvo_jax.interop.torch_models import TWINS, build_twin
from mvo_jax.interop.torch_models.recording import RecordedModel
from mvo_jax.interop.weight_rules import to_torch

OPSET = 18  # of torch's exporter by itself; higher ones are converted from it


class WholeModel(nn.Module):
    """Normalisation, network and probability as one module."""

    def __init__(self, network: RecordedModel):
        super().__init__()
        self.network = network

    def forward(self, video: Tensor) -> tuple[Tensor, ...]:
        """uint8 ``[B, T, H, W, 1]`` to probability ``[B]``, logits and, where there is one, map."""
        logits, mask = self.network(normalise(video))
        binary = logits.shape[1] == 1
        probability = logits[:, 0].sigmoid() if binary else logits.softmax(dim=1)[:, 1]
        return (probability, logits) if mask is None else (probability, logits, mask)


def normalise(video: Tensor) -> Tensor:
    """``mvo_jax.data.augment.normalise`` of each clip of a batch ``[B, T, H, W, 1]``.

    In float64, because onnxruntime adds up the 122,880 grey values of a clip one after the other,
    and in float32 that rounding would be most of the difference from JAX.
    """
    axes = (1, 2, 3, 4)
    grey = video.double()
    centred = grey - grey.mean(axes, keepdim=True)
    deviation = centred.square().mean(axes, keepdim=True).sqrt()
    return (centred / deviation.clamp(min=0.5)).float()


def whole_model(
    model: Mapping[str, Any], variables: Mapping[str, Any], clip: tuple[int, ...]
) -> WholeModel:
    """The twin of a config's ``model`` with float32 variables; UserError where it has none."""
    if model["name"] not in TWINS:
        raise UserError(
            f"the model {model['name']!r} has no twin in PyTorch, which model.onnx is made of",
            "export it with --format=jax, or add the twin (CONTRIBUTING.md)",
        )
    twin = build_twin(model, clip)
    state = to_torch(variables, twin_layout(model))
    twin.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in state.items()})
    return WholeModel(twin).eval()


def onnx_bytes(whole: WholeModel, clip: tuple[int, ...]) -> bytes:
    """The graph as an ONNX file: input 'video', a batch of any size, and named outputs."""
    video = torch.zeros((2, *clip), dtype=torch.uint8)
    with torch.no_grad():
        count = len(whole(video))
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about torch
            # By itself, because torch.onnx.export would take a fixed batch where a free one fails.
            traced = torch.export.export(
                whole, (video,), dynamic_shapes={"video": {0: torch.export.Dim("batch", min=1)}}
            )
            program = torch.onnx.export(
                traced,
                input_names=["video"],
                output_names=["probability", "logits", "coarse_mask"][:count],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    graph = program.model_proto
    _forget_origin(graph)
    onnx.checker.check_model(graph)
    return graph.SerializeToString()


def _forget_origin(graph: onnx.ModelProto) -> None:
    """Take out what torch notes of the exporting machine: paths of source files, call stacks."""
    graph.producer_name, graph.producer_version = "mvo_jax", ""
    parts: list[Any] = [graph, graph.graph, *graph.functions]
    parts += [node for holder in parts[1:] for node in holder.node]
    parts += [*graph.graph.input, *graph.graph.output, *graph.graph.value_info]
    for part in [*parts, *graph.graph.initializer]:
        part.doc_string = ""
        del part.metadata_props[:]
