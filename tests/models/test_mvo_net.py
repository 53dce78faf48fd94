"""The whole network: shapes of every stage, bfloat16, refused clips.

Gradients and lowerings are compared with torch in tests/interop/parity.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mvo_jax.models.mvo_net import VARIANTS, MVONet
from mvo_jax.models.ops.numerics import Numerics
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


@pytest.mark.parametrize(
    ("fields", "clip", "message"),
    [
        ({}, (1, 7, 64, 64, 1), "clips of 7 frames of 64x64 are too small"),
        ({}, (1, 30, 31, 64, 1), "clips of 30 frames of 31x64 are too small"),
        ({}, (1, 8, 32, 32, 2), "clips have 2 channels, the stem 3"),
        ({"in_channels": 1}, (1, 8, 32, 32, 3), "clips have 3 channels, the stem 1"),
    ],
)
def test_what_the_network_cannot_take_is_refused(fields, clip, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(MVONet(width=8, **fields), clip, train=False)
