"""Weights to torch and back: every way to be wrong. Layouts are in test_weight_layouts.py."""

from typing import Any

import jax
import numpy as np
import pytest

from mvo_jax.errors import UserError
from mvo_jax.interop import weight_rules
from mvo_jax.interop.convert import model_shapes
from mvo_jax.interop.layouts.mvo_net import REFERENCE, RELEASED, TORCHVISION
from mvo_jax.interop.weight_rules import Layout
from mvo_jax.models.registry import published_config


def flax_shapes(**changes: Any) -> dict[str, Any]:
    small = {"width": 8, "stage_sizes": (2, 1), "num_heads": 2, "num_layers": 2}
    return model_shapes(published_config("mvo_net") | small | changes, (8, 32, 32, 1))


def test_all_problems_are_listed_in_one_error(random_bits) -> None:
    shapes = flax_shapes()
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
        weight_rules.to_flax(state, flax_shapes(), REFERENCE)
    assert len(caught.value.cause) < 2000


@pytest.mark.parametrize("state", [{}, {"fc.weight": np.zeros((400, 512), np.float32)}])
def test_an_empty_source_misses_everything(state: dict[str, np.ndarray]) -> None:
    shapes = flax_shapes(variant="backbone")
    trunk = {collection: {"trunk": shapes[collection]["trunk"]} for collection in shapes}
    count = len(jax.tree.leaves(trunk))
    with pytest.raises(UserError, match=f": {count} keys missing: "):
        weight_rules.to_flax(state, trunk, TORCHVISION)


def test_named_leftovers_are_ignored_and_no_others(random_bits) -> None:
    shapes = flax_shapes(decoder_layout="released")
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
    shapes = flax_shapes(variant="backbone")
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
