"""Layouts of torch checkpoints, one module for each model."""

from mvo_jax.interop.layouts import c3d, i3d, mvo_net, p3d, slowfast, timesformer, vivit
from mvo_jax.interop.weight_rules import Layout

# name of the model (config.model.name) -> its layouts; the first is that of our torch model
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "mvo_net": mvo_net.LAYOUTS,
    "vivit": vivit.LAYOUTS,
    "timesformer": timesformer.LAYOUTS,
    "c3d": c3d.LAYOUTS,
    "i3d": i3d.LAYOUTS,
    "slowfast": slowfast.LAYOUTS,
    "p3d": p3d.LAYOUTS,
}
