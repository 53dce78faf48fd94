"""Layouts of ``models.timesformer.TimeSformer``.

* ``GATED``: the gated form, keys of lucidrains/TimeSformer-pytorch with its LayerNorm;
* ``RELEASED``: the released form with its classifier, keys of facebookresearch/TimeSformer;
* ``KINETICS``: a published checkpoint of that code (its entry ``model_state``) without its head of
  400 or 600 classes. Fits ``TimeSformer(form='released', hidden_size=768, mlp_dim=3072)`` at the
  frames and image size of the checkpoint, 8 x 224 x 224 for the base model: positions are taken as
  they are, not interpolated.
"""

from mvo_jax.interop.weight_rules import (
    BIAS,
    LAYER_NORM,
    LINEAR,
    MATRIX,
    Layout,
    Leaf,
    Module,
    PatchKernel,
    Reorder,
)

_BLOCK = "block{block}"


def _gated() -> tuple[Module, ...]:
    layer = "layers.{block0}"
    tokens = (
        Leaf("params", "cls", "cls_token", Reorder(leading_axes=1)),
        Leaf("params", "position", "pos_emb.weight", Reorder(leading_axes=1)),
    )
    attentions: list[Module] = []
    for index, axis in enumerate(("time", "space")):
        attentions += [
            (f"{_BLOCK}/{axis}_norm", f"{layer}.{index}.norm", LAYER_NORM),
            (f"{_BLOCK}/{axis}_qkv", f"{layer}.{index}.fn.to_qkv", MATRIX),
            (f"{_BLOCK}/{axis}_out", f"{layer}.{index}.fn.to_out.0", LINEAR),
        ]
    return (
        ("", "", tokens),
        ("patch_embedding", "to_patch_embedding", LINEAR),
        *attentions,
        (f"{_BLOCK}/mlp_norm", f"{layer}.2.norm", LAYER_NORM),
        (f"{_BLOCK}/mlp/in", f"{layer}.2.fn.net.0", LINEAR),
        (f"{_BLOCK}/mlp/out", f"{layer}.2.fn.net.3", LINEAR),
        ("head_norm", "to_out.0", LAYER_NORM),
        ("classifier", "to_out.1", LINEAR),
    )


def _released() -> tuple[Module, ...]:
    block = "model.blocks.{block0}"
    tokens = (
        Leaf("params", "cls", "cls_token"),
        Leaf("params", "position", "pos_embed"),
        Leaf("params", "time_position", "time_embed"),
    )
    patches = (Leaf("params", "kernel", "weight", PatchKernel()), BIAS)
    return (
        ("", "model", tokens),
        ("patch_embedding", "model.patch_embed.proj", patches),
        (f"{_BLOCK}/time_norm", f"{block}.temporal_norm1", LAYER_NORM),
        (f"{_BLOCK}/time_qkv", f"{block}.temporal_attn.qkv", LINEAR),
        (f"{_BLOCK}/time_out", f"{block}.temporal_attn.proj", LINEAR),
        (f"{_BLOCK}/time_map", f"{block}.temporal_fc", LINEAR),
        (f"{_BLOCK}/space_norm", f"{block}.norm1", LAYER_NORM),
        (f"{_BLOCK}/space_qkv", f"{block}.attn.qkv", LINEAR),
        (f"{_BLOCK}/space_out", f"{block}.attn.proj", LINEAR),
        (f"{_BLOCK}/mlp_norm", f"{block}.norm2", LAYER_NORM),
        (f"{_BLOCK}/mlp/in", f"{block}.mlp.fc1", LINEAR),
        (f"{_BLOCK}/mlp/out", f"{block}.mlp.fc2", LINEAR),
        ("head_norm", "model.norm", LAYER_NORM),
        ("classifier", "model.head", LINEAR),
    )


GATED = Layout("gated", _gated())
RELEASED = Layout("released", _released())
KINETICS = Layout(
    "kinetics",
    tuple(module for module in RELEASED.modules if module[0] != "classifier"),
    ignored=(r"model\.head\.(weight|bias)",),
)
LAYOUTS = (GATED, RELEASED, KINETICS)
