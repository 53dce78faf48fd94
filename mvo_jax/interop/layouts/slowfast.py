"""Layouts of ``models.slowfast.SlowFast``.

* ``REFERENCE``: keys of ``torch_models.slowfast.TorchSlowFast``;
* ``PYTORCHVIDEO``: the trunk alone of a checkpoint of facebookresearch/pytorchvideo (its
  'model_state').
"""

from collections.abc import Iterator

from mvo_jax.interop.weight_rules import BATCH_NORM, CONV3D, LINEAR, Layout, Module


def _conv_norm(flax: str, conv: str, norm: str) -> tuple[Module, Module]:
    return (f"{flax}/conv", conv, CONV3D), (f"{flax}/norm", norm, BATCH_NORM)


def _pathway(name: str, index: int) -> Iterator[Module]:
    pathway, flax = f"multipathway_blocks.{index}", f"trunk/{name}_stage{{stage}}_block{{block}}"
    stem, block = f"blocks.0.{pathway}", f"blocks.{{stage}}.{pathway}.res_blocks.{{block0}}"
    yield from _conv_norm(f"trunk/{name}_stem", f"{stem}.conv", f"{stem}.norm")
    yield from _conv_norm(f"{flax}/shortcut", f"{block}.branch1_conv", f"{block}.branch1_norm")
    inner = f"{block}.branch2"
    for part in "abc":
        yield from _conv_norm(f"{flax}/{part}", f"{inner}.conv_{part}", f"{inner}.norm_{part}")


_FUSION = "blocks.{stage0}.multipathway_fusion"
_TRUNK: tuple[Module, ...] = (
    *_pathway("slow", 0),
    *_pathway("fast", 1),
    *_conv_norm("trunk/lateral{stage}", f"{_FUSION}.conv_fast_to_slow", f"{_FUSION}.norm"),
)

REFERENCE = Layout("reference", (*_TRUNK, ("classifier", "blocks.6.proj", LINEAR)))
PYTORCHVIDEO = Layout("pytorchvideo", _TRUNK, ignored=(r"blocks\.6\.proj\.(weight|bias)",))
LAYOUTS = (REFERENCE, PYTORCHVIDEO)
