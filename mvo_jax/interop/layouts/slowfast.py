"""Layouts of ``models.slowfast.SlowFast``.

* ``REFERENCE``: keys of ``torch_models.slowfast.TorchSlowFast``;
* ``PYTORCHVIDEO``: the trunk alone of a checkpoint of facebookresearch/pytorchvideo (its
  'model_state').
"""

from mvo_jax.interop.weight_rules import BATCH_NORM, CONV3D, LINEAR, Layout, Module


def _conv_norm(flax: str, conv: str, norm: str) -> tuple[Module, Module]:
    return (f"{flax}/conv", conv, CONV3D), (f"{flax}/norm", norm, BATCH_NORM)


def _pathway(name: str, index: int) -> tuple[Module, ...]:
    pathway = f"multipathway_blocks.{index}"
    stem = f"blocks.0.{pathway}"
    flax, block = (
        f"trunk/{name}_stage{{stage}}_block{{block}}",
        f"blocks.{{stage}}.{pathway}.res_blocks.{{block0}}",
    )
    return (
        *_conv_norm(f"trunk/{name}_stem", f"{stem}.conv", f"{stem}.norm"),
        *_conv_norm(f"{flax}/shortcut", f"{block}.branch1_conv", f"{block}.branch1_norm"),
        *(
            line
            for part in "abc"
            for line in _conv_norm(
                f"{flax}/{part}", f"{block}.branch2.conv_{part}", f"{block}.branch2.norm_{part}"
            )
        ),
    )


_FUSION = "blocks.{stage0}.multipathway_fusion"
_TRUNK: tuple[Module, ...] = (
    *_pathway("slow", 0),
    *_pathway("fast", 1),
    *_conv_norm("trunk/lateral{stage}", f"{_FUSION}.conv_fast_to_slow", f"{_FUSION}.norm"),
)
_HEAD = "blocks.6.proj"

REFERENCE = Layout("reference", (*_TRUNK, ("classifier", _HEAD, LINEAR)))
PYTORCHVIDEO = Layout("pytorchvideo", _TRUNK, ignored=(r"blocks\.6\.proj\.(weight|bias)",))
LAYOUTS = (REFERENCE, PYTORCHVIDEO)
