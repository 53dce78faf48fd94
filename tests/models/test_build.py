"""Exact parameter counts (docs/decisions.md, section on parameters) and the model's config."""

import jax
import jax.numpy as jnp
import pytest

from mvo_jax.errors import UserError
from mvo_jax.models.build import DTYPES, MODELS, build_model
from mvo_jax.models.cost import parameter_count
from mvo_jax.models.layers import FAST_CPU_CONVOLUTION_FLAG, LOWERINGS, choose_lowering
from mvo_jax.models.mvo_net import VARIANTS

BASE = {"name": "mvo_net", "dtype": "float32", "lowering": "conv3d", "decoder_layout": "released"}

TRUNK, TRUNK_1_CHANNEL = 31_300_125, 31_295_715
ENCODER_BLOCK, ENCODER, LINEAR, DECODER = 3_152_384, 3_155_456, 513, 309_633

# (name, fields) -> (parameters, parameters at inference); all at 30x64x64.
TABLE = {
    ("mvo_net", "backbone"): ({}, 31_300_638, 31_300_638),
    ("mvo_net", "bert"): ({}, 34_456_094, 34_456_094),
    ("mvo_net", "cgmr"): ({}, 31_610_271, 31_300_638),
    ("mvo_net", "full"): ({}, 34_765_727, 34_456_094),
}


def parts(frames: int = 30, size: int = 64, **fields) -> dict[str, int]:
    model = build_model({**BASE, **fields}, backend="cpu")
    channels = fields.get("in_channels", 3)
    shapes = jax.eval_shape(
        lambda: model.init(
            jax.random.key(0), jnp.zeros((1, frames, size, size, channels)), train=False
        )
    )
    return {name: parameter_count(part) for name, part in shapes["params"].items()}


@pytest.mark.parametrize(("name", "variant"), TABLE)
def test_parameters_of_every_variant(name, variant):
    fields, total, inference = TABLE[name, variant]
    counts = parts(name=name, variant=variant, **fields)
    assert sum(counts.values()) == total
    assert sum(n for part, n in counts.items() if part != "decoder") == inference


def test_no_model_and_no_variant_escapes_the_table():
    assert set(MODELS) == {name for name, _ in TABLE}
    assert {("mvo_net", variant) for variant in VARIANTS} == {
        key for key in TABLE if key[0] == "mvo_net"
    }


def test_parameters_of_every_part():
    assert parts() == {
        "trunk": TRUNK,
        "encoder": ENCODER,
        "classifier": LINEAR,
        "decoder": DECODER,
    }
    assert parts(in_channels=1)["trunk"] == TRUNK_1_CHANNEL
    assert parts(num_layers=2)["encoder"] - ENCODER == ENCODER_BLOCK
    # Two outputs instead of one: 512 weights and a bias more.
    assert parts(num_outputs=2)["classifier"] == 2 * LINEAR


def test_torchvision_total_with_its_400_class_head():
    assert TRUNK + 400 * LINEAR == 31_505_325


def test_positions_follow_the_number_of_frames():
    # 16 frames leave 2 time steps instead of 4: two positions of 512 fewer.
    assert ENCODER - parts(frames=16)["encoder"] == 2 * 512


@pytest.mark.parametrize(("size", "blocks"), [(4, 0), (8, 1), (16, 2), (32, 3), (64, 4), (5, 1)])
def test_decoder_parameters_by_hand(size, blocks):
    width, expected = 512, 0
    for _ in range(blocks):
        neck, out = width // 4, max(8, width // 2)
        expected += width * neck + neck + 2 * neck  # reduce and its norm
        expected += 9 * neck * neck + neck + 2 * neck  # transposed convolution and its norm
        expected += neck * out + out + 2 * out  # expand and its norm
        width = out
    expected += width + 1
    assert parts(variant="cgmr", mask_size=size)["decoder"] == expected


def test_lowering_changes_no_parameter():
    def tree(lowering: str) -> dict:
        model = build_model({**BASE, "lowering": lowering}, backend="cpu")
        return jax.eval_shape(
            lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 32, 32, 3)), train=False)
        )

    first = tree("conv3d")
    for lowering in LOWERINGS:
        assert jax.tree.all(jax.tree.map(lambda a, b: a == b, first, tree(lowering)))


@pytest.mark.parametrize(
    ("backend", "flags", "expected"),
    [
        ("tpu", "", "conv3d"),
        ("gpu", "", "conv2d"),
        ("cpu", FAST_CPU_CONVOLUTION_FLAG, "conv2d"),
        ("cpu", "--other " + FAST_CPU_CONVOLUTION_FLAG, "conv2d"),
        ("cpu", "", "im2col_conv1d"),
        ("cpu", "--xla_force_host_platform_device_count=8", "im2col_conv1d"),
    ],
)
def test_automatic_lowering(backend, flags, expected):
    assert choose_lowering(backend, flags) == expected
    model = build_model({**BASE, "lowering": "auto"}, backend=backend, xla_flags=flags)
    assert getattr(model, "lowering", None) == expected


@pytest.mark.parametrize(
    ("key", "value", "options"),
    [
        ("name", "resnet", MODELS),
        ("dtype", "float16", DTYPES),
        ("lowering", "conv4d", LOWERINGS),
        ("variant", "cgmr+bert", VARIANTS),
    ],
)
def test_unknown_names_are_refused_with_the_choice(key, value, options):
    with pytest.raises(UserError) as caught:
        build_model({**BASE, key: value}, backend="cpu")
    assert f"config.model.{key}" in caught.value.cause
    assert value in caught.value.cause
    assert all(option in caught.value.remedy for option in options)


def test_unknown_field_is_refused():
    with pytest.raises(UserError, match="dept"):
        build_model({**BASE, "dept": 18}, backend="cpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_are_float32_unless_float64_is_asked_for(dtype):
    model = build_model({**BASE, "dtype": dtype}, backend="cpu")
    assert getattr(model, "dtype", None) == DTYPES[dtype]
    expected = jnp.float64 if dtype == "float64" else jnp.float32
    assert getattr(model, "param_dtype", None) == expected
