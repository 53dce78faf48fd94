"""The forward pass of the locator's network, in numpy.

Workers of ``prepare`` start in a second because they import no JAX. ``tools/locator/network.py``
has the same network in Flax, and how it is trained; a test holds the two together.
"""

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np
import safetensors.numpy
from threadpoolctl import ThreadpoolController

CHANNELS = (16, 48, 96, 128)  # of the four levels
SPACING_MM = 3.6
SIDE = 96  # pixels of a training image: 346 mm
_AT_ONCE = 4  # images: a wrong spacing in a header makes large ones
MULTIPLE = 16  # pixels of the image in one of the coarsest level

Weights = Mapping[str, np.ndarray]

# Libraries are looked for once: that takes longer than a frame.
_threads = functools.cache(ThreadpoolController)


@functools.cache
def shipped_weights() -> Weights:
    """The weights of the package, float32."""
    content = resources.files("mvo_jax.data.locator").joinpath("weights.safetensors").read_bytes()
    arrays = safetensors.numpy.load(content)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def normalised(frames: np.ndarray) -> np.ndarray:
    """Grey values ``[T, H, W]`` of one slice, not padded, to float32 in [0, 1): x / (x + mean).

    Bright fat beside a coil, or one bright pixel, hardly changes what becomes of the others.
    """
    x = frames.astype(np.float32)
    x = np.maximum(x - np.quantile(x[:, ::2, ::2], 0.01), 0)
    mean = float(x.mean())
    return x / (x + mean) if mean > 0 else x


def cavity_probability(weights: Weights, images: np.ndarray) -> np.ndarray:
    """Probability that a pixel is blood of the left ventricle, float32 ``[N, H, W]``.

    Images come from ``normalised`` at ``SPACING_MM``, padded with zeros to multiples of 16 pixels.
    """
    # On one thread: the products are small, and threads that wait for each other on a busy machine
    # took ten times as long as one.
    with _threads().limit(limits=1, user_api="blas"):
        firsts = range(0, len(images), _AT_ONCE)
        return np.concatenate([_forward(weights, images[i : i + _AT_ONCE]) for i in firsts])


def _forward(weights: Weights, images: np.ndarray) -> np.ndarray:
    def layer(name: str, x: np.ndarray) -> np.ndarray:
        out = _convolution(x, weights[f"{name}/kernel"], weights[f"{name}/bias"])
        return np.maximum(out, 0, out=out)

    x = layer("down0b", layer("down0a", blocks(images[..., None])))
    skips = [x]
    for i in (1, 2, 3):
        x = blocks(x) if i == 1 else _largest(x)
        x = layer(f"down{i}b", layer(f"down{i}a", x))
        skips.append(x)
    for i in (2, 1, 0):
        x = layer(f"across{i}", x).repeat(2, axis=1).repeat(2, axis=2)
        x += skips[i]
        x = layer(f"up{i}", x)
    logit = pixels(_convolution(x, weights["head/kernel"], weights["head/bias"]))[..., 0]
    return 1.0 / (1.0 + np.exp(-np.clip(logit, -60.0, 60.0)))


def _convolution(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Same-size convolution of ``[N, H, W, C]`` with an odd square kernel, one image at a time.

    The columns of one image stay in the cache between their writing and the product.
    """
    n, h, w, c = x.shape
    size, out_channels = kernel.shape[0], kernel.shape[-1]
    matrix = kernel.reshape(-1, out_channels)
    if size == 1:
        return (x.reshape(-1, c) @ matrix + bias).reshape(n, h, w, out_channels)
    edge = size // 2
    padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    columns = np.empty((h, w, size, size, c), np.float32)
    out = np.empty((n, h * w, out_channels), np.float32)
    for image, result in zip(padded, out, strict=True):
        for i in range(size):
            for j in range(size):
                columns[:, :, i, j] = image[i : i + h, j : j + w]
        np.matmul(columns.reshape(h * w, -1), matrix, out=result)
    out += bias
    return out.reshape(n, h, w, out_channels)


def blocks(x: Any) -> Any:
    """2x2 pixels become channels, of NumPy or JAX: ``[N, H, W, C]`` to ``[N, H/2, W/2, 4C]``."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h // 2, w // 2, 4 * c)


def pixels(x: Any) -> Any:
    """The inverse of ``blocks``."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, 2 * h, 2 * w, c // 4)


def _largest(x: np.ndarray) -> np.ndarray:
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))
