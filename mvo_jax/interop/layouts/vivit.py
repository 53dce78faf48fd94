"""Layout of ``models.vivit.ViViT``.

* ``REFERENCE``: keys of ``torch_models.vivit.TorchViViT``, which are those of
  rishikksh20/ViViT-pytorch.

No published Kinetics weights fit. The authors' checkpoints (scenic, JAX) of the factorised encoder
have biases in the query-key-value maps and separate positions for patches and time steps; the
PyTorch ones (``google/vivit-b-16x2-kinetics400``) are Model 1, one joint transformer over all
tubelets, another network.
"""

from mvo_jax.interop.weight_rules import LAYER_NORM, LINEAR, MATRIX, Layout, Leaf, Module


def _encoder(flax: str, torch: str) -> tuple[Module, ...]:
    block, layer = f"{flax}_block{{block}}", f"{torch}.layers.{{block0}}"
    return (
        (f"{block}/attention_norm", f"{layer}.0.norm", LAYER_NORM),
        (f"{block}/qkv", f"{layer}.0.fn.to_qkv", MATRIX),
        (f"{block}/out", f"{layer}.0.fn.to_out.0", LINEAR),
        (f"{block}/mlp_norm", f"{layer}.1.norm", LAYER_NORM),
        (f"{block}/mlp/in", f"{layer}.1.fn.net.0", LINEAR),
        (f"{block}/mlp/out", f"{layer}.1.fn.net.3", LINEAR),
        (f"{flax}_norm", f"{torch}.norm", LAYER_NORM),
    )


_TOKENS = (
    Leaf("params", "position", "pos_embedding"),
    Leaf("params", "space_token", "space_token"),
    Leaf("params", "time_token", "temporal_token"),
)
REFERENCE = Layout(
    "reference",
    (
        ("", "", _TOKENS),
        ("patch_embedding", "to_patch_embedding.1", LINEAR),
        *_encoder("space", "space_transformer"),
        *_encoder("time", "temporal_transformer"),
        ("head_norm", "mlp_head.0", LAYER_NORM),
        ("classifier", "mlp_head.1", LINEAR),
    ),
)
LAYOUTS = (REFERENCE,)
