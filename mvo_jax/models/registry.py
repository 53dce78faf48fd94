"""From a model's config to the Flax module."""

import dataclasses
import difflib
import os
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mvo_jax.errors import UserError
from mvo_jax.models.baselines.c3d import C3D
from mvo_jax.models.baselines.i3d import I3D
from mvo_jax.models.baselines.p3d import P3D
from mvo_jax.models.baselines.slowfast import SlowFast
from mvo_jax.models.baselines.timesformer import FORMS as TIMESFORMER_FORMS
from mvo_jax.models.baselines.timesformer import TimeSformer
from mvo_jax.models.baselines.vivit import ViViT
from mvo_jax.models.mvo_net import VARIANTS, MVONet
from mvo_jax.models.ops.lowerings import LOWERINGS, choose_lowering

# A model is called as ``model(video, train=..., with_mask=...)`` and returns a ``ModelOutput``;
# its fields are what a config may set, their defaults the published size.
MODELS: dict[str, type[nn.Module]] = {
    "mvo_net": MVONet,
    "timesformer": TimeSformer,
    "vivit": ViViT,
    "c3d": C3D,
    "i3d": I3D,
    "slowfast": SlowFast,
    "p3d": P3D,
}
# Fields that take one of a few names, beside ``dtype`` and ``lowering``.
CHOICES: dict[str, dict[str, Collection[str]]] = {
    "mvo_net": {"variant": VARIANTS},
    "timesformer": {"form": TIMESFORMER_FORMS},
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}
# Set by whoever builds the model, or by Flax itself; not by a config.
_NOT_CONFIGURED = {"axis_name", "param_dtype", "parent", "name"}


def list_models() -> list[str]:
    """Names that ``create_model`` and ``config.model.name`` take."""
    return sorted(MODELS)


def create_model(name: str, **fields: Any) -> nn.Module:
    """An uninitialised Flax module: the published size, with some of its fields changed.

    Call it as ``model.init(key, video, train=False)`` and
    ``model.apply(variables, video, train=False, with_mask=True)`` with normalised
    ``video [B, T, H, W, C]``.

    Args:
        name: one of ``list_models()``.
        fields: fields of the module, and ``dtype`` by name, as a config's ``model`` part has them.

    Raises:
        UserError: an unknown name or field.
    """
    _choose("name", name, MODELS)
    config = {**published_config(name), **fields}
    return build_model(
        config, backend=jax.default_backend(), xla_flags=os.environ.get("XLA_FLAGS", "")
    )


def published_config(name: str) -> dict[str, Any]:
    """The ``model`` part of a config for the published size: the defaults of the module's fields.

    Args:
        name: key of ``MODELS``.

    Returns:
        ``name``, ``dtype`` 'float32', ``lowering`` 'auto' where the model has one, and all fields.
    """
    fields: dict[str, Any] = {
        field.name: field.default
        for field in dataclasses.fields(MODELS[name])
        if field.name not in _NOT_CONFIGURED
    }
    if "lowering" in fields:
        fields["lowering"] = "auto"
    return {"name": name, **fields, "dtype": "float32"}


def build_model(
    config: Mapping[str, Any], *, backend: str, xla_flags: str = "", axis_name: str | None = None
) -> nn.Module:
    """Build the model a config describes.

    Args:
        config: the ``model`` part of an experiment config: ``name`` and every field of that
            module, so that a run's folder says all of it; ``lowering`` may be 'auto'; ``dtype`` is
            the compute dtype by name.
        backend: 'cpu', 'gpu' or 'tpu', for ``lowering='auto'``.
        xla_flags: XLA_FLAGS in force, for ``lowering='auto'``.
        axis_name: device axis of the batch; None on one device.

    Returns:
        The module; parameters are float32 unless ``dtype`` is float64.

    Raises:
        UserError: an unknown name, dtype, lowering or variant, a field that the model does not
            have, or one that is missing.
    """
    if "name" not in config:
        raise UserError("config.model has no name", f"choose from {', '.join(MODELS)}")
    name: str = config["name"]
    _choose("name", name, MODELS)
    known = published_config(name)
    for field in config:
        if field not in known:
            near = difflib.get_close_matches(field, known, 1)
            raise UserError(
                f"config.model.{field} is no field of the model {name!r}",
                f"did you mean {near[0]}?" if near else f"its fields are {', '.join(known)}",
            )
    for field in known:
        if field not in config:
            raise UserError(
                f"config.model has no {field}, which the model {name!r} needs",
                f"set it; the published model has {known[field]!r}",
            )
    fields = {key: _hashable(value) for key, value in config.items() if key != "name"}
    dtype = fields.pop("dtype")
    _choose("dtype", dtype, DTYPES)
    if "lowering" in fields:
        if fields["lowering"] == "auto":
            fields["lowering"] = choose_lowering(backend, xla_flags)
        _choose("lowering", fields["lowering"], LOWERINGS)
    for key, options in CHOICES.get(name, {}).items():
        _choose(key, fields[key], options)
    param_dtype = jnp.float64 if dtype == "float64" else jnp.float32
    return MODELS[name](**fields, axis_name=axis_name, dtype=DTYPES[dtype], param_dtype=param_dtype)


def _hashable(value: Any) -> Any:
    """Lists, which JSON makes of tuples, as tuples again."""
    return tuple(_hashable(item) for item in value) if isinstance(value, list | tuple) else value


def _choose(key: str, value: Any, options: Collection[str]) -> None:
    if value not in options:
        near = difflib.get_close_matches(str(value), options, 1)
        raise UserError(
            f"config.model.{key} is {value!r}, which does not exist",
            f"choose from {', '.join(options)}" + (f"; did you mean {near[0]}?" if near else ""),
        )


def dense_model(config: Mapping[str, Any]) -> nn.Module:
    """The model in the form that multiplies fewest zeros, for counting its operations.

    Args:
        config: see ``build_model``.

    Raises:
        UserError: see ``build_model``.
    """
    plain = {**config, "lowering": "conv3d"} if "lowering" in config else config
    return build_model(plain, backend="cpu")
