"""How a network is computed: set once for a model and handed to each of its layers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mvo_jax.models.ops.lowerings import LOWERINGS

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Numerics:
    """What the layers of a model share; its parameters do not depend on it, but for their dtype."""

    lowering: str | None = "conv2d"  # key of LOWERINGS; None for a network without convolutions
    # Device axis of the batch, over which batch statistics are joined and dropout counts its
    # examples; None on one device.
    axis_name: str | None = None
    dtype: Any = jnp.float32  # to compute in; statistics of a normalisation are float32 at least
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        if self.lowering is not None and self.lowering not in LOWERINGS:
            raise ValueError(
                f"lowering {self.lowering!r} is unknown; choose from {list(LOWERINGS)}"
            )

    @property
    def dtypes(self) -> dict[str, Any]:
        """The two dtypes as Flax's own layers take them."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    @property
    def exact(self) -> "Numerics":
        """The same in float32 at least, for logits: a bfloat16 sigmoid has steps of 0.4 %."""
        return dataclasses.replace(self, dtype=jnp.promote_types(jnp.float32, self.dtype))
