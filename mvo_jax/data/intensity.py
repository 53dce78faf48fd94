"""Grey values of any scanner to 8 bits: the one place that knows the grey window."""

import numpy as np

# Of all pixels in all frames of the crop. A crop holds the heart and what lies within 3 cm of it;
# the brightest half per cent there is fat at the coil, flow artefacts and spikes.
LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5


def intensity_range(clip: np.ndarray) -> tuple[float, float]:
    """Grey values that become 0 and 255: the percentiles 0.5 and 99.5 of a finite clip.

    Where they coincide (a nearly empty image), minimum and maximum.
    """
    low, high = np.percentile(clip, [LOW_PERCENTILE, HIGH_PERCENTILE])
    if high <= low:
        low, high = clip.min(), clip.max()
    return float(low), float(high)


def to_uint8(clip: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map ``[low, high]`` linearly to 0 to 255, round and saturate; one map for the whole clip.

    Raises:
        ValueError: the range is empty.
    """
    if not high > low:
        raise ValueError(f"an empty intensity range, {low} to {high}")
    return np.rint(np.clip((clip - low) * (255.0 / (high - low)), 0.0, 255.0)).astype(np.uint8)


def displayed(image: np.ndarray) -> np.ndarray:
    """An image by its own grey window, for people: uint8 of the same shape, black if constant."""
    low, high = intensity_range(image)
    return to_uint8(image, low, max(high, low + 1e-6))
