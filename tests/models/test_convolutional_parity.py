"""C3D, I3D, SlowFast and P3D against their torch twins, in float64 and at full size in float32."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

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
from mvo_jax.models.baselines.c3d import C3D
from mvo_jax.models.baselines.i3d import I3D
from mvo_jax.models.baselines.p3d import P3D
from mvo_jax.models.baselines.slowfast import SlowFast
from mvo_jax.models.ops.numerics import Numerics
from tests.torch_pairs import (
    FAST_COMPILE,
    TorchPair,
    assert_forward_equal,
    assert_gradients_equal,
    assert_statistics_equal,
)


@dataclasses.dataclass(frozen=True)
class System:
    """A network in both frameworks.

    Attributes:
        flax: class of the Flax module.
        torch: class of its torch twin, same options.
        layout: between the two.
    """

    flax: type
    torch: type
    layout: Layout

    def torch_model(self, clip: tuple[int, ...], options: dict[str, Any]) -> Any:
        return self.torch(*clip[:2], **options)


SYSTEMS = {
    "c3d": System(C3D, TorchC3D, c3d_layouts.REFERENCE),
    "i3d": System(I3D, TorchI3D, i3d_layouts.REFERENCE),
    "slowfast": System(SlowFast, TorchSlowFast, slowfast_layouts.REFERENCE),
    "p3d": System(P3D, TorchP3D, p3d_layouts.REFERENCE),
}

# name -> (options, clip): the fewest layers that hold every kind of block; odd sizes meet every
# border, and a clip of one channel the three-channel stem. The depth is full below.
CASES: dict[str, tuple[dict[str, Any], tuple[int, int, int, int]]] = {
    "c3d": ({"width": 4, "hidden_size": 16}, (17, 20, 20, 1)),
    "i3d": ({"width": 8, "stage_sizes": (0, 1, 0), "head_size": 8}, (9, 33, 33, 1)),
    "slowfast": ({"width": 16, "stage_sizes": (1, 1)}, (9, 33, 33, 1)),
    "p3d": ({"width": 4, "stage_sizes": (3, 0, 0, 1), "num_outputs": 2}, (17, 33, 33, 3)),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_training_equals_torch_in_float64(name):
    system, (options, clip) = SYSTEMS[name], CASES[name]
    torch.manual_seed(0)
    with jax.enable_x64(True):
        model = system.flax(
            **options, numerics=Numerics(dtype=jnp.float64, param_dtype=jnp.float64)
        )
        pair = TorchPair(model, system.torch_model(clip, options), system.layout, clip)
        ours = pair.flax()
        theirs = pair.torch(ours["dropout"])
    assert_forward_equal(ours, theirs)
    assert_gradients_equal(ours, theirs)
    assert_statistics_equal(ours, theirs)


@pytest.mark.parametrize("name", SYSTEMS)
def test_full_size_inference_equals_torch_in_float32(name, random_variables):
    system, clip = SYSTEMS[name], (30, 64, 64, 1)
    model = system.flax()
    variables = random_variables(model, (1, *clip), train=False)
    state = weight_rules.to_torch(variables, system.layout)
    with torch.device("meta"):  # its own weights are not needed
        reference = system.torch_model(clip, {}).eval()
    reference.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, assign=True)
    video = np.random.default_rng(0).standard_normal((1, *clip), dtype=np.float32)

    def run(variables: Any, video: Any) -> Any:
        return model.apply(variables, video, train=False, mutable=["intermediates"])

    ours, updated = jax.jit(run, compiler_options=FAST_COMPILE)(variables, video)
    kept = flatten_dict(updated["intermediates"], sep="/")
    reference.record()
    with torch.no_grad():
        theirs = reference(torch.from_numpy(video))
    expected = reference.intermediates()
    assert kept.keys() == expected.keys()
    pairs = {k: (kept[k], expected[k]) for k in kept} | {"logits": (ours.logits, theirs.logits)}
    for k, (a, b) in pairs.items():
        b = b.numpy()
        print(name, k, np.abs(np.asarray(a) - b).max() / np.abs(b).max(), np.abs(b).max())
