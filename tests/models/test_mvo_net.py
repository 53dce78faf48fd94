"""The whole network: shapes of every stage, gradients, lowerings, bfloat16, refused clips."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mvo_jax.models.mask_decoder import LAYOUTS
from mvo_jax.models.mvo_net import VARIANTS, MVONet
from mvo_jax.models.ops.lowerings import LOWERINGS
from mvo_jax.models.r2plus1d import mid_planes

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


def shapes_of(model: Any, clip: tuple[int, ...], **call: Any) -> tuple[Any, dict[str, tuple]]:
    """Output and named intermediates as shapes; nothing is computed."""
    video = jax.ShapeDtypeStruct(clip, jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), video)
    out, kept = jax.eval_shape(
        lambda v, x: model.apply(v, x, mutable=["intermediates"], **call), variables, video
    )
    flat: dict[str, Any] = flatten_dict(kept["intermediates"], sep="/")
    return out, {name: value.shape for name, value in flat.items()}


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    return np.random.default_rng(7).standard_normal(CLIP).astype(np.float32)


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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mask_size", [4, 8, 16, 32, 64, 5])
def test_mask_sizes_of_table_3(layout, mask_size):
    model = MVONet(width=8, mask_size=mask_size, decoder_layout=layout)
    out, _ = shapes_of(model, (1, 8, 64, 64, 1), train=False, with_mask=True)
    assert out.coarse_mask.shape == (1, mask_size, mask_size)


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


def test_without_the_mask_branch_its_weights_are_not_needed(random_variables, video):
    model: Any = MVONet(**TINY)
    variables = random_variables(model, CLIP, train=False)
    apply = jax.jit(model.apply, static_argnames=("train", "with_mask"))
    full = apply(variables, video, train=False, with_mask=True)
    pruned = {
        kind: {part: value for part, value in tree.items() if part != "decoder"}
        for kind, tree in variables.items()
    }
    alone = apply(pruned, video, train=False)
    # Two programs of the same sums in float32.
    np.testing.assert_allclose(alone.logits, full.logits, rtol=1e-5)


def test_a_grey_clip_is_copied_to_three_channels(random_variables, video):
    model: Any = MVONet(**{**TINY, "in_channels": 3, "variant": "backbone", "stage_sizes": (1,)})
    variables = random_variables(model, CLIP, train=False)
    grey = model.apply(variables, video, train=False).logits
    copied = model.apply(variables, np.repeat(video, 3, axis=-1), train=False).logits
    np.testing.assert_array_equal(grey, copied)


# Gradients that are zero by algebra, whatever the data.
ZERO_BY_ALGEBRA = {
    # Softmax over the keys does not feel a constant added to every score.
    "encoder/block1/key/bias": "softmax",
    # BatchNorm subtracts the mean, and a bias before it with it.
    "decoder/block1/reduce/bias": "BatchNorm",
    "decoder/block2/reduce/bias": "BatchNorm",
}
ZERO_IN_LAYOUT = {
    # The same through the pooling, which passes a constant on, to block 2's `reduce`.
    "paper": {"decoder/block1/upsample/bias"},
    "released": {
        f"decoder/block{block}/{part}/bias" for block in (1, 2) for part in ("upsample", "expand")
    },
}


@pytest.mark.parametrize(
    ("variant", "layout"),
    [("backbone", "paper"), ("bert", "paper"), ("cgmr", "released"), ("full", "paper")],
)
def test_every_parameter_gets_a_gradient(variant, layout, random_variables, video):
    settings = {**TINY, "variant": variant, "decoder_layout": layout}
    with jax.enable_x64(True):
        model: Any = MVONet(**settings, dtype=jnp.float64, param_dtype=jnp.float64)
        variables = random_variables(model, CLIP, train=False)

        def loss(params: Any) -> jax.Array:
            out, _ = model.apply(
                {**variables, "params": params},
                video.astype(np.float64),
                train=True,
                with_mask=True,
                mutable=["batch_stats"],
            )
            value = jnp.square(out.logits - 1).sum()
            if out.coarse_mask is not None:
                weight = jnp.cos(jnp.arange(out.coarse_mask.size)).reshape(out.coarse_mask.shape)
                value = value + (weight * out.coarse_mask).sum()
            return value

        gradients = flatten_dict(jax.jit(jax.grad(loss))(variables["params"]), sep="/")
        norms = {name: float(jnp.linalg.norm(g)) for name, g in gradients.items()}
    assert np.isfinite(list(norms.values())).all()
    # float64 rounding leaves 1e-16 of the largest gradient where algebra says zero.
    zero = {name for name, norm in norms.items() if norm < 1e-10 * max(norms.values())}
    expected = (set(ZERO_BY_ALGEBRA) | ZERO_IN_LAYOUT[layout]) & set(norms)
    assert zero == expected


@pytest.fixture(scope="module")
def lowering_results(random_variables, video):
    """Outputs and gradients of one network by every lowering, in float64."""
    results = {}
    settings = {**TINY, "width": 4, "variant": "backbone"}  # the trunk alone has lowerings
    with jax.enable_x64(True):
        for lowering in LOWERINGS:
            model: Any = MVONet(
                **settings, lowering=lowering, dtype=jnp.float64, param_dtype=jnp.float64
            )
            variables = random_variables(model, CLIP, train=False)

            def loss(params, model=model, variables=variables):
                out, updated = model.apply(
                    {**variables, "params": params},
                    video.astype(np.float64),
                    train=True,
                    mutable=["batch_stats"],
                )
                return jnp.square(out.logits - 1).sum(), (out, updated)

            gradient, aux = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
            results[lowering] = jax.tree.map(np.asarray, (gradient, aux))
    return results


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_all_lowerings_agree(lowering, lowering_results):
    gradient, outputs = lowering_results[lowering]
    expected_gradient, expected_outputs = lowering_results["conv3d"]

    # float64, some 15 layers of sums of up to 400 products: 1e-13; a wrong window is 1e-2.
    for ours, reference in zip(
        jax.tree.leaves(outputs), jax.tree.leaves(expected_outputs), strict=True
    ):
        assert np.linalg.norm(ours - reference) <= 1e-11 * np.linalg.norm(reference)
    # One norm over each part: gradients that are zero by algebra are rounding in both.
    for part in expected_gradient:
        ours, reference = (
            np.concatenate([x.ravel() for x in jax.tree.leaves(tree[part])])
            for tree in (gradient, expected_gradient)
        )
        assert np.linalg.norm(ours - reference) <= 1e-10 * np.linalg.norm(reference)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32(random_variables, video):
    exact: Any = MVONet(**TINY)
    short: Any = MVONet(**TINY, dtype=jnp.bfloat16)
    variables = random_variables(exact, CLIP, train=False)
    kept = jax.eval_shape(lambda: short.init(jax.random.key(0), video, train=False))
    assert {x.dtype for x in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    assert jax.tree.map(jnp.shape, kept) == jax.tree.map(jnp.shape, variables)

    def run(model):
        return jax.jit(
            lambda v, x: model.apply(
                v, x, train=True, with_mask=True, mutable=["batch_stats", "intermediates"]
            )
        )(variables, video)

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
        reached = error(
            updated["intermediates"]["trunk"][name], expected["intermediates"]["trunk"][name]
        )
        assert 1e-4 < reached < 0.03
    assert error(out.coarse_mask, reference.coarse_mask) < 0.1
    assert np.abs(out.logits - reference.logits).max() < 0.1
    for ours, theirs in zip(
        jax.tree.leaves(stats), jax.tree.leaves(expected["batch_stats"]), strict=True
    ):
        assert error(ours, theirs) < 0.05


def test_dropout_acts_in_training_only(random_variables, video):
    model: Any = MVONet(**{**TINY, "stage_sizes": (1,), "variant": "backbone", "head_dropout": 0.5})
    variables = random_variables(model, CLIP, train=False)

    def logits(train, seed):
        out = model.apply(
            variables,
            video,
            train=train,
            rngs={"dropout": jax.random.key(seed)},
            mutable=["batch_stats"] if train else False,
        )
        return np.asarray((out[0] if train else out).logits)

    assert (logits(False, 0) == logits(False, 1)).all()
    assert (logits(True, 0) == logits(True, 0)).all()
    assert (logits(True, 0) != logits(True, 1)).any()


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ((1, 7, 64, 64, 1), "clips of 7 frames of 64x64 are too small"),
        ((1, 30, 31, 64, 1), "clips of 30 frames of 31x64 are too small"),
        ((1, 30, 64, 16, 1), "clips of 30 frames of 64x16 are too small"),
        ((1, 8, 32, 32, 2), "clips have 2 channels, the stem 3"),
    ],
)
def test_clips_the_network_cannot_take(clip, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(MVONet(width=8), clip, train=False)


def test_three_channels_into_a_stem_of_one_are_refused():
    with pytest.raises(ValueError, match="clips have 3 channels, the stem 1"):
        shapes_of(MVONet(width=8, in_channels=1), (1, 8, 32, 32, 3), train=False)


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="variant 'fulll' is unknown"):
        shapes_of(MVONet(variant="fulll", width=8), (1, 8, 32, 32, 1), train=False)
