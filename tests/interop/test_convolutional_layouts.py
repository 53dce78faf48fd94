"""Weights of C3D, I3D, SlowFast and P3D: our torch twins and the published checkpoints."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from mvo_jax.errors import UserError
from mvo_jax.interop import weight_rules
from mvo_jax.interop.layouts import LAYOUTS, c3d, i3d, p3d, slowfast
from mvo_jax.interop.torch_models.c3d import TorchC3D
from mvo_jax.interop.torch_models.i3d import TorchI3D
from mvo_jax.interop.torch_models.p3d import TorchP3D
from mvo_jax.interop.torch_models.slowfast import TorchSlowFast
from mvo_jax.interop.weight_rules import Layout
from mvo_jax.models.registry import MODELS, build_model, published_config

TORCH: dict[str, Any] = {
    "c3d": TorchC3D,
    "i3d": TorchI3D,
    "slowfast": TorchSlowFast,
    "p3d": TorchP3D,
}
PUBLIC: dict[str, Layout] = {
    "c3d": c3d.SPORTS1M,
    "i3d": i3d.PYTORCH_I3D,
    "slowfast": slowfast.PYTORCHVIDEO,
    "p3d": p3d.PSEUDO_3D,
}
SMALL: dict[str, dict[str, Any]] = {
    "c3d": {"width": 2, "hidden_size": 4},
    "i3d": {"width": 8},
    "slowfast": {"width": 8, "stage_sizes": (2, 1, 1, 1)},
    "p3d": {"width": 2, "stage_sizes": (2, 1, 1, 2)},
}
# A classifier of the published checkpoint, which has other classes.
HEADS: dict[str, dict[str, tuple[int, ...]]] = {
    "c3d": {"fc6.weight": (4096, 8192), "fc7.bias": (4096,), "fc8.weight": (487, 4096)},
    "i3d": {"logits.conv3d.weight": (400, 1024, 1, 1, 1), "logits.conv3d.bias": (400,)},
    "slowfast": {"blocks.6.proj.weight": (400, 2304), "blocks.6.proj.bias": (400,)},
    "p3d": {"fc.weight": (400, 2048), "fc.bias": (400,)},
}

every_system = pytest.mark.parametrize("name", TORCH)


def shapes_of(name: str, **changes: Any) -> Any:
    model = build_model({**published_config(name), **changes}, backend="cpu")
    clip = jax.ShapeDtypeStruct((1, 30, 64, 64, 3), np.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), clip)


def trunk(shapes: Any) -> dict[str, Any]:
    return {kind: {"trunk": tree["trunk"]} for kind, tree in shapes.items() if "trunk" in tree}


def empty(like: Any) -> Any:
    """Arrays of one byte an element: full-size networks are only counted here."""
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, np.uint8), like)


def norm(name: str) -> list[str]:
    arrays = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [f"{name}.{array}" for array in arrays]


def c3d_keys() -> list[str]:
    names = ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b")
    return [f"{name}.{array}" for name in names for array in ("weight", "bias")]


def i3d_keys() -> list[str]:
    units = ["Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"]
    for mixed in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"):
        units += [f"Mixed_{mixed}.{branch}" for branch in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")]
    return [key for unit in units for key in (f"{unit}.conv3d.weight", *norm(f"{unit}.bn"))]


def slowfast_keys() -> list[str]:
    keys: list[str] = []
    for pathway in (0, 1):
        stem = f"blocks.0.multipathway_blocks.{pathway}"
        keys += [f"{stem}.conv.weight", *norm(f"{stem}.norm")]
        for stage, depth in ((1, 3), (2, 4), (3, 6), (4, 3)):
            for block in range(depth):
                start = f"blocks.{stage}.multipathway_blocks.{pathway}.res_blocks.{block}"
                if block == 0:
                    keys += [f"{start}.branch1_conv.weight", *norm(f"{start}.branch1_norm")]
                for part in "abc":
                    keys += [
                        f"{start}.branch2.conv_{part}.weight",
                        *norm(f"{start}.branch2.norm_{part}"),
                    ]
    for part in (0, 1, 2, 3):
        fusion = f"blocks.{part}.multipathway_fusion"
        keys += [f"{fusion}.conv_fast_to_slow.weight", *norm(f"{fusion}.norm")]
    return keys


def p3d_keys() -> list[str]:
    keys = ["conv1_custom.weight", *norm("bn1")]
    for layer, depth in ((1, 3), (2, 8), (3, 36), (4, 3)):
        for block in range(depth):
            start = f"layer{layer}.{block}"
            for part in ("1", "2", "3", "4") if layer < 4 else ("1", "_normal", "4"):
                keys += [f"{start}.conv{part}.weight", *norm(f"{start}.bn{part}")]
            if block == 0:
                keys += [f"{start}.downsample.0.weight", *norm(f"{start}.downsample.1")]
    return keys


# By the documented structure of each public implementation, with some shapes that settle the order
# of axes and the channel counts.
PUBLISHED: dict[str, tuple[list[str], dict[str, tuple[int, ...]]]] = {
    "c3d": (
        c3d_keys(),
        {"conv1.weight": (64, 3, 3, 3, 3), "conv5b.weight": (512, 512, 3, 3, 3)},
    ),
    "i3d": (
        i3d_keys(),
        {
            "Conv3d_1a_7x7.conv3d.weight": (64, 3, 7, 7, 7),
            "Mixed_4e.b1b.conv3d.weight": (288, 144, 3, 3, 3),
            "Mixed_5c.b2a.conv3d.weight": (48, 832, 1, 1, 1),
            "Mixed_5c.b3b.bn.running_var": (128,),
        },
    ),
    "slowfast": (
        slowfast_keys(),
        {
            "blocks.0.multipathway_blocks.1.conv.weight": (8, 3, 5, 7, 7),
            "blocks.1.multipathway_blocks.0.res_blocks.0.branch1_conv.weight": (256, 80, 1, 1, 1),
            "blocks.2.multipathway_blocks.0.res_blocks.1.branch2.conv_a.weight": (
                *(128, 512),
                *(1, 1, 1),
            ),
            "blocks.4.multipathway_blocks.0.res_blocks.0.branch2.conv_a.weight": (
                *(512, 1280),
                *(3, 1, 1),
            ),
            "blocks.3.multipathway_fusion.conv_fast_to_slow.weight": (256, 128, 5, 1, 1),
        },
    ),
    "p3d": (
        p3d_keys(),
        {
            "conv1_custom.weight": (64, 3, 1, 7, 7),
            "layer2.0.conv2.weight": (128, 128, 1, 3, 3),
            "layer3.35.conv3.weight": (256, 256, 3, 1, 1),
            "layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
            "layer4.2.conv_normal.weight": (512, 512, 3, 3),
        },
    ),
}


def test_every_system_has_layouts_and_its_reference_first():
    assert set(TORCH) <= set(LAYOUTS) <= set(MODELS)
    for name, public in PUBLIC.items():
        assert [layout.name for layout in LAYOUTS[name]] == ["reference", public.name]
        assert LAYOUTS[name][1] is public


@every_system
def test_keys_and_shapes_are_those_of_the_torch_model(name):
    with torch.device("meta"):
        expected = TORCH[name](30, 64).state_dict()
    state = weight_rules.to_torch(empty(shapes_of(name)), LAYOUTS[name][0])
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}


@every_system
def test_trunk_has_the_keys_of_the_published_checkpoint(name):
    keys, shapes = PUBLISHED[name]
    state = weight_rules.to_torch(empty(trunk(shapes_of(name))), PUBLIC[name])
    assert sorted(state) == sorted(keys)
    assert {key: state[key].shape for key in shapes} == shapes


@every_system
@pytest.mark.parametrize("published", [False, True])
def test_round_trip_is_bit_exact(name, published, random_bits):
    shapes = shapes_of(name, **SMALL[name])
    if published:
        shapes = trunk(shapes)
    layout = LAYOUTS[name][published]
    variables = random_bits(shapes)
    state = weight_rules.to_torch(variables, layout)
    back = weight_rules.to_flax(state, shapes, layout)
    before: dict[Any, Any] = flatten_dict(variables)
    after: dict[Any, Any] = flatten_dict(back)
    assert before.keys() == after.keys()
    for path, value in before.items():
        assert after[path].shape == value.shape
        assert after[path].tobytes() == value.tobytes()
    again = weight_rules.to_torch(back, layout)
    assert again.keys() == state.keys()
    assert all(state[key].tobytes() == again[key].tobytes() for key in state)


@every_system
def test_heads_of_other_classes_are_left_out_and_nothing_else(name, random_bits):
    shapes = trunk(shapes_of(name, **SMALL[name]))
    state = weight_rules.to_torch(random_bits(shapes), PUBLIC[name])
    state |= {key: np.zeros(shape, np.float32) for key, shape in HEADS[name].items()}
    weight_rules.to_flax(state, shapes, PUBLIC[name])
    state["head.mystery.weight"] = np.zeros(1, np.float32)
    with pytest.raises(UserError, match=r"1 keys without a rule: head\.mystery\.weight"):
        weight_rules.to_flax(state, shapes, PUBLIC[name])
    del state["head.mystery.weight"]
    lost = next(key for key in state if key.endswith("weight"))
    del state[lost]
    with pytest.raises(UserError, match="1 keys missing"):
        weight_rules.to_flax(state, shapes, PUBLIC[name])


@every_system
def test_the_trunk_layout_refuses_the_head_of_the_model(name):
    with pytest.raises(UserError, match=r"without a rule: .*params/classifier/bias"):
        weight_rules.to_torch(empty(shapes_of(name, **SMALL[name])), PUBLIC[name])


def test_a_whole_published_c3d_goes_by_the_reference_layout():
    # Its own clip size and classes: 16x112x112 frames and 487 sports.
    model = build_model({**published_config("c3d"), "num_outputs": 487}, backend="cpu")
    clip = jax.ShapeDtypeStruct((1, 16, 112, 112, 3), np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), clip)
    state = weight_rules.to_torch(empty(shapes), c3d.REFERENCE)
    dense = [f"fc{layer}.{array}" for layer in (6, 7, 8) for array in ("weight", "bias")]
    assert sorted(state) == sorted([*c3d_keys(), *dense])
    assert state["fc6.weight"].shape == (4096, 8192)
    assert state["fc8.weight"].shape == (487, 4096)
