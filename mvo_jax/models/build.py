"""From a model's config to the Flax module."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mvo_jax.errors import UserError
from mvo_jax.models.layers import LOWERINGS, choose_lowering
from mvo_jax.models.mvo_net import VARIANTS, MVONet

MODELS: dict[str, type[nn.Module]] = {"mvo_net": MVONet}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


def build_model(
    config: Mapping[str, Any], *, backend: str, xla_flags: str = "", axis_name: str | None = None
) -> nn.Module:
    """Build the model a config describes.

    Args:
        config: the ``model`` part of an experiment config: ``name`` and the fields of that module;
            ``lowering`` may be 'auto'; ``dtype`` is the compute dtype by name.
        backend: 'cpu', 'gpu' or 'tpu', for ``lowering='auto'``.
        xla_flags: XLA_FLAGS in force, for ``lowering='auto'``.
        axis_name: device axis of the batch; None on one device.

    Returns:
        The module; parameters are float32 unless ``dtype`` is float64.

    Raises:
        UserError: an unknown name, dtype, lowering, variant or field.
    """
    fields = dict(config)
    name, dtype = fields.pop("name"), fields.pop("dtype")
    _choose("name", name, MODELS)
    _choose("dtype", dtype, DTYPES)
    if fields["lowering"] == "auto":
        fields["lowering"] = choose_lowering(backend, xla_flags)
    _choose("lowering", fields["lowering"], LOWERINGS)
    if "variant" in fields:
        _choose("variant", fields["variant"], VARIANTS)
    if "stage_sizes" in fields:
        fields["stage_sizes"] = tuple(fields["stage_sizes"])
    param_dtype = jnp.float64 if dtype == "float64" else jnp.float32
    try:
        return MODELS[name](
            **fields, axis_name=axis_name, dtype=DTYPES[dtype], param_dtype=param_dtype
        )
    except TypeError as error:
        raise UserError(
            f"config.model does not fit the model {name!r}: {error}",
            "start from a config of this repository and change its values only",
        ) from error


def _choose(key: str, value: str, options: Mapping[str, Any]) -> None:
    if value not in options:
        raise UserError(
            f"config.model.{key} is {value!r}, which does not exist",
            f"choose from {', '.join(options)}",
        )
