"""What the pixels of a DICOM slice say where its headers say nothing: several beats, two places."""

import numpy as np

from mvo_jax.data.importers.dicom_phases import MIN_PHASES

# Of a harmonic over those below: on 35 slices of real cine of one beat it is at most 1, on three
# beats in one 20 and more.
_SEVERAL_BEATS_ENERGY = 5.0
# Shares of the range of a slice's first component between which it must swing for a beat. On the
# same slices one beat swings once, also with noise; two and three beats of uneven length are seen
# as several in 33 of 35.
_SWING = 0.3, 0.7
_SIGNAL = 2.0  # times the energy that noise alone would leave in a component
# What an image is away from the one before it, against the usual, and against the farthest two.
# On those slices at most 2.7 within a beat, at least 3.3 where two slices follow one another; and
# phases next to each other are nearer than any others, unless slices alternate (0.3 of it).
_JUMP, _JUMP_OF_ALL = 3.0, 0.6
_ALTERNATES = 0.6


def count_beats(cine: np.ndarray) -> int:
    """How often the images of a slice, ``[T, H, W]`` in time order, move as a whole; 1 if unknown.

    Even beats are seen by the harmonics of the changes: one beat has most of its energy in the
    first harmonic of the series, three beats in the third and hardly any below. Uneven ones by how
    often the first component of the changes swings up and down.
    """
    if len(cine) < 2 * MIN_PHASES:
        return 1
    few = _few_pixels(cine)
    energy = np.square(np.abs(np.fft.rfft(few, axis=0)[1:])).sum(axis=1)
    for beats in range(2, len(cine) // MIN_PHASES + 1):
        below, own = energy[: beats - 1].max(), energy[beats - 1]
        if own > _SEVERAL_BEATS_ENERGY * below and own > energy.max() / _SEVERAL_BEATS_ENERGY:
            return beats
    return _count_swings(few - few.mean(axis=0))


def _few_pixels(cine: np.ndarray) -> np.ndarray:
    return cine[:, ::2, ::2].reshape(len(cine), -1).astype(np.float32)


def _count_swings(changes: np.ndarray) -> int:
    """How often the first component over time rises, taken as a circle; 1 where it is noise."""
    energies, components = np.linalg.eigh(changes @ changes.T)
    if energies[-1] < _SIGNAL * energies.sum() / len(changes):
        return 1
    course = components[:, -1]
    low, high = np.quantile(course, (0.05, 0.95))
    down, up = (low + share * (high - low) for share in _SWING)
    is_low, rises = False, 0
    for first, value in [*((True, v) for v in course), *((False, v) for v in course)]:
        if value < down:
            is_low = True
        elif value > up:
            rises += is_low and not first
            is_low = False
    return max(rises, 1)


def is_one_place(cine: np.ndarray) -> bool:
    """Whether images, ``[T, H, W]`` by their numbers, may be of one slice where no header says so.

    Slices that follow one another jump where the next begins; slices that alternate are less like
    the next image than like a later one.
    """
    few = _few_pixels(cine)

    def apart(lag: int) -> np.ndarray:
        return np.abs(few[lag:] - few[:-lag]).mean(axis=1)

    steps, others = apart(1), [apart(lag) for lag in range(2, len(few) // 2 + 1)]
    farthest = max(float(one.max()) for one in (steps, *others))
    jumps = steps.max() > _JUMP * np.median(steps) and steps.max() > _JUMP_OF_ALL * farthest
    alternates = any(one.mean() < _ALTERNATES * steps.mean() for one in others)
    return not jumps and not alternates
