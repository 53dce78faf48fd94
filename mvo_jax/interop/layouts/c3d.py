"""Layouts of ``models.c3d.C3D``.

* ``REFERENCE``: keys of ``torch_models.c3d.TorchC3D``, which are those of the published port, so a
  whole published network of the same clip size and number of outputs also goes by it;
* ``SPORTS1M``: the trunk alone of such a checkpoint. Its dense layers belong to clips of
  16x112x112 and to 487 sports, and are left out.
"""

from mvo_jax.interop.weight_rules import BIAS, CONV3D, LINEAR, Layout, Module

_NAMES = ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b")
_TRUNK: tuple[Module, ...] = tuple((f"trunk/{name}", name, (*CONV3D, BIAS)) for name in _NAMES)

REFERENCE = Layout(
    "reference",
    (*_TRUNK, ("fc6", "fc6", LINEAR), ("fc7", "fc7", LINEAR), ("classifier", "fc8", LINEAR)),
)
SPORTS1M = Layout("sports1m", _TRUNK, ignored=(r"fc[678]\.(weight|bias)",))
LAYOUTS = (REFERENCE, SPORTS1M)
