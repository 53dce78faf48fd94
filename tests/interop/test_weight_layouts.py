"""Weights of every model by every layout: our torch twins and the published checkpoints."""

from typing import Any

import jax
import numpy as np
import pytest
import torch

from mvo_jax.errors import UserError
from mvo_jax.interop.convert import model_shapes
from mvo_jax.interop.layouts import LAYOUTS, twin_layout
from mvo_jax.interop.parity.cases import SMALL
from mvo_jax.interop.torch_models import TWINS, build_twin
from mvo_jax.interop.weight_rules import (
    CONV1X1,
    CONV3D,
    LINEAR,
    TRANSPOSED,
    Layout,
    PatchKernel,
    flatten,
    to_flax,
    to_torch,
    unflatten,
)
from mvo_jax.models.registry import published_config

Shapes = dict[str, tuple[int, ...]]
CLIP = (30, 64, 64, 3)


def model_of(name: str, layout: Layout | None = None, **changes: Any) -> dict[str, Any]:
    """A published model, in the form that the layout is of."""
    layouts = [] if layout is None else [layout.name]
    if name == "timesformer":
        changes = {"form": "gated" if "gated" in layouts else "released", **changes}
    if layout is not None and (name, layout.name) == ("mvo_net", "released"):
        changes = {"decoder_layout": "released", **changes}
    return published_config(name) | changes


def part(layout: Layout, shapes: Any) -> dict[str, Any]:
    """What of a model's variables the layout holds."""
    return unflatten({k: v for k, v in flatten(shapes).items() if layout.torch_keys(k)})


def empty(like: Any) -> Any:
    """Arrays of one byte an element: full-size networks are only counted here."""
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, np.uint8), like)


EVERY_LAYOUT = [
    pytest.param(name, layout, id=f"{name}-{layout.name}")
    for name, layouts in LAYOUTS.items()
    for layout in layouts
]


@pytest.mark.parametrize(("name", "layout"), EVERY_LAYOUT)
def test_round_trip_is_bit_exact_and_what_does_not_fit_is_refused(
    name, layout, random_bits, same_bits
):
    small, clip = SMALL[name]
    shapes = part(layout, model_shapes(model_of(name, layout, **small), clip))
    variables = random_bits(shapes)
    state = to_torch(variables, layout)
    back = to_flax(state, shapes, layout)
    assert same_bits(flatten(variables), flatten(back))
    assert same_bits(state, to_torch(back, layout))
    lost, other = sorted(key for key in state if key.endswith("weight"))[:2]
    del state[lost]
    state[other] = np.zeros(state[other].shape, np.float64)
    state["mystery.weight"] = np.zeros(1, np.float32)
    with pytest.raises(UserError) as caught:
        to_flax(state, shapes, layout)
    assert f"1 keys missing: {lost}" in caught.value.cause
    assert f"{other} float64, not float32" in caught.value.cause
    assert "1 keys without a rule: mystery.weight" in caught.value.cause


FORMS = [*((name, {}) for name in TWINS), ("mvo_net", {"decoder_layout": "released"})]
FORMS.append(("timesformer", {"form": "released"}))


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_keys_and_shapes_are_those_of_the_twin(name, form):
    model = published_config(name) | form
    with torch.device("meta"):
        expected = build_twin(model, CLIP).state_dict()
    state = to_torch(empty(model_shapes(model, CLIP)), twin_layout(model))
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}


def norm(name: str) -> list[str]:
    arrays = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [f"{name}.{array}" for array in arrays]


def torchvision_keys() -> list[str]:
    keys = ["stem.0.weight", *norm("stem.1"), "stem.3.weight", *norm("stem.4")]
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            start = f"layer{layer}.{block}"
            for conv in (f"{start}.conv1", f"{start}.conv2"):
                keys += [f"{conv}.0.0.weight", *norm(f"{conv}.0.1"), f"{conv}.0.3.weight"]
                keys += norm(f"{conv}.1")
            if layer > 1 and block == 0:
                keys += [f"{start}.downsample.0.weight", *norm(f"{start}.downsample.1")]
    return keys


def weight_and_bias(*names: str) -> list[str]:
    return [f"{name}.{array}" for name in names for array in ("weight", "bias")]


def c3d_keys() -> list[str]:
    names = ("1", "2", "3a", "3b", "4a", "4b", "5a", "5b")
    return weight_and_bias(*(f"conv{name}" for name in names))


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
                for name in "abc":
                    keys.append(f"{start}.branch2.conv_{name}.weight")
                    keys += norm(f"{start}.branch2.norm_{name}")
    for index in (0, 1, 2, 3):
        fusion = f"blocks.{index}.multipathway_fusion"
        keys += [f"{fusion}.conv_fast_to_slow.weight", *norm(f"{fusion}.norm")]
    return keys


def p3d_keys() -> list[str]:
    keys = ["conv1_custom.weight", *norm("bn1")]
    for layer, depth in ((1, 3), (2, 8), (3, 36), (4, 3)):
        for block in range(depth):
            start = f"layer{layer}.{block}"
            for conv in ("1", "2", "3", "4") if layer < 4 else ("1", "_normal", "4"):
                keys += [f"{start}.conv{conv}.weight", *norm(f"{start}.bn{conv}")]
            if block == 0:
                keys += [f"{start}.downsample.0.weight", *norm(f"{start}.downsample.1")]
    return keys


def timesformer_keys() -> list[str]:
    keys = ["cls_token", "pos_embed", "time_embed"]
    linear = ("temporal_attn.qkv", "temporal_attn.proj", "temporal_fc", "attn.qkv", "attn.proj")
    parts = ("temporal_norm1", "norm1", "norm2", *linear, "mlp.fc1", "mlp.fc2")
    modules = [f"blocks.{block}.{name}" for block in range(12) for name in parts]
    keys += weight_and_bias(*modules, "patch_embed.proj", "norm")
    return [f"model.{key}" for key in keys]


_SLOW = "blocks.{}.multipathway_blocks.0.res_blocks.{}.branch2"
# model -> layout, keys by the documented structure of the public implementation, some shapes that
# settle the order of axes and the channel counts, and a head that has other classes there.
PUBLISHED: dict[str, tuple[str, list[str], Shapes, Shapes]] = {
    "mvo_net": (
        "torchvision",
        torchvision_keys(),
        {
            "stem.0.weight": (45, 3, 1, 7, 7),
            "stem.3.weight": (64, 45, 3, 1, 1),
            "layer1.1.conv2.0.0.weight": (144, 64, 1, 3, 3),
            # The second convolution of a widening block keeps the first one's mid planes.
            "layer2.0.conv2.0.0.weight": (230, 128, 1, 3, 3),
            "layer4.0.conv1.0.3.weight": (512, 921, 3, 1, 1),
            "layer3.0.downsample.0.weight": (256, 128, 1, 1, 1),
            "layer4.1.conv2.1.running_var": (512,),
        },
        {"fc.weight": (400, 512), "fc.bias": (400,)},
    ),
    "c3d": (
        "sports1m",
        c3d_keys(),
        {"conv1.weight": (64, 3, 3, 3, 3), "conv5b.weight": (512, 512, 3, 3, 3)},
        {"fc6.weight": (4096, 8192), "fc7.bias": (4096,), "fc8.weight": (487, 4096)},
    ),
    "i3d": (
        "pytorch_i3d",
        i3d_keys(),
        {
            "Conv3d_1a_7x7.conv3d.weight": (64, 3, 7, 7, 7),
            "Mixed_4e.b1b.conv3d.weight": (288, 144, 3, 3, 3),
            "Mixed_5c.b2a.conv3d.weight": (48, 832, 1, 1, 1),
            "Mixed_5c.b3b.bn.running_var": (128,),
        },
        {"logits.conv3d.weight": (400, 1024, 1, 1, 1), "logits.conv3d.bias": (400,)},
    ),
    "slowfast": (
        "pytorchvideo",
        slowfast_keys(),
        {
            "blocks.0.multipathway_blocks.1.conv.weight": (8, 3, 5, 7, 7),
            "blocks.1.multipathway_blocks.0.res_blocks.0.branch1_conv.weight": (256, 80, 1, 1, 1),
            f"{_SLOW.format(2, 1)}.conv_a.weight": (128, 512, 1, 1, 1),
            f"{_SLOW.format(4, 0)}.conv_a.weight": (512, 1280, 3, 1, 1),
            "blocks.3.multipathway_fusion.conv_fast_to_slow.weight": (256, 128, 5, 1, 1),
        },
        {"blocks.6.proj.weight": (400, 2304), "blocks.6.proj.bias": (400,)},
    ),
    "p3d": (
        "pseudo_3d",
        p3d_keys(),
        {
            "conv1_custom.weight": (64, 3, 1, 7, 7),
            "layer2.0.conv2.weight": (128, 128, 1, 3, 3),
            "layer3.35.conv3.weight": (256, 256, 3, 1, 1),
            "layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
            "layer4.2.conv_normal.weight": (512, 512, 3, 3),
        },
        {"fc.weight": (400, 2048), "fc.bias": (400,)},
    ),
    # The published base model takes 8 frames of 224x224.
    "timesformer": (
        "kinetics",
        timesformer_keys(),
        {
            "model.pos_embed": (1, 197, 768),
            "model.time_embed": (1, 8, 768),
            "model.patch_embed.proj.weight": (768, 3, 16, 16),
            "model.blocks.3.temporal_attn.qkv.weight": (3 * 768, 768),
            "model.blocks.11.mlp.fc2.weight": (768, 3072),
        },
        {"model.head.weight": (400, 768), "model.head.bias": (400,)},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_checkpoint_fits_and_only_its_head_is_left_out(name):
    layout_name, keys, some, head = PUBLISHED[name]
    layout = next(layout for layout in LAYOUTS[name] if layout.name == layout_name)
    changes = {"hidden_size": 768, "mlp_dim": 3072} if name == "timesformer" else {}
    clip = (8, 224, 224, 3) if name == "timesformer" else CLIP
    shapes = model_shapes(model_of(name, layout, **changes), clip)
    target = part(layout, shapes)
    expected = to_torch(empty(target), layout)
    assert sorted(expected) == sorted(keys)
    assert {key: expected[key].shape for key in some} == some
    # Views of one number: the shapes are what counts here, and they are up to 0.5 GB.
    wanted = {key: value.shape for key, value in expected.items()} | head
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in wanted.items()}
    assert flatten(to_flax(state, target, layout)).keys() == flatten(target).keys()
    with pytest.raises(UserError, match=r"without a rule: .*params/classifier/bias"):
        to_torch(empty(shapes), layout)


def test_a_whole_published_c3d_goes_by_the_reference_layout():
    # Its own clip size and classes: 16x112x112 frames and 487 sports.
    shapes = model_shapes(model_of("c3d", num_outputs=487), (16, 112, 112, 3))
    state = to_torch(empty(shapes), LAYOUTS["c3d"][0])
    assert sorted(state) == sorted([*c3d_keys(), *weight_and_bias("fc6", "fc7", "fc8")])
    assert state["fc6.weight"].shape == (4096, 8192)
    assert state["fc8.weight"].shape == (487, 4096)


def test_names_of_a_released_checkpoint():
    shapes = model_shapes(model_of("mvo_net", decoder_layout="released", num_layers=2), CLIP)
    state = to_torch(empty(shapes), LAYOUTS["mvo_net"][2])
    encoder = "decode_head.bert_branch.bert"
    assert {
        "backbone.feature.features.0.0.weight",
        "backbone.feature.features.1.1.conv2.0.1.running_mean",
        "backbone.feature.features.2.0.downsample.0.weight",
        f"{encoder}.clsToken",
        f"{encoder}.embedding.learnedPosition.pe",
        f"{encoder}.transformer_blocks.0.attention.linear_layers.2.weight",
        f"{encoder}.transformer_blocks.1.output_sublayer.norm.a_2",
        "decode_head.bert_branch.fc_action.bias",
        "decode_head.pseudo_branch.deconv1.deconv2.weight",
        "decode_head.pseudo_branch.conv_seg.weight",
    } <= state.keys()


@pytest.mark.parametrize("name", ["vivit", "timesformer"])
def test_positions_of_another_clip_are_not_cut_or_stretched(name, random_bits):
    small, (frames, height, width, channels) = SMALL[name]
    model = published_config(name) | small
    layout = twin_layout(model)
    state = to_torch(random_bits(model_shapes(model, (frames, height, width, channels))), layout)
    with pytest.raises(UserError, match=r"of wrong shape: .*pos_e"):
        to_flax(state, model_shapes(model, (2 * frames, height, width, channels)), layout)


def test_a_grey_embedding_is_a_convolution_of_one_channel(random_bits):
    small, (frames, height, width, _) = SMALL["timesformer"]
    model = published_config("timesformer") | small | {"form": "released", "in_channels": 1}
    shapes = model_shapes(model, (frames, height, width, 1))
    variables, layout = random_bits(shapes), twin_layout(model)
    state = to_torch(variables, layout)
    (embedding,) = (v for k, v in state.items() if "patch_embed" in k and k.endswith("weight"))
    assert embedding.shape[1] == 1
    jax.tree.map(np.testing.assert_array_equal, to_flax(state, shapes, layout), variables)


def test_orientation_of_each_kind_of_kernel():
    conv = np.arange(2 * 3 * 1 * 5 * 5).reshape(2, 3, 1, 5, 5)  # [out, in, t, y, x]
    (leaf,) = CONV3D
    assert leaf.reorder.to_flax(conv)[0, 4, 1, 2, 1] == conv[1, 2, 0, 4, 1]
    linear = np.arange(6).reshape(2, 3)  # [out, in]
    assert LINEAR[0].reorder.to_flax(linear)[2, 1] == linear[1, 2]
    pointwise = np.arange(6).reshape(2, 3, 1, 1)
    assert CONV1X1[0].reorder.to_flax(pointwise)[2, 1] == pointwise[1, 2, 0, 0]
    transposed = np.arange(2 * 3 * 3 * 3).reshape(2, 3, 3, 3)  # [in, out, y, x]
    flax = TRANSPOSED[0].reorder.to_flax(transposed)
    assert flax.shape == (3, 3, 2, 3)
    assert flax[0, 2, 1, 2] == transposed[1, 2, 2, 0]
    kernel = np.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)  # [out, channel, y, x]
    rule = PatchKernel()
    matrix = rule.to_flax(kernel)
    assert matrix.shape == (48, 2)
    assert matrix[(2 * 4 + 1) * 3 + 2, 1] == kernel[1, 2, 2, 1]
    np.testing.assert_array_equal(rule.to_torch(matrix), kernel)
    for wrong in (kernel[:, :2], kernel[..., :3], kernel[..., 0]):
        with pytest.raises(ValueError, match="no kernel of square patches"):
            rule.to_flax(wrong)
    with pytest.raises(ValueError, match="reshape"):
        rule.to_torch(matrix[:-1])
    grey = rule.to_flax(kernel[:, :1])
    assert grey[2 * 4 + 1, 1] == kernel[1, 0, 2, 1]
    np.testing.assert_array_equal(rule.to_torch(grey), kernel[:, :1])
