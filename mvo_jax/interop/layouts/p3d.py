"""Layouts of ``models.p3d.P3D``.

* ``REFERENCE``: keys of ``torch_models.p3d.TorchP3D``;
* ``PSEUDO_3D``: the trunk alone of a checkpoint of qijiezhao/pseudo-3d-pytorch (its 'state_dict').
"""

from mvo_jax.interop.weight_rules import (
    BATCH_NORM,
    CONV3D,
    LINEAR,
    Layout,
    Leaf,
    Module,
    Reorder,
)

_CONV2D = (Leaf("params", "kernel", "weight", Reorder((2, 3, 1, 0))),)
# (stages, their convolutions, the name of the spatial one): the last stage is 2-D.
_KINDS = (("123", CONV3D, "2"), ("4", _CONV2D, "_normal"))


def _layer(flax: str, torch: str, kind: tuple, conv: str, norm: str) -> tuple[Module, Module]:
    return (flax, f"{torch}.{conv}", kind), (f"{flax}_norm", f"{torch}.{norm}", BATCH_NORM)


def _stage(stage: str, kind: tuple[Leaf, ...], spatial: str) -> tuple[Module, ...]:
    flax, torch = f"trunk/layer{stage}_block{{block}}", f"layer{stage}.{{block0}}"
    numbers = {"reduce": "1", "spatial": spatial, "temporal": "3", "expand": "4"}
    if stage == "4":
        del numbers["temporal"]
    return (
        *(
            line
            for name, number in numbers.items()
            for line in _layer(f"{flax}/{name}", torch, kind, f"conv{number}", f"bn{number}")
        ),
        *_layer(f"{flax}/shortcut", torch, kind, "downsample.0", "downsample.1"),
    )


_TRUNK: tuple[Module, ...] = (
    ("trunk/stem_conv", "conv1_custom", CONV3D),
    ("trunk/stem_norm", "bn1", BATCH_NORM),
    *(
        line
        for stages, kind, spatial in _KINDS
        for stage in stages
        for line in _stage(stage, kind, spatial)
    ),
)

REFERENCE = Layout("reference", (*_TRUNK, ("classifier", "fc", LINEAR)))
PSEUDO_3D = Layout("pseudo_3d", _TRUNK, ignored=(r"fc\.(weight|bias)",))
LAYOUTS = (REFERENCE, PSEUDO_3D)
