"""ViViT and TimeSformer against their torch twins: float64 in training, full size in float32.

Training and inference differ in dropout alone, whose masks are injected.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mvo_jax.interop import weight_rules
from mvo_jax.interop.layouts import timesformer as timesformer_layouts
from mvo_jax.interop.layouts import vivit as vivit_layouts
from mvo_jax.interop.torch_models.timesformer import TorchTimeSformer
from mvo_jax.interop.torch_models.vivit import TorchViViT
from mvo_jax.models.baselines.timesformer import TimeSformer
from mvo_jax.models.baselines.vivit import ViViT
from mvo_jax.models.ops.numerics import Numerics
from tests.torch_pairs import FAST_COMPILE, TorchPair, assert_forward_equal, assert_gradients_equal

# One layer: every dropout takes a second to compile. The full-size test below has all of them.
SMALL: dict[str, Any] = {
    "hidden_size": 12,
    "num_heads": 3,
    "head_dim": 6,  # three of them are wider than a token, as 12 of 64 are than 512
    "mlp_dim": 20,
    "patch_size": 8,
    "dropout_rate": 0.2,
}
# (Flax class, torch class, layout, options, clip)
CASES: list[tuple[type, type, Any, dict[str, Any], tuple[int, int, int, int]]] = [
    (
        ViViT,
        TorchViViT,
        vivit_layouts.REFERENCE,
        {**SMALL, "tubelet_size": 2, "num_layers": 1},
        (6, 16, 16, 1),
    ),
    (
        TimeSformer,
        TorchTimeSformer,
        timesformer_layouts.GATED,
        {**SMALL, "form": "gated", "num_layers": 1, "num_outputs": 2},
        (3, 16, 16, 1),
    ),
    (
        TimeSformer,
        TorchTimeSformer,
        timesformer_layouts.RELEASED,
        {**SMALL, "form": "released", "num_layers": 1},
        (3, 16, 16, 3),
    ),
]
NAMES = ["vivit", "timesformer-gated", "timesformer-released"]


@pytest.mark.parametrize(
    ("flax_class", "torch_class", "layout", "options", "clip"), CASES, ids=NAMES
)
def test_training_equals_torch_in_float64(flax_class, torch_class, layout, options, clip):
    torch.manual_seed(0)
    with jax.enable_x64(True):
        model = flax_class(**options, numerics=Numerics(dtype=jnp.float64, param_dtype=jnp.float64))
        # No gradient vanishes: the bias of the keys, whose does, is a third of a fused one.
        pair = TorchPair(model, torch_class(*clip[:2], **options), layout, clip)
        ours = pair.flax()
        theirs = pair.torch(ours["dropout"])
    assert ours["dropout"]
    assert_forward_equal(ours, theirs)
    assert_gradients_equal(ours, theirs)


@pytest.mark.parametrize(
    ("flax_class", "torch_class", "layout"), [case[:3] for case in CASES[:2]], ids=NAMES[:2]
)
def test_full_size_inference_equals_torch_in_float32(flax_class, torch_class, layout):
    torch.manual_seed(0)
    reference, model = torch_class().eval(), flax_class()
    clip = jax.ShapeDtypeStruct((1, 30, 64, 64, 1), jnp.float32)
    target: Any = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), clip)
    state = {k: v.numpy() for k, v in reference.state_dict().items()}
    variables = weight_rules.to_flax(state, target, layout)
    video = np.random.default_rng(0).standard_normal(clip.shape, dtype=np.float32)
    run = jax.jit(lambda v, x: model.apply(v, x, train=False).logits, compiler_options=FAST_COMPILE)
    ours = run(variables, video)
    with torch.no_grad():
        theirs = reference(torch.from_numpy(video)).logits
    difference = np.abs(np.asarray(ours) - theirs.numpy()).max()
    # float32 rounds at 6e-8, sums have up to 2048 terms, 24 residual branches follow each other.
    assert difference <= 1e-5 * max(1.0, float(theirs.abs().max()))
