"""C3D, I3D, SlowFast and P3D against their torch twins, in float64 and at full size in float32."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_pairs import TorchPair, assert_pair_equal

from mvo_jax.interop import weight_rules
from mvo_jax.interop.layouts import c3d as c3d_layouts
from mvo_jax.interop.layouts import i3d as i3d_layouts
from mvo_jax.interop.layouts import p3d as p3d_layouts
from mvo_jax.interop.layouts import slowfast as slowfast_layouts
from mvo_jax.interop.torch_models.c3d import TorchC3D
from mvo_jax.interop.torch_models.i3d import TorchI3D
from mvo_jax.interop.torch_models.p3d import TorchP3D
from mvo_jax.interop.torch_models.slowfast import TorchSlowFast
from mvo_jax.interop.weight_rules import Layout
from mvo_jax.models.c3d import C3D
from mvo_jax.models.i3d import I3D
from mvo_jax.models.p3d import P3D
from mvo_jax.models.slowfast import SlowFast


@dataclasses.dataclass(frozen=True)
class System:
    """A network in both frameworks.

    Attributes:
        flax: class of the Flax module.
        torch: class of its torch twin, same options.
        layout: between the two.
        sized: whether the torch class needs frames and size.
    """

    flax: type
    torch: type
    layout: Layout
    sized: bool = False

    def torch_model(self, clip: tuple[int, ...], options: dict[str, Any]) -> Any:
        return self.torch(*clip[:2], **options) if self.sized else self.torch(**options)


SYSTEMS = {
    "c3d": System(C3D, TorchC3D, c3d_layouts.REFERENCE, sized=True),
    "i3d": System(I3D, TorchI3D, i3d_layouts.REFERENCE),
    "slowfast": System(SlowFast, TorchSlowFast, slowfast_layouts.REFERENCE),
    "p3d": System(P3D, TorchP3D, p3d_layouts.REFERENCE),
}

# (system, lowering, options, clip): every lowering and both stems; odd sizes meet every border.
CASES: list[tuple[str, str, dict[str, Any], tuple[int, int, int, int]]] = [
    ("c3d", "conv2d", {"width": 4, "hidden_size": 16}, (17, 20, 20, 1)),
    (
        "c3d",
        "im2col_conv1d",
        {"width": 4, "hidden_size": 16, "num_outputs": 2, "in_channels": 1},
        (16, 16, 16, 1),
    ),
    ("c3d", "conv3d", {"width": 4, "hidden_size": 16}, (16, 19, 19, 3)),
    ("i3d", "conv2d", {"width": 8, "stage_sizes": (1, 1, 1), "head_size": 8}, (9, 33, 33, 1)),
    ("i3d", "conv3d", {"width": 8, "stage_sizes": (2, 1, 0), "head_size": 0}, (8, 32, 32, 3)),
    ("slowfast", "conv2d", {"width": 16, "stage_sizes": (1, 1, 1, 1)}, (9, 33, 33, 1)),
    ("slowfast", "conv3d", {"width": 16, "stage_sizes": (2, 1)}, (30, 32, 32, 3)),
    ("p3d", "conv2d", {"width": 4, "stage_sizes": (2, 1, 1, 2)}, (17, 33, 33, 1)),
    ("p3d", "conv3d", {"width": 4, "stage_sizes": (1, 1, 1, 1)}, (32, 32, 32, 3)),
]


@pytest.mark.parametrize(
    ("name", "lowering", "options", "clip"), CASES, ids=lambda value: str(value)[:16]
)
def test_training_and_inference_equal_torch_in_float64(name, lowering, options, clip):
    system = SYSTEMS[name]
    torch.manual_seed(0)
    with jax.enable_x64(True):
        model = system.flax(
            **options, lowering=lowering, dtype=jnp.float64, param_dtype=jnp.float64
        )
        pair = TorchPair(model, system.torch_model(clip, options), system.layout, clip)
        assert_pair_equal(pair)


@pytest.mark.parametrize("name", SYSTEMS)
def test_full_size_inference_equals_torch_in_float32(name):
    system, clip = SYSTEMS[name], (30, 64, 64, 1)
    torch.manual_seed(0)
    reference = system.torch_model(clip, {}).eval()
    model = system.flax()
    target = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, *clip)), train=False)
    )
    state = {k: v.numpy() for k, v in reference.state_dict().items()}
    variables = weight_rules.to_flax(state, target, system.layout)
    video = np.random.default_rng(0).standard_normal((1, *clip), dtype=np.float32)
    apply: Any = jax.jit(
        lambda v, x: model.apply(v, x, train=False, mutable=["intermediates"]),
    )
    ours, kept = apply(variables, video)
    reference.record()
    with torch.no_grad():
        theirs = reference(torch.from_numpy(video))
    expected = reference.intermediates()
    print(name, np.abs(ours.logits - theirs.logits.numpy()).max(), theirs.logits)
