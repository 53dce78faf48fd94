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
    PatchKernel,
    Reorder,
)

_BLOCK = "block{block}"


_LAYER, _TORCH_BLOCK = "layers.{block0}", "model.blocks.{block0}"

GATED = Layout(
    "gated",
    (
        ("", "", (Leaf("params", "cls", "cls_token", Reorder(leading_axes=1)),)),
        ("", "", (Leaf("params", "position", "pos_emb.weight", Reorder(leading_axes=1)),)),
        ("patch_embedding", "to_patch_embedding", LINEAR),
        (f"{_BLOCK}/time_norm", f"{_LAYER}.0.norm", LAYER_NORM),
        (f"{_BLOCK}/time_qkv", f"{_LAYER}.0.fn.to_qkv", MATRIX),
        (f"{_BLOCK}/time_out", f"{_LAYER}.0.fn.to_out.0", LINEAR),
        (f"{_BLOCK}/space_norm", f"{_LAYER}.1.norm", LAYER_NORM),
        (f"{_BLOCK}/space_qkv", f"{_LAYER}.1.fn.to_qkv", MATRIX),
        (f"{_BLOCK}/space_out", f"{_LAYER}.1.fn.to_out.0", LINEAR),
        (f"{_BLOCK}/mlp_norm", f"{_LAYER}.2.norm", LAYER_NORM),
        (f"{_BLOCK}/mlp/in", f"{_LAYER}.2.fn.net.0", LINEAR),
        (f"{_BLOCK}/mlp/out", f"{_LAYER}.2.fn.net.3", LINEAR),
        ("head_norm", "to_out.0", LAYER_NORM),
        ("classifier", "to_out.1", LINEAR),
    ),
)
_PATCHES = (Leaf("params", "kernel", "weight", PatchKernel()), BIAS)
_TOKENS = {"cls": "cls_token", "position": "pos_embed", "time_position": "time_embed"}
RELEASED = Layout(
    "released",
    (
        ("", "model", tuple(Leaf("params", flax, torch) for flax, torch in _TOKENS.items())),
        ("patch_embedding", "model.patch_embed.proj", _PATCHES),
        (f"{_BLOCK}/time_norm", f"{_TORCH_BLOCK}.temporal_norm1", LAYER_NORM),
        (f"{_BLOCK}/time_qkv", f"{_TORCH_BLOCK}.temporal_attn.qkv", LINEAR),
        (f"{_BLOCK}/time_out", f"{_TORCH_BLOCK}.temporal_attn.proj", LINEAR),
        (f"{_BLOCK}/time_map", f"{_TORCH_BLOCK}.temporal_fc", LINEAR),
        (f"{_BLOCK}/space_norm", f"{_TORCH_BLOCK}.norm1", LAYER_NORM),
        (f"{_BLOCK}/space_qkv", f"{_TORCH_BLOCK}.attn.qkv", LINEAR),
        (f"{_BLOCK}/space_out", f"{_TORCH_BLOCK}.attn.proj", LINEAR),
        (f"{_BLOCK}/mlp_norm", f"{_TORCH_BLOCK}.norm2", LAYER_NORM),
        (f"{_BLOCK}/mlp/in", f"{_TORCH_BLOCK}.mlp.fc1", LINEAR),
        (f"{_BLOCK}/mlp/out", f"{_TORCH_BLOCK}.mlp.fc2", LINEAR),
        ("head_norm", "model.norm", LAYER_NORM),
        ("classifier", "model.head", LINEAR),
    ),
)
KINETICS = Layout("kinetics", RELEASED.modules[:-1], ignored=(r"model\.head\.(weight|bias)",))
LAYOUTS = (GATED, RELEASED, KINETICS)
