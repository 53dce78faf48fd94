"""Layouts of ``models.p3d.P3D``.

* ``REFERENCE``: keys of ``torch_models.p3d.TorchP3D``;
* ``PSEUDO_3D``: the trunk alone of a checkpoint of qijiezhao/pseudo-3d-pytorch (its 'state_dict').
"""

from collections.abc import Iterator

from mvo_jax.interop.weight_rules import BATCH_NORM, CONV3D, LINEAR, Layout, Leaf, Module, Reorder

_CONV2D = (Leaf("params", "kernel", "weight", Reorder((2, 3, 1, 0))),)


def _trunk() -> Iterator[Module]:
    yield "trunk/stem_conv", "conv1_custom", CONV3D
    yield "trunk/stem_norm", "bn1", BATCH_NORM
    kind, parts = CONV3D, {"reduce": "1", "spatial": "2", "temporal": "3", "expand": "4"}
    for stage in range(1, 5):
        if stage == 4:  # of 2-D convolutions
            kind, parts = _CONV2D, {"reduce": "1", "spatial": "_normal", "expand": "4"}
        flax, torch = f"trunk/layer{stage}_block{{block}}", f"layer{stage}.{{block0}}"
        for ours, theirs in parts.items():
            yield f"{flax}/{ours}", f"{torch}.conv{theirs}", kind
            yield f"{flax}/{ours}_norm", f"{torch}.bn{theirs}", BATCH_NORM
        yield f"{flax}/shortcut", f"{torch}.downsample.0", kind
        yield f"{flax}/shortcut_norm", f"{torch}.downsample.1", BATCH_NORM


_TRUNK = tuple(_trunk())
REFERENCE = Layout("reference", (*_TRUNK, ("classifier", "fc", LINEAR)))
PSEUDO_3D = Layout("pseudo_3d", _TRUNK, ignored=(r"fc\.(weight|bias)",))
LAYOUTS = (REFERENCE, PSEUDO_3D)
