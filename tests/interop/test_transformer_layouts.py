"""Weights of ViViT and TimeSformer to torch and back: every key, every bit, every refusal."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mvo_jax.errors import UserError
from mvo_jax.interop import weight_rules
from mvo_jax.interop.layouts import timesformer, vivit
from mvo_jax.interop.torch_models.timesformer import TorchTimeSformer
from mvo_jax.interop.torch_models.vivit import TorchViViT
from mvo_jax.models.baselines.timesformer import TimeSformer
from mvo_jax.models.baselines.vivit import ViViT

SIZES: dict[str, Any] = {
    "hidden_size": 12,
    "num_layers": 2,
    "num_heads": 3,
    "head_dim": 6,
    "mlp_dim": 20,
    "patch_size": 8,
}
# layout -> (Flax class, torch class, options)
NETWORKS: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "vivit": (vivit.REFERENCE, ViViT, TorchViViT, {**SIZES, "tubelet_size": 2}),
    "gated": (timesformer.GATED, TimeSformer, TorchTimeSformer, {**SIZES, "form": "gated"}),
    "released": (
        timesformer.RELEASED,
        TimeSformer,
        TorchTimeSformer,
        {**SIZES, "form": "released"},
    ),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def shapes_of(model: Any, clip: tuple[int, ...] = (4, 16, 16, 3)) -> dict[str, Any]:
    video = jax.ShapeDtypeStruct((1, *clip), jnp.float32)
    return dict(jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), video))


@every_network
def test_round_trip_is_bit_exact(name, random_bits):
    layout, flax_class, _, options = NETWORKS[name]
    shapes = shapes_of(flax_class(**options))
    variables = random_bits(shapes)
    state = weight_rules.to_torch(variables, layout)
    back = weight_rules.to_flax(state, shapes, layout)
    before: dict[Any, Any] = flatten_dict(variables)
    after: dict[Any, Any] = flatten_dict(back)
    assert before.keys() == after.keys()
    for path, value in before.items():
        assert value.shape == after[path].shape
        assert value.tobytes() == after[path].tobytes()


@every_network
def test_keys_and_shapes_are_those_of_the_torch_model(name, random_bits):
    layout, flax_class, torch_class, options = NETWORKS[name]
    state = weight_rules.to_torch(random_bits(shapes_of(flax_class(**options))), layout)
    expected = torch_class(4, 16, **options).state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}


@every_network
def test_what_does_not_fit_is_refused(name, random_bits):
    layout, flax_class, _, options = NETWORKS[name]
    shapes = shapes_of(flax_class(**options))
    state = weight_rules.to_torch(random_bits(shapes), layout)
    first, second, *_ = sorted(state)
    del state[first]
    state[second] = np.zeros(state[second].shape, np.float64)
    state["blocks.0.unheard_of"] = np.zeros(3, np.float32)
    with pytest.raises(UserError) as caught:
        weight_rules.to_flax(state, shapes, layout)
    assert f"1 keys missing: {first}" in caught.value.cause
    assert f"{second} float64, not float32" in caught.value.cause
    assert "without a rule: blocks.0.unheard_of" in caught.value.cause
    # Positions of another number of frames are not cut or stretched.
    longer = shapes_of(flax_class(**options), (6, 16, 16, 3))
    state = weight_rules.to_torch(random_bits(shapes), layout)
    with pytest.raises(UserError, match=r"of wrong shape: .*(pos|time)_e"):
        weight_rules.to_flax(state, longer, layout)


def published_keys() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the published base model, by the structure of the authors' code."""
    dim, mlp = 768, 3072
    keys: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, 197, dim),
        "time_embed": (1, 8, dim),
        "patch_embed.proj.weight": (dim, 3, 16, 16),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "head.weight": (400, dim),
        "head.bias": (400,),
    }
    linear = {
        "temporal_attn.qkv": (3 * dim, dim),
        "temporal_attn.proj": (dim, dim),
        "temporal_fc": (dim, dim),
        "attn.qkv": (3 * dim, dim),
        "attn.proj": (dim, dim),
        "mlp.fc1": (mlp, dim),
        "mlp.fc2": (dim, mlp),
    }
    for block in range(12):
        start = f"blocks.{block}"
        for norm in ("temporal_norm1", "norm1", "norm2"):
            keys |= {f"{start}.{norm}.weight": (dim,), f"{start}.{norm}.bias": (dim,)}
        for module, shape in linear.items():
            keys |= {f"{start}.{module}.weight": shape, f"{start}.{module}.bias": shape[:1]}
    return {f"model.{key}": shape for key, shape in keys.items()}


def test_a_published_kinetics_checkpoint_fits():
    model = TimeSformer(form="released", hidden_size=768, mlp_dim=3072)
    shapes = shapes_of(model, (8, 224, 224, 3))
    trunk = {"params": {k: v for k, v in shapes["params"].items() if k != "classifier"}}
    # Views of one number: the shapes are what counts here, and they are 0.5 GB.
    state = {k: np.broadcast_to(np.float32(0), shape) for k, shape in published_keys().items()}
    assert len(state) == 249
    weight_rules.to_flax(state, trunk, timesformer.KINETICS)
    with pytest.raises(UserError, match=r"model\.head\.weight"):
        weight_rules.to_flax(state, shapes, timesformer.RELEASED)  # 400 classes are not one


def test_orientation_of_a_patch_kernel():
    kernel = np.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)  # [out, channel, y, x]
    rule = weight_rules.PatchKernel(channels=3)
    matrix = rule.to_flax(kernel)
    assert matrix.shape == (48, 2)
    assert matrix[(2 * 4 + 1) * 3 + 2, 1] == kernel[1, 2, 2, 1]
    np.testing.assert_array_equal(rule.to_torch(matrix), kernel)
    for wrong in (kernel[:, :2], kernel[..., :3], kernel[..., 0]):
        with pytest.raises(ValueError, match="no kernel of square patches"):
            rule.to_flax(wrong)
    with pytest.raises(ValueError, match="reshape"):
        rule.to_torch(matrix[:-1])


def test_a_grey_embedding_cannot_be_written_as_the_published_convolution(random_bits):
    options = {**NETWORKS["released"][3], "in_channels": 1}
    variables = random_bits(shapes_of(TimeSformer(**options), (4, 16, 16, 1)))
    with pytest.raises(UserError, match="of wrong shape: params/patch_embedding/kernel"):
        weight_rules.to_torch(variables, timesformer.RELEASED)
