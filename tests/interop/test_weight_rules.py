"""Weights to torch and back: every key, every bit, and every way to be wrong."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvo_jax.errors import UserError
from mvo_jax.interop import weight_rules
from mvo_jax.interop.layouts.mvo_net import REFERENCE, RELEASED, TORCHVISION
from mvo_jax.interop.torch_models.mvo_net import TorchMVONet
from mvo_jax.interop.weight_rules import Layout
from mvo_jax.models.mvo_net import MVONet

SMALL: dict[str, Any] = {"width": 8, "stage_sizes": (2, 1), "num_heads": 2, "num_layers": 2}


def flax_shapes(**options: Any) -> dict[str, Any]:
    return jax.eval_shape(
        lambda: MVONet(**options).init(
            {"params": jax.random.key(0)}, jnp.zeros((1, 8, 32, 32, 1)), train=False
        )
    )


def torchvision_keys() -> set[str]:
    """Keys of r2plus1d_18 without its head, by its documented structure."""

    def norm(name: str) -> list[str]:
        arrays = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return [f"{name}.{array}" for array in arrays]

    keys = ["stem.0.weight", *norm("stem.1"), "stem.3.weight", *norm("stem.4")]
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            start = f"layer{layer}.{block}"
            for conv in (f"{start}.conv1", f"{start}.conv2"):
                keys += [f"{conv}.0.0.weight", *norm(f"{conv}.0.1"), f"{conv}.0.3.weight"]
                keys += norm(f"{conv}.1")
            if layer > 1 and block == 0:
                keys += [f"{start}.downsample.0.weight", *norm(f"{start}.downsample.1")]
    return set(keys)


def test_trunk_has_the_222_keys_and_shapes_of_torchvision() -> None:
    shapes = flax_shapes()
    trunk = {collection: {"trunk": shapes[collection]["trunk"]} for collection in shapes}
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), trunk)
    state = weight_rules.to_torch(variables, TORCHVISION)
    assert len(torchvision_keys()) == 222
    assert state.keys() == torchvision_keys()
    assert state["stem.0.weight"].shape == (45, 3, 1, 7, 7)
    assert state["stem.3.weight"].shape == (64, 45, 3, 1, 1)
    assert state["layer1.1.conv2.0.0.weight"].shape == (144, 64, 1, 3, 3)
    # The second convolution of a widening block keeps the first one's mid planes.
    assert state["layer2.0.conv2.0.0.weight"].shape == (230, 128, 1, 3, 3)
    assert state["layer4.0.conv1.0.3.weight"].shape == (512, 921, 3, 1, 1)
    assert state["layer3.0.downsample.0.weight"].shape == (256, 128, 1, 1, 1)
    assert state["layer4.1.conv2.1.running_var"].shape == (512,)
    assert state["stem.1.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize("layout", [REFERENCE, RELEASED], ids=lambda layout: layout.name)
@pytest.mark.parametrize("decoder_layout", ["paper", "released"])
def test_round_trip_is_bit_exact(
    layout: Layout, decoder_layout: str, random_bits, same_bits
) -> None:
    shapes = flax_shapes(decoder_layout=decoder_layout, **SMALL)
    variables = random_bits(shapes)
    state = weight_rules.to_torch(variables, layout)
    back = weight_rules.to_flax(state, shapes, layout)
    assert same_bits(weight_rules.flatten(variables), weight_rules.flatten(back))

    again = weight_rules.to_torch(back, layout)
    assert same_bits(state, again)


@pytest.mark.parametrize("variant", ["backbone", "bert", "cgmr", "full"])
@pytest.mark.parametrize("decoder_layout", ["paper", "released"])
def test_keys_and_shapes_are_those_of_the_torch_model(
    variant: str, decoder_layout: str, random_bits
) -> None:
    options = {"variant": variant, "decoder_layout": decoder_layout, "num_outputs": 2, **SMALL}
    expected = TorchMVONet(8, 32, **options).state_dict()
    state = weight_rules.to_torch(random_bits(flax_shapes(**options)), REFERENCE)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}


def test_released_keys(random_bits) -> None:
    state = weight_rules.to_torch(
        random_bits(flax_shapes(decoder_layout="released", **SMALL)), RELEASED
    )
    for key in (
        "backbone.feature.features.0.0.weight",
        "backbone.feature.features.1.1.conv2.0.1.running_mean",
        "backbone.feature.features.2.0.downsample.0.weight",
        "decode_head.bert_branch.bert.clsToken",
        "decode_head.bert_branch.bert.embedding.learnedPosition.pe",
        "decode_head.bert_branch.bert.transformer_blocks.0.attention.linear_layers.2.weight",
        "decode_head.bert_branch.bert.transformer_blocks.1.output_sublayer.norm.a_2",
        "decode_head.bert_branch.fc_action.bias",
        "decode_head.pseudo_branch.deconv1.deconv2.weight",
        "decode_head.pseudo_branch.conv_seg.weight",
    ):
        assert key in state


def test_orientation_of_each_kind_of_kernel() -> None:
    conv = np.arange(2 * 3 * 1 * 5 * 5).reshape(2, 3, 1, 5, 5)  # [out, in, t, y, x]
    (leaf,) = weight_rules.CONV3D
    assert leaf.reorder.to_flax(conv)[0, 4, 1, 2, 1] == conv[1, 2, 0, 4, 1]

    linear = np.arange(6).reshape(2, 3)  # [out, in]
    assert weight_rules.LINEAR[0].reorder.to_flax(linear)[2, 1] == linear[1, 2]

    pointwise = np.arange(6).reshape(2, 3, 1, 1)
    assert weight_rules.CONV1X1[0].reorder.to_flax(pointwise)[2, 1] == pointwise[1, 2, 0, 0]

    transposed = np.arange(2 * 3 * 3 * 3).reshape(2, 3, 3, 3)  # [in, out, y, x]
    flax = weight_rules.TRANSPOSED[0].reorder.to_flax(transposed)
    assert flax.shape == (3, 3, 2, 3)
    assert flax[0, 2, 1, 2] == transposed[1, 2, 2, 0]


def test_all_problems_are_listed_in_one_error(random_bits) -> None:
    shapes = flax_shapes(**SMALL)
    state = weight_rules.to_torch(random_bits(shapes), REFERENCE)
    del state["bert.clsToken"]
    state["fc_action.bias"] = state["fc_action.bias"].astype(np.float64)
    state["trunk.stem.0.weight"] = state["trunk.stem.0.weight"][:, :1]
    state["pseudo_branch.conv_seg.weight"] = np.zeros((1, 8, 3, 3), np.float32)
    state["trunk.layer9.0.conv1.0.0.weight"] = np.zeros((1, 1, 1, 3, 3), np.float32)
    state["module.extra"] = np.zeros(3, np.float32)
    state["trunk.stem.0.num_batches_tracked"] = np.zeros((), np.int64)  # no BatchNorm there
    with pytest.raises(UserError) as caught:
        weight_rules.to_flax(state, shapes, REFERENCE, source="weights.pth")
    message = caught.value.cause
    assert message.startswith("weights.pth does not fit")
    assert "1 keys missing: bert.clsToken" in message
    assert "fc_action.bias float64, not float32" in message
    assert "trunk.stem.0.weight (5, 1, 1, 7, 7), not (5, 3, 1, 7, 7)" in message
    assert "pseudo_branch.conv_seg.weight (1, 8, 3, 3)" in message
    assert "no place for: trunk.layer9.0.conv1.0.0.weight" in message
    assert "2 keys without a rule: module.extra, trunk.stem.0.num_batches_tracked" in message
    assert "\n" not in message


def test_weights_of_another_architecture_are_refused_with_a_short_message() -> None:
    state = {f"blocks.{i}.weight": np.zeros(3, np.float32) for i in range(300)}
    with pytest.raises(UserError, match=r"and 288 more") as caught:
        weight_rules.to_flax(state, flax_shapes(**SMALL), REFERENCE)
    assert len(caught.value.cause) < 2000


@pytest.mark.parametrize("state", [{}, {"fc.weight": np.zeros((400, 512), np.float32)}])
def test_an_empty_source_misses_everything(state: dict[str, np.ndarray]) -> None:
    shapes = flax_shapes(variant="backbone", **SMALL)
    trunk = {collection: {"trunk": shapes[collection]["trunk"]} for collection in shapes}
    count = len(jax.tree.leaves(trunk))
    with pytest.raises(UserError, match=f": {count} keys missing: "):
        weight_rules.to_flax(state, trunk, TORCHVISION)


def test_named_leftovers_are_ignored_and_no_others(random_bits) -> None:
    shapes = flax_shapes(decoder_layout="released", **SMALL)
    state = weight_rules.to_torch(random_bits(shapes), RELEASED)
    dead = np.zeros(1, np.float32)
    for key in ("decode_head.cls2Dfc.weight", "decode_head.bert_branch.clsconv3.bias"):
        state[key] = dead
    weight_rules.to_flax(state, shapes, RELEASED)
    state["decode_head.bert_branch.mystery.weight"] = dead
    with pytest.raises(UserError, match=r"without a rule: decode_head\.bert_branch\.mystery"):
        weight_rules.to_flax(state, shapes, RELEASED)


def test_counters_must_be_written_as_torch_writes_them() -> None:
    state = {"trunk.layer1.00.conv1.0.0.weight": np.zeros((1, 1, 1, 3, 3), np.float32)}
    with pytest.raises(UserError, match="without a rule"):
        weight_rules.to_flax(state, {"params": {}}, REFERENCE)


def test_ambiguous_tables_are_noticed(random_bits) -> None:
    shapes = flax_shapes(variant="backbone", **SMALL)
    state = weight_rules.to_torch(random_bits(shapes), REFERENCE)
    classifier = ("classifier", "head", weight_rules.LINEAR)
    ambiguous = Layout("doubled", (*REFERENCE.modules, classifier))
    with pytest.raises(UserError, match="2 with several rules: params/classifier/"):
        weight_rules.to_torch(random_bits(shapes), ambiguous)
    doubled = state | {"head.bias": state["fc_action.bias"]}
    with pytest.raises(UserError, match="filled twice: params/classifier/bias by fc_action"):
        weight_rules.to_flax(doubled, shapes, ambiguous)


def test_arrays_that_no_rule_knows_are_not_dropped() -> None:
    variables = {"params": {"classifier": {"kernel": np.zeros((2, 1)), "gain": np.zeros(1)}}}
    with pytest.raises(UserError, match="1 without a rule: params/classifier/gain"):
        weight_rules.to_torch(variables, REFERENCE)
    with pytest.raises(UserError, match="1 without a rule: params/classifier/kernel"):
        weight_rules.to_torch({"params": {"classifier": {"kernel": np.zeros((2, 1))}}}, TORCHVISION)
