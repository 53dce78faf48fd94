"""Every system as an ONNX graph: what onnxruntime makes of grey values is what the twin makes."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mvo_jax.errors import UserError
from mvo_jax.interop.convert import model_shapes
from mvo_jax.interop.layouts import twin_layout
from mvo_jax.interop.onnx_graph import normalise, onnx_bytes, whole_model
from mvo_jax.interop.parity.cases import SMALL, Case
from mvo_jax.interop.parity.pair import draw_weights
from mvo_jax.interop.weight_rules import to_flax
from tests.small_run import slow_but

# Both forms of TimeSformer: attention of groups with softmax in place of sigmoid; one grey channel,
# as the reduced config has, into a convolution over patches.
GATED: dict[str, Any] = {"form": "gated", "num_outputs": 2}
GREY: dict[str, Any] = {"form": "released", "in_channels": 1}
# tests/bundles has mvo_net.
CASES = [
    *(Case(name) for name in SMALL if name not in ("mvo_net", "timesformer")),
    Case("timesformer", network=GATED),
    Case("timesformer", network=GREY),
]


@pytest.mark.parametrize(
    "case",
    slow_but(Case("c3d"), CASES, "traces a baseline in PyTorch; C3D stands for all"),
    ids=str,
)
def test_every_system_as_its_twin(case):
    frames, height, width = case.clip[:3]
    clip = frames, height, width, 1
    weights = {key: value.numpy() for key, value in draw_weights(case, seed=0).state_dict().items()}
    variables = to_flax(weights, model_shapes(case.config, clip), twin_layout(case.config))
    whole = whole_model(case.config, variables, clip)
    content = onnx_bytes(whole, clip)
    graph = onnx.load_from_string(content)
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param  # a batch of any size
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)
    session: Any = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    clips = np.random.default_rng(0).integers(0, 256, (3, *clip), dtype=np.uint8)
    for batch in (clips, clips[:1]):  # the size that was traced is another one, 2
        with torch.no_grad():
            expected = whole(torch.from_numpy(batch))
        found = session.run(None, {"video": batch})
        assert names == ["probability", "logits", "coarse_mask"][: len(expected)]
        for ours, theirs in zip(found, expected, strict=True):
            # float32: some 20 layers of sums over at most 2,000 terms of order 1; seen 4e-7.
            np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-6)


def test_a_constant_clip_stays_quiet():
    clips = torch.full((2, 8, 4, 4, 1), 200, dtype=torch.uint8)
    clips[1, 0] = 100
    normal = normalise(clips)
    assert normal.dtype == torch.float32
    assert not normal[0].any()
    assert normal[1].std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_a_network_without_a_twin_says_what_it_can_be():
    with pytest.raises(UserError, match="'mean_frame' has no twin") as caught:
        whole_model({"name": "mean_frame"}, {}, (8, 32, 32, 1))
    assert "--format=jax" in caught.value.remedy
