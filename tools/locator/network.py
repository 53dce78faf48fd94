"""The locator's network in Flax, as it is trained; mvo_jax/data/locator/network.py runs it."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mvo_jax.data.locator.network import CHANNELS, blocks, pixels

_EPSILON = 1e-5


class UNet(nn.Module):
    """A U-Net whose finest level works on blocks of 2x2 pixels, so that one core can train it."""

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """Logit of the cavity.

        Args:
            image: ``[N, H, W]`` from ``normalised``; sides are multiples of 16.
            train: use and update the statistics of the batch.

        Returns:
            ``[N, H, W]``.
        """

        def layer(name: str, x: jax.Array, channels: int, size: int = 3) -> jax.Array:
            x = nn.Conv(channels, (size, size), use_bias=False, name=name)(x)
            norm = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.98,
                epsilon=_EPSILON,
                name=f"{name}_norm",
            )
            return nn.relu(norm(x))

        c = CHANNELS
        x = blocks(image[..., None])
        x = layer("down0b", layer("down0a", x, c[0]), c[0])
        skips = [x]
        for i in (1, 2, 3):
            x = blocks(x) if i == 1 else nn.max_pool(x, (2, 2), (2, 2))
            x = layer(f"down{i}b", layer(f"down{i}a", x, c[i]), c[i])
            skips.append(x)
        for i in (2, 1, 0):
            x = layer(f"across{i}", x, c[i], 1)
            x = x.repeat(2, axis=1).repeat(2, axis=2) + skips[i]
            x = layer(f"up{i}", x, c[i])
        return pixels(nn.Conv(4, (3, 3), name="head")(x))[..., 0]


def fold_normalisation(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Kernels and biases that do what convolutions and batch normalisations do one after the other.

    Returns:
        'NAME/kernel' and 'NAME/bias' -> float32, for both forward passes.
    """
    params = flatten_dict(jax.device_get(variables["params"]), sep="/")
    stats = flatten_dict(jax.device_get(variables["batch_stats"]), sep="/")
    out = {}
    for name in sorted({key.split("/")[0] for key in params if key.endswith("/kernel")}):
        kernel = np.asarray(params[f"{name}/kernel"], np.float64)
        if f"{name}_norm/scale" in params:
            norm = f"{name}_norm"
            deviation = np.sqrt(np.asarray(stats[f"{norm}/var"], np.float64) + _EPSILON)
            scale = params[f"{norm}/scale"] / deviation
            kernel = kernel * scale
            bias = params[f"{norm}/bias"] - stats[f"{norm}/mean"] * scale
        else:
            bias = params[f"{name}/bias"]
        out[f"{name}/kernel"] = kernel.astype(np.float32)
        out[f"{name}/bias"] = np.asarray(bias, np.float32)
    return out
