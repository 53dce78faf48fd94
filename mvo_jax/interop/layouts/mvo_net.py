"""Layouts of ``models.mvo_net.MVONet``.

* ``REFERENCE``: keys of ``torch_models.mvo_net.TorchMVONet``;
* ``TORCHVISION``: the trunk alone, keys of torchvision's ``r2plus1d_18``;
* ``RELEASED``: a checkpoint of the authors' full model.
"""

from mvo_jax.interop.weight_rules import (
    BATCH_NORM,
    CONV1X1,
    CONV3D,
    LINEAR,
    TRANSPOSED,
    Layout,
    Leaf,
    Module,
)

_EMBEDDING = (
    Leaf("params", "cls", "clsToken"),
    Leaf("params", "position", "embedding.learnedPosition.pe"),
)
_LAYER_NORM = (Leaf("params", "scale", "a_2"), Leaf("params", "bias", "b_2"))

_BLOCK, _TORCH_BLOCK = "trunk/layer{stage}_block{block}", "trunk.layer{stage}.{block0}"
_ENCODER, _TORCH_ENCODER = "encoder/block{block}", "bert.transformer_blocks.{block0}"
_DECODER, _TORCH_DECODER = "decoder/block{block}", "pseudo_branch.deconv{block}"
MODULES: tuple[Module, ...] = (
    ("trunk/stem_spatial", "trunk.stem.0", CONV3D),
    ("trunk/stem_spatial_norm", "trunk.stem.1", BATCH_NORM),
    ("trunk/stem_temporal", "trunk.stem.3", CONV3D),
    ("trunk/stem_temporal_norm", "trunk.stem.4", BATCH_NORM),
    (f"{_BLOCK}/conv{{conv}}/spatial", f"{_TORCH_BLOCK}.conv{{conv}}.0.0", CONV3D),
    (f"{_BLOCK}/conv{{conv}}/norm", f"{_TORCH_BLOCK}.conv{{conv}}.0.1", BATCH_NORM),
    (f"{_BLOCK}/conv{{conv}}/temporal", f"{_TORCH_BLOCK}.conv{{conv}}.0.3", CONV3D),
    (f"{_BLOCK}/norm{{conv}}", f"{_TORCH_BLOCK}.conv{{conv}}.1", BATCH_NORM),
    (f"{_BLOCK}/downsample", f"{_TORCH_BLOCK}.downsample.0", CONV3D),
    (f"{_BLOCK}/downsample_norm", f"{_TORCH_BLOCK}.downsample.1", BATCH_NORM),
    ("encoder", "bert", _EMBEDDING),
    (f"{_ENCODER}/attention_norm", f"{_TORCH_ENCODER}.input_sublayer.norm", _LAYER_NORM),
    (f"{_ENCODER}/query", f"{_TORCH_ENCODER}.attention.linear_layers.0", LINEAR),
    (f"{_ENCODER}/key", f"{_TORCH_ENCODER}.attention.linear_layers.1", LINEAR),
    (f"{_ENCODER}/value", f"{_TORCH_ENCODER}.attention.linear_layers.2", LINEAR),
    (f"{_ENCODER}/out", f"{_TORCH_ENCODER}.attention.output_linear", LINEAR),
    (f"{_ENCODER}/mlp_norm", f"{_TORCH_ENCODER}.output_sublayer.norm", _LAYER_NORM),
    (f"{_ENCODER}/mlp_in", f"{_TORCH_ENCODER}.feed_forward.w_1", LINEAR),
    (f"{_ENCODER}/mlp_out", f"{_TORCH_ENCODER}.feed_forward.w_2", LINEAR),
    ("classifier", "fc_action", LINEAR),
    (f"{_DECODER}/reduce", f"{_TORCH_DECODER}.conv1", CONV1X1),
    (f"{_DECODER}/reduce_norm", f"{_TORCH_DECODER}.norm1", BATCH_NORM),
    (f"{_DECODER}/upsample", f"{_TORCH_DECODER}.deconv2", TRANSPOSED),
    (f"{_DECODER}/upsample_norm", f"{_TORCH_DECODER}.norm2", BATCH_NORM),
    (f"{_DECODER}/expand", f"{_TORCH_DECODER}.conv3", CONV1X1),
    (f"{_DECODER}/expand_norm", f"{_TORCH_DECODER}.norm3", BATCH_NORM),
    ("decoder/predict", "pseudo_branch.conv_seg", CONV1X1),
)

REFERENCE = Layout("reference", MODULES)
TORCHVISION = REFERENCE.renamed(
    "torchvision",
    (("trunk.", ""),),
    ignored=(r"fc\.(weight|bias)",),  # the 400 Kinetics classes
)
RELEASED = REFERENCE.renamed(
    "released",
    (
        ("trunk.stem.", "backbone.feature.features.0."),
        ("trunk.layer{stage}.", "backbone.feature.features.{stage}."),
        ("bert", "decode_head.bert_branch.bert"),
        ("fc_action", "decode_head.bert_branch.fc_action"),
        ("pseudo_branch.", "decode_head.pseudo_branch."),
    ),
    # Parameters that every head of the authors' code inherits and never calls.
    ignored=(
        r"decode_head\.(bert_branch\.)?"
        r"(cls2Dconv[123]|cls2Dfc|clsconv[123]|clsfc|fc|conv_seg|conv_seg3D)\.(weight|bias)",
    ),
)
LAYOUTS = (REFERENCE, TORCHVISION, RELEASED)
