"""FLOPs, parameters and memory from abstract shapes against a sum by hand."""

import pytest

from mvo_jax.models.cost import activation_bytes, forward_flops, model_cost
from mvo_jax.models.registry import build_model, dense_model, published_config

FIELDS = {**published_config("mvo_net"), "lowering": "conv3d"}
CLIP = (30, 64, 64, 3)


def trunk_flops_by_hand() -> int:
    """Table of reference stages: (taps, channels in, channels out, output positions)."""
    stem = 30 * 32 * 32
    convolutions = [(49, 3, 45, stem), (3, 45, 64, stem)]
    convolutions += [(9, 64, 144, stem), (3, 144, 64, stem)] * 4
    frames, side, channels = 30, 32, 64
    for mid_first, mid_second in ((230, 288), (460, 576), (921, 1152)):
        out = 2 * channels
        after = -(-frames // 2), side // 2
        area = after[1] ** 2
        # The spatial convolution strides first and sees all frames; the temporal one follows.
        convolutions += [(9, channels, mid_first, frames * area)]
        convolutions += [(3, mid_first, out, after[0] * area)]
        convolutions += [(9, out, mid_first, after[0] * area)]
        convolutions += [(3, mid_first, out, after[0] * area)]
        convolutions += [(1, channels, out, after[0] * area)]
        convolutions += [(9, out, mid_second, after[0] * area)] * 2
        convolutions += [(3, mid_second, out, after[0] * area)] * 2
        (frames, side), channels = after, out
    return sum(2 * taps * a * b * positions for taps, a, b, positions in convolutions)


@pytest.fixture(scope="module")
def backbone():
    return build_model({**FIELDS, "variant": "backbone"}, backend="tpu")


def test_backbone_flops_are_the_sum_by_hand(backbone):
    flops = forward_flops(backbone, CLIP, train=False)
    assert flops == trunk_flops_by_hand() + 2 * 512
    assert round(flops / 1e9, 2) == 50.16


def test_folded_lowerings_cost_the_same(backbone):
    folded = build_model({**FIELDS, "variant": "backbone", "lowering": "conv2d"}, backend="tpu")
    assert forward_flops(folded, CLIP, train=False) == forward_flops(backbone, CLIP, train=False)


@pytest.mark.parametrize("lowering", ["auto", "conv3d_pairs"])
def test_zeros_in_folded_kernels_are_no_work(backbone, lowering):
    dense = dense_model({**FIELDS, "variant": "backbone", "lowering": lowering})
    assert forward_flops(dense, CLIP, train=False) == forward_flops(backbone, CLIP, train=False)


def test_mask_branch_costs_nothing_at_inference(backbone):
    cgmr = build_model({**FIELDS, "variant": "cgmr"}, backend="tpu")
    alone = forward_flops(cgmr, CLIP, train=False, with_mask=False)
    assert alone == forward_flops(backbone, CLIP, train=False)
    assert forward_flops(cgmr, CLIP, train=False, with_mask=True) > alone


def test_cost_of_the_full_model():
    model = build_model({**FIELDS, "decoder_layout": "released"}, backend="tpu")
    cost = model_cost(model, CLIP, moments=2)
    assert list(cost.parameters) == ["trunk", "encoder", "classifier", "decoder"]
    assert sum(cost.parameters.values()) == 34_765_727
    assert cost.inference_parameters == 34_456_094
    # Three passes over 50.2 GFLOP of the trunk and 0.1 of the rest.
    assert 150.2 < cost.training_flops / 1e9 < 151.2
    # Weights, gradients and two moments in float32; the running statistics are some 0.1 MB.
    assert 0 < cost.state_bytes - 16 * 34_765_727 < 2e5


def test_activations_by_order_of_magnitude_and_scaling(backbone):
    # layer1 alone: 4 convolutions of 144 and of 64 channels on 30x32x32 float32 positions, each
    # kept for its own BatchNorm at least.
    least = 4 * (144 + 64) * 30 * 32 * 32 * 4
    kept = activation_bytes(backbone, CLIP)
    assert least < kept < 20 * least
    half = activation_bytes(backbone, (16, 64, 64, 3))
    assert 0.45 < half / kept < 0.6


def test_fewer_moments_less_state(backbone):
    adam = model_cost(backbone, CLIP, moments=2)
    sgd = model_cost(backbone, CLIP, moments=1)
    assert adam.state_bytes - sgd.state_bytes == 4 * 31_300_638
