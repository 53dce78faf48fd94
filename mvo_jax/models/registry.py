"""From a model's config to the Flax module, and the list of models.

A model is a Flax module whose fields, with the published values as their defaults, are what a
config may set. It is called as ``model(video, train=..., with_mask=...)`` and returns a
``ModelOutput``. A line in ``MODELS`` adds one. What it may have besides:

* ``numerics: Numerics``, or fields named as parts of it (``dtype``, ``axis_name``, ...): filled by
  whoever builds the model. The config then has ``dtype``, and ``lowering`` where the default of
  ``numerics`` has one.
* ``CHOICES``, a ``ClassVar`` that maps fields to the names they take.
"""

import dataclasses
import difflib
import math
import os
import pkgutil
import sys
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mvo_jax.errors import UserError
from mvo_jax.models.ops.lowerings import LOWERINGS, choose_lowering
from mvo_jax.models.ops.numerics import Numerics

# A class, or where it is: a module is imported when its model is asked for.
MODELS: dict[str, type[nn.Module] | str] = {
    "mvo_net": "mvo_jax.models.mvo_net:MVONet",
    "timesformer": "mvo_jax.models.baselines.timesformer:TimeSformer",
    "vivit": "mvo_jax.models.baselines.vivit:ViViT",
    "c3d": "mvo_jax.models.baselines.c3d:C3D",
    "i3d": "mvo_jax.models.baselines.i3d:I3D",
    "slowfast": "mvo_jax.models.baselines.slowfast:SlowFast",
    "p3d": "mvo_jax.models.baselines.p3d:P3D",
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}
# Set by whoever builds the model or by Flax itself, not by a config.
_NOT_CONFIGURED = {"numerics", "parent", "name", *Numerics.__dataclass_fields__}


def list_models() -> list[str]:
    """Names that ``create_model`` and ``config.model.name`` take."""
    return sorted(MODELS)


def model_class(name: str) -> Any:
    """The Flax module of a model, by one of ``list_models()``; UserError for another name."""
    _choose("name", name, MODELS)
    found = MODELS[name]
    return pkgutil.resolve_name(found) if isinstance(found, str) else found


def create_model(name: str, **fields: Any) -> nn.Module:
    """An uninitialised Flax module: the published size, with some of its fields changed.

    Call it as ``model.init(key, video, train=False)`` and
    ``model.apply(variables, video, train=False, with_mask=True)`` with normalised
    ``video [B, T, H, W, C]``.

    Args:
        name: one of ``list_models()``.
        fields: as a config's ``model`` part has them, ``dtype`` by name.

    Raises:
        UserError: an unknown name or field.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    config = published_config(name) | fields
    return build_model(config, backend=jax.default_backend(), xla_flags=flags)


def published_config(name: str) -> dict[str, Any]:
    """The ``model`` part of a config for the published size; UserError for an unknown name.

    ``name``, the defaults of all fields that have one and, where the model has them, ``lowering``
    'auto' and ``dtype`` 'float32'.
    """
    return {k: v for k, v in _settings(name).items() if v is not dataclasses.MISSING}


def _settings(name: str) -> dict[str, Any]:
    """What a config sets of a module: ``published_config``, and MISSING without a default."""
    fields = {field.name: field for field in dataclasses.fields(model_class(name))}
    plain = (bool, int, float, str, tuple, list, type(None), type(dataclasses.MISSING))
    settings = {"name": name} | {
        key: field.default
        for key, field in fields.items()
        if key not in _NOT_CONFIGURED
        and isinstance(field.default, plain)
        and field.default_factory is dataclasses.MISSING
    }
    numerics = fields["numerics"].default if "numerics" in fields else None
    if "lowering" in fields or getattr(numerics, "lowering", None):
        settings["lowering"] = "auto"
    if "dtype" in fields or numerics:
        settings["dtype"] = "float32"
    return settings


def build_model(
    config: Mapping[str, Any], *, backend: str, xla_flags: str = "", axis_name: str | None = None
) -> nn.Module:
    """Build the model a config describes.

    Args:
        config: the ``model`` part of an experiment config: ``name`` and every field of that
            module, so that a run's folder says all of it; ``dtype`` is the compute dtype by name
            (parameters are float32 unless it is float64).
        backend: 'cpu', 'gpu' or 'tpu'; with the XLA_FLAGS in force for ``lowering='auto'``.
        xla_flags: see above.
        axis_name: device axis of the batch; None on one device.

    Raises:
        UserError: an unknown name, dtype, lowering or choice, or a field too many or missing.
    """
    if "name" not in config:
        raise UserError("config.model has no name", f"choose from {', '.join(MODELS)}")
    name: str = config["name"]
    known = _settings(name)
    for field, value in config.items():
        if field not in known:
            near = difflib.get_close_matches(field, known, 1)
            raise UserError(
                f"config.model.{field} is no field of the model {name!r}",
                f"did you mean {near[0]}?" if near else f"its fields are {', '.join(known)}",
            )
        if value is None and known[field] not in (None, dataclasses.MISSING):
            raise UserError(
                f"config.model.{field} is None", f"set it; the published model has {known[field]!r}"
            )
        _check_numbers(field, value)
    for field, published in known.items():
        if field not in config:
            default = published is not dataclasses.MISSING
            raise UserError(
                f"config.model has no {field}, which the model {name!r} needs",
                "set it; "
                + (f"the published model has {published!r}" if default else "it has no default"),
            )
    module = model_class(name)
    fields = {key: _hashable(config[key]) for key in known if key != "name"}
    lowering, dtype = fields.pop("lowering", None), fields.pop("dtype", "float32")
    if lowering == "auto":
        lowering = choose_lowering(backend, xla_flags)
    _choose("dtype", dtype, DTYPES)
    if "lowering" in config:
        _choose("lowering", lowering, LOWERINGS)
    for key, options in getattr(module, "CHOICES", {}).items():
        _choose(key, fields[key], options)
    param_dtype = jnp.float64 if dtype == "float64" else jnp.float32
    numerics = Numerics(lowering, axis_name, DTYPES[dtype], param_dtype)
    for key, value in {"numerics": numerics, **vars(numerics)}.items():
        if key in module.__dataclass_fields__:
            fields[key] = value
    return module(**fields)


def dense_model(config: Mapping[str, Any]) -> nn.Module:
    """``build_model`` in the form that multiplies fewest zeros, for counting its operations."""
    plain = {**config, "lowering": "conv3d"} if "lowering" in config else config
    return build_model(plain, backend="cpu")


def _hashable(value: Any) -> Any:
    """Lists, which JSON makes of tuples, as tuples again."""
    return tuple(_hashable(item) for item in value) if isinstance(value, list | tuple) else value


def _check_numbers(field: str, value: Any) -> None:
    """Sizes count something and dropouts are shares: Flax takes any number without a word."""
    most = math.nextafter(1, 0) if "dropout" in field else sys.maxsize
    several = isinstance(value, list | tuple)
    for number in value if several else (value,):
        if several and number is None:  # --config.model.stage_sizes=None
            raise UserError(f"config.model.{field} is {value!r}", "give numbers, as in (3,4)")
        if isinstance(number, int | float) and not 0 <= number <= most:  # NaN is not either
            raise UserError(
                f"config.model.{field} is {value!r}",
                "choose 0 or more, and less than 1" if most < 1 else "choose 0 or more",
            )


def _choose(key: str, value: Any, options: Collection[str]) -> None:
    if value not in options:
        near = difflib.get_close_matches(str(value), options, 1)
        raise UserError(
            f"config.model.{key} is {value!r}, which does not exist",
            f"choose from {', '.join(options)}" + (f"; did you mean {near[0]}?" if near else ""),
        )
