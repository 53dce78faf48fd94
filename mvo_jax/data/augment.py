"""Normalisation and augmentation of cine clips, jitted and keyed per example (paper section 3.2).

The paper names random cropping, flipping, rotation and photometric distortion without values; the
released code has the transforms but not their settings. Values are in the configs.
"""

import jax
import jax.numpy as jnp

from mvo_jax.settings import Augmentation

Array = jax.Array


def normalise(video: Array) -> Array:
    """Scale ``[T, H, W, C]`` of any dtype to zero mean and unit variance; if constant, to zero.

    The result is float32; float64 where JAX computes in 64 bits.
    """
    video = video.astype(jnp.result_type(float))
    centred = video - video.mean()
    # Half a grey level: only a constant clip is below it, and it must not be blown up into noise.
    return centred / jnp.maximum(jnp.sqrt(jnp.square(centred).mean()), 0.5)


def _warp(
    video: Array, lge_mask: Array, angle: Array, shift: Array, flip: Array
) -> tuple[Array, Array]:
    """Rotate about the centre (counter-clockwise as displayed), flip and shift clip and mask.

    The clip is sampled bilinearly, with edge pixels repeated outside; the mask at the nearest
    pixel, with background outside. ``shift`` and ``flip`` (+1 or -1) are of rows and columns.
    """
    height, width = lge_mask.shape
    frames, channels = video.shape[0], video.shape[-1]
    row = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2 - shift[0]
    col = jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2 - shift[1]
    row, col = row * flip[0], col * flip[1]
    # Output pixels look back along the inverse rotation.
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    source_row = cos * row + sin * col + (height - 1) / 2
    source_col = cos * col - sin * row + (width - 1) / 2

    nearest_row = jnp.round(source_row).astype(jnp.int32)
    nearest_col = jnp.round(source_col).astype(jnp.int32)
    inside = (
        (nearest_row >= 0) & (nearest_row < height) & (nearest_col >= 0) & (nearest_col < width)
    )
    nearest = lge_mask[nearest_row.clip(0, height - 1), nearest_col.clip(0, width - 1)]
    mask = jnp.where(inside, nearest, jnp.zeros((), lge_mask.dtype))

    source_row, source_col = source_row.clip(0, height - 1), source_col.clip(0, width - 1)
    top = jnp.floor(source_row).astype(jnp.int32)
    left = jnp.floor(source_col).astype(jnp.int32)
    down, right = source_row - top, source_col - left
    below, beside = (top + 1).clip(0, height - 1), (left + 1).clip(0, width - 1)
    # Pixel-major: one gathered row holds all frames of a pixel, so the gather runs along memory.
    pixels = jnp.moveaxis(video, 0, 2).reshape(height * width, -1)

    def tap(rows: Array, cols: Array, weight: Array) -> Array:
        return pixels[rows * width + cols] * weight[..., None]

    out = (
        tap(top, left, (1 - down) * (1 - right))
        + tap(top, beside, (1 - down) * right)
        + tap(below, left, down * (1 - right))
        + tap(below, beside, down * right)
    )
    return jnp.moveaxis(out.reshape(height, width, frames, channels), 2, 0), mask


def augment(
    key: Array, video: Array, lge_mask: Array, settings: Augmentation
) -> tuple[Array, Array]:
    """Augment one clip and its mask; geometry moves both, photometry is constant over the clip.

    The label of the case is not touched: a crop that loses the MVO does not change the diagnosis.
    uint8 ``[T, H, W, C]`` becomes float32 grey levels, not yet normalised (float64 where JAX
    computes in 64 bits); the mask remains uint8 ``[H, W]``.
    """
    keys = jax.random.split(key, 7)

    def symmetric(key: Array, bound: float, shape: tuple[int, ...] = ()) -> Array:
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    video = video.astype(jnp.result_type(float))
    if settings.time_shift:
        video = jnp.roll(video, jax.random.randint(keys[0], (), 0, video.shape[0]), axis=0)
    if settings.max_shift or settings.flip or settings.max_rotation_deg:
        angle = jnp.deg2rad(symmetric(keys[1], settings.max_rotation_deg))
        shift = jnp.round(symmetric(keys[2], settings.max_shift + 0.5, (2,)))
        shift = shift.clip(-settings.max_shift, settings.max_shift)
        flip = jnp.ones(2)
        if settings.flip:
            flip = jnp.where(jax.random.bernoulli(keys[3], shape=(2,)), 1.0, -1.0)
        video, lge_mask = _warp(video, lge_mask, angle, shift, flip)
    if settings.gamma:
        gamma = jnp.exp(symmetric(keys[4], settings.gamma))
        video = 255 * jnp.power(video / 255, gamma)
    if settings.contrast:
        mean = video.mean()
        video = mean + (video - mean) * (1 + symmetric(keys[5], settings.contrast))
    if settings.brightness:
        video = video + 255 * symmetric(keys[6], settings.brightness)
    if settings.contrast or settings.brightness:
        # Without saturation the normalisation that follows would undo both.
        video = video.clip(0, 255)
    return video, lge_mask
