"""The models in PyTorch: each the twin of a Flax model, built from the same config.

Written from the papers and from the documented structure of public code, so that equality with
the Flax side says something. Nothing imports torch at start: it stays optional.
"""

import pkgutil
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvo_jax.interop.torch_models.recording import RecordedModel

# name of the model (config.model.name) -> its class here
TWINS = {
    "mvo_net": "mvo_net:TorchMVONet",
    "vivit": "vivit:TorchViViT",
    "timesformer": "timesformer:TorchTimeSformer",
    "c3d": "c3d:TorchC3D",
    "i3d": "i3d:TorchI3D",
    "slowfast": "slowfast:TorchSlowFast",
    "p3d": "p3d:TorchP3D",
}


def build_twin(model: Mapping[str, Any], clip: tuple[int, ...]) -> "RecordedModel":
    """The torch twin of a config's ``model``, whatever its dtype and lowering; weights of its own.

    ``clip`` (T, H, W, C) fixes positions, decoder blocks and C3D's dense layer.
    """
    twin = pkgutil.resolve_name(f"{__name__}.{TWINS[model['name']]}")
    return twin(clip, types.SimpleNamespace(**model))
