"""The whole network: shapes of every stage, gradients, lowerings, bfloat16, refused clips."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mvo_jax.models.mvo_net import VARIANTS, MVONet
from mvo_jax.models.ops.lowerings import LOWERINGS
from mvo_jax.models.ops.numerics import Numerics
from mvo_jax.models.r2plus1d import mid_planes
from tests.draws import normal

TINY: dict[str, Any] = {
    "width": 8,
    "stage_sizes": (1, 1),
    "in_channels": 1,
    "mask_size": 32,
    "encoder_dropout": 0.0,
    "head_dropout": 0.0,
    "decoder_dropout": 0.0,
}
CLIP = (2, 8, 32, 32, 1)
VIDEO = normal(*CLIP, seed=7).astype(np.float32)


def shapes_of(model: Any, clip: tuple[int, ...], **call: Any) -> tuple[Any, dict[str, tuple]]:
    """Output and named intermediates as shapes; nothing is computed."""
    video = jax.ShapeDtypeStruct(clip, jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), video)
    out, kept = jax.eval_shape(
        lambda v, x: model.apply(v, x, mutable=["intermediates"], **call), variables, video
    )
    flat: dict[str, Any] = flatten_dict(kept["intermediates"], sep="/")
    return out, {name: value.shape for name, value in flat.items()}


@pytest.mark.parametrize("channels", [1, 3])
def test_every_stage_at_full_size(channels):
    out, kept = shapes_of(MVONet(), (2, 30, 64, 64, channels), train=False, with_mask=True)
    assert out.logits.shape == (2, 1)
    assert out.coarse_mask.shape == (2, 16, 16)
    assert kept == {
        "trunk/stem": (2, 30, 32, 32, 64),
        "trunk/layer1": (2, 30, 32, 32, 64),
        "trunk/layer2": (2, 15, 16, 16, 128),
        "trunk/layer3": (2, 8, 8, 8, 256),
        "trunk/layer4": (2, 4, 4, 4, 512),
        "tokens": (2, 4, 512),
        "encoder/embedded": (2, 5, 512),
        "encoder/encoded": (2, 5, 512),
        "pooled": (2, 512),
        "decoder/pooled": (2, 4, 4, 512),
        "decoder/upsampled1": (2, 8, 8, 256),
        "decoder/upsampled2": (2, 16, 16, 128),
    }


def test_mid_planes_are_torchvisions():
    assert [mid_planes(*pair) for pair in ((64, 64), (64, 128), (128, 128))] == [144, 230, 288]
    assert [mid_planes(*pair) for pair in ((128, 256), (256, 256))] == [460, 576]
    assert [mid_planes(*pair) for pair in ((256, 512), (512, 512))] == [921, 1152]


@pytest.mark.parametrize("frames", [8, 16, 25, 30])
@pytest.mark.parametrize("size", [32, 48, 64, 80])
def test_any_frames_and_size(frames, size):
    model = MVONet(width=8, in_channels=1)
    out, kept = shapes_of(model, (1, frames, size, size, 1), train=False, with_mask=True)
    for stage in range(1, 5):
        steps, side = math.ceil(frames / 2 ** (stage - 1)), math.ceil(size / 2**stage)
        assert kept[f"trunk/layer{stage}"] == (1, steps, side, side, 8 * 2 ** (stage - 1))
    assert kept["tokens"] == (1, math.ceil(frames / 8), 64)
    assert out.coarse_mask.shape == (1, 16, 16)


@pytest.mark.parametrize("variant", VARIANTS)
def test_branches_of_every_variant(variant):
    encoder, mask = VARIANTS[variant]
    model = MVONet(variant=variant, width=8, num_outputs=2)
    out, kept = shapes_of(model, (1, 8, 32, 32, 3), train=False, with_mask=True)
    assert out.logits.shape == (1, 2)
    assert (out.coarse_mask is not None) == mask
    assert ("encoder/encoded" in kept) == encoder
    assert ("decoder/pooled" in kept) == mask
    out, kept = shapes_of(model, (1, 8, 32, 32, 3), train=False)
    assert out.coarse_mask is None
    assert not any(name.startswith("decoder") for name in kept)


def test_without_the_mask_branch_its_weights_are_not_needed(random_variables):
    model: Any = MVONet(**TINY)
    variables = random_variables(model, CLIP, train=False)
    apply = jax.jit(model.apply, static_argnames=("train", "with_mask"))
    full = apply(variables, VIDEO, train=False, with_mask=True)
    pruned = {
        kind: {part: value for part, value in tree.items() if part != "decoder"}
        for kind, tree in variables.items()
    }
    alone = apply(pruned, VIDEO, train=False)
    # Two programs of the same sums in float32.
    np.testing.assert_allclose(alone.logits, full.logits, rtol=1e-5)


def test_a_grey_clip_is_copied_to_three_channels(random_variables):
    model: Any = MVONet(**{**TINY, "in_channels": 3, "variant": "backbone", "stage_sizes": (1,)})
    variables = random_variables(model, CLIP, train=False)
    grey = model.apply(variables, VIDEO, train=False).logits
    copied = model.apply(variables, np.repeat(VIDEO, 3, axis=-1), train=False).logits
    np.testing.assert_array_equal(grey, copied)


# Gradients that are zero by algebra, whatever the data.
ZERO_BY_ALGEBRA = {
    # Softmax over the keys does not feel a constant added to every score.
    "encoder/block1/key/bias",
    # BatchNorm subtracts the mean, and a bias before it with it.
    "decoder/block1/reduce/bias",
    "decoder/block2/reduce/bias",
}
ZERO_IN_LAYOUT = {
    # The same through the pooling, which passes a constant on, to block 2's `reduce`.
    "paper": {"decoder/block1/upsample/bias"},
    "released": {
        f"decoder/block{block}/{part}/bias" for block in (1, 2) for part in ("upsample", "expand")
    },
}


def exact_gradient(model: Any, variables: Any) -> tuple[Any, Any]:
    """Gradient of every parameter in float64, and output and statistics."""

    def loss(params: Any) -> Any:
        out, updated = model.apply(
            {**variables, "params": params},
            VIDEO.astype(np.float64),
            train=True,
            with_mask=True,
            mutable=["batch_stats"],
        )
        value = jnp.square(out.logits - 1).sum()
        if out.coarse_mask is not None:
            weight = jnp.cos(jnp.arange(out.coarse_mask.size)).reshape(out.coarse_mask.shape)
            value = value + (weight * out.coarse_mask).sum()
        return value, (out, updated)

    return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("variant", "layout"),
    [("backbone", "paper"), ("bert", "paper"), ("cgmr", "released"), ("full", "paper")],
)
def test_every_parameter_gets_a_gradient(variant, layout, random_variables):
    numerics = Numerics(dtype=jnp.float64, param_dtype=jnp.float64)
    model = MVONet(**TINY, variant=variant, decoder_layout=layout, numerics=numerics)
    gradient, _ = exact_gradient(model, random_variables(model, CLIP, train=False))
    flat = flatten_dict(gradient, sep="/")
    norms = {name: float(jnp.linalg.norm(g)) for name, g in flat.items()}
    assert np.isfinite(list(norms.values())).all()
    # float64 rounding leaves 1e-16 of the largest gradient where algebra says zero.
    zero = {name for name, norm in norms.items() if norm < 1e-10 * max(norms.values())}
    assert zero == (ZERO_BY_ALGEBRA | ZERO_IN_LAYOUT[layout]) & set(norms)


@pytest.mark.slow(
    reason="compiles the network once a lowering; each is compared with torch in interop/parity"
)
@pytest.mark.usefixtures("x64")
def test_all_lowerings_agree(random_variables):
    settings = {**TINY, "width": 4, "variant": "backbone"}  # the trunk alone has lowerings
    results = {}
    for lowering in LOWERINGS:
        model = MVONet(**settings, numerics=Numerics(lowering, None, jnp.float64, jnp.float64))
        variables = random_variables(model, CLIP, train=False)
        results[lowering] = exact_gradient(model, variables)
    expected_gradient, expected_outputs = results["conv3d"]
    for gradient, outputs in results.values():
        # float64, some 15 layers of sums of up to 400 products: 1e-13; a wrong window is 1e-2.
        for ours, reference in zip(
            jax.tree.leaves(outputs), jax.tree.leaves(expected_outputs), strict=True
        ):
            assert np.linalg.norm(ours - reference) <= 1e-11 * np.linalg.norm(reference)
        # One norm over each part: gradients that are zero by algebra are rounding in both.
        for part in expected_gradient:
            ours, reference = (
                np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree[part])])
                for tree in (gradient, expected_gradient)
            )
            assert np.linalg.norm(ours - reference) <= 1e-10 * np.linalg.norm(reference)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32(random_variables):
    exact: Any = MVONet(**TINY)
    short: Any = MVONet(**TINY, numerics=Numerics(dtype=jnp.bfloat16))
    variables = random_variables(exact, CLIP, train=False)

    def run(model):
        return jax.jit(
            lambda v, x: model.apply(
                v, x, train=True, with_mask=True, mutable=["batch_stats", "intermediates"]
            )
        )(variables, VIDEO)

    (reference, expected), (out, updated) = run(exact), run(short)
    assert updated["intermediates"]["trunk"]["layer2"].dtype == jnp.bfloat16
    assert out.logits.dtype == out.coarse_mask.dtype == jnp.float32
    stats = updated["batch_stats"]
    assert {x.dtype for x in jax.tree.leaves(stats)} == {jnp.dtype("float32")}

    def error(ours, theirs):
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs)
        return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)

    # bfloat16 rounds at 0.4 %; some ten layers with ReLU in between add up to about 1 %.
    for name in ("stem", "layer1", "layer2"):
        ours, theirs = (kept["intermediates"]["trunk"][name] for kept in (updated, expected))
        assert 1e-4 < error(ours, theirs) < 0.03
    assert error(out.coarse_mask, reference.coarse_mask) < 0.1
    assert np.abs(out.logits - reference.logits).max() < 0.1
    for ours, theirs in zip(
        jax.tree.leaves(stats), jax.tree.leaves(expected["batch_stats"]), strict=True
    ):
        assert error(ours, theirs) < 0.05


def test_dropout_acts_in_training_only(random_variables):
    model: Any = MVONet(**{**TINY, "stage_sizes": (1,), "variant": "backbone", "head_dropout": 0.5})
    variables = random_variables(model, CLIP, train=False)

    def logits(train, seed):
        rngs = {"dropout": jax.random.key(seed)}
        out, _ = model.apply(variables, VIDEO, train=train, rngs=rngs, mutable=["batch_stats"])
        return np.asarray(out.logits)

    assert (logits(False, 0) == logits(False, 1)).all()
    assert (logits(True, 0) == logits(True, 0)).all()
    assert (logits(True, 0) != logits(True, 1)).any()


@pytest.mark.parametrize(
    ("fields", "clip", "message"),
    [
        ({}, (1, 7, 64, 64, 1), "clips of 7 frames of 64x64 are too small"),
        ({}, (1, 30, 31, 64, 1), "clips of 30 frames of 31x64 are too small"),
        ({}, (1, 8, 32, 32, 2), "clips have 2 channels, the stem 3"),
        ({"in_channels": 1}, (1, 8, 32, 32, 3), "clips have 3 channels, the stem 1"),
        ({"variant": "fulll"}, (1, 8, 32, 32, 1), "variant 'fulll' is unknown"),
    ],
)
def test_what_the_network_cannot_take_is_refused(fields, clip, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(MVONet(width=8, **fields), clip, train=False)
