"""Layouts of torch checkpoints, one module for each model."""

from collections.abc import Mapping
from typing import Any

from mvo_jax.interop.layouts import c3d, i3d, mvo_net, p3d, slowfast, timesformer, vivit
from mvo_jax.interop.weight_rules import Layout

# name of the model (config.model.name) -> its layouts
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "mvo_net": mvo_net.LAYOUTS,
    "vivit": vivit.LAYOUTS,
    "timesformer": timesformer.LAYOUTS,
    "c3d": c3d.LAYOUTS,
    "i3d": i3d.LAYOUTS,
    "slowfast": slowfast.LAYOUTS,
    "p3d": p3d.LAYOUTS,
}


def twin_layout(model: Mapping[str, Any]) -> Layout:
    """The layout of our torch twin of a model: the one named as its form, or else the first."""
    layouts = LAYOUTS[model["name"]]
    return next((layout for layout in layouts if layout.name == model.get("form")), layouts[0])
