"""Pixels of DICOM images, as the scanner meant them, and how they move where no header says it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import check_size, printable, reading
from mvo_jax.data.importers.dicom_headers import MIN_PHASES, Image, read_file
from mvo_jax.errors import UserError

_NAN = np.float32("nan")
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


def read_pixels(slices: Sequence[Sequence[Image]]) -> list[np.ndarray]:
    """Grey values of slices, each ``[T, H, W]``, after rescaling and with black at the low end.

    Padding (PixelPaddingValue, PixelPaddingRangeLimit) is no image: it gets the lowest value of
    the slice, so that it moves no grey window.

    Raises:
        UserError: too large, damaged, compressed in a way no installed decoder reads, or nothing
            but padding.
    """
    images = [image for one in slices for image in one]
    check_size(images[0].path.parent, sum(i.shape[0] * i.shape[1] for i in images), 4)
    files: dict[Path, np.ndarray] = {}

    def pixels(image: Image) -> np.ndarray:
        if image.frame is None:
            return _pixels(image.path).reshape(image.shape)
        if image.path not in files:
            stored = _pixels(image.path)  # a file of one frame has two axes
            files[image.path] = stored.reshape(-1, *stored.shape[-2:])
        return files[image.path][image.frame]

    return [_without_padding(np.stack([pixels(i) for i in one]), one[0].path) for one in slices]


def check_greys(images: Sequence[Image]) -> None:
    """Check that the greys of the images compare.

    Raises:
        UserError: some are inverted, or some state a RescaleSlope and the others none.
    """
    inverted = sum(image.photometric == "MONOCHROME1" for image in images)
    if 0 < inverted < len(images):
        raise UserError(
            f"{inverted} of its {len(images)} images are MONOCHROME1 (low values are white) and "
            "the others are not",
            "export the series again",
        )
    stated = [image.rescale for image in images if image.rescale != (None, None)]
    if 0 < len(stated) < len(images) and set(stated) - {(1.0, 0.0), (1.0, None), (None, 0.0)}:
        raise UserError(
            f"{len(stated)} of its {len(images)} images have a RescaleSlope or RescaleIntercept "
            "and the others have none: how their greys compare is not sure",
            "export the series again, with the slope in all images or in none",
        )


def _without_padding(cine: np.ndarray, path: Path) -> np.ndarray:
    """A slice whose padding, NaN as ``_pixels`` gives it, is as dark as its darkest pixel."""
    padding = np.isnan(cine) if cine.dtype.kind == "f" else np.zeros(1, bool)
    if not padding.any():
        return cine
    if padding.all():
        raise UserError(
            f"{printable(path)}: every pixel of its slice is padding (PixelPaddingValue)",
            "export the images again; if they are sound, take PixelPaddingValue out of the headers",
        )
    return np.where(padding, np.nanmin(cine), cine)


def same_pixels(one: Path, other: Path) -> bool:
    """Whether two files hold the same pixels; files that cannot be decoded only if stored so."""
    first, second = (read_file(path).get("PixelData") for path in (one, other))
    if first == second:
        return True
    try:
        return np.array_equal(_pixels(one), _pixels(other), equal_nan=True)
    except UserError:
        return False


def _pixels(path: Path) -> np.ndarray:
    """Grey values of a file; where it says that they are padding, NaN."""
    from pydicom.pixels import apply_modality_lut, get_decoder

    with reading(path, " as DICOM"):
        data = read_file(path)
        syntax = data.file_meta.TransferSyntaxUID
        if not syntax.is_transfer_syntax:
            raise ValueError(f"the transfer syntax {syntax} is none")
    what = f": compressed pixels ({syntax.name})" if syntax.is_compressed else ": its pixels"
    with reading(path, what):
        if syntax.is_compressed and not get_decoder(syntax).is_available:
            raise UserError(
                f"{printable(path)} is compressed ({syntax.name}) and no decoder for it is "
                "installed",
                "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or decompress the "
                "files (gdcmconv --raw)",
            )
        for name in ("FloatPixelData", "DoubleFloatPixelData"):
            if name in data:
                cause = f"{printable(path)} has {name}, which no scanner writes and is not read"
                raise UserError(
                    cause, "export the images as the scanner wrote them, in whole numbers"
                )
        high, stored = data.get("HighBit"), int(data.BitsStored)
        if high is not None and int(high) != stored - 1 and not syntax.is_compressed:
            raise UserError(
                f"{printable(path)} has {stored} bits a pixel below bit {high} (HighBit): where "
                "they lie is not sure",
                f"export the images again; if they are the low bits, HighBit is {stored - 1}",
            )
        raw = data.pixel_array
        if not syntax.is_compressed:
            _check_spare_bits(path, data)
        padding = _padding(raw, data)
        if data.get("PhotometricInterpretation", "") == "MONOCHROME1":  # low values are white
            raw = np.float32(2 ** int(data.BitsStored) - 1) - raw.astype(np.float32)
        steps = _frame_steps(path, data)
        if steps is None:
            values = apply_modality_lut(raw, data)
        else:
            slope, intercept = steps.T[..., None, None]
            values = raw.reshape(-1, *raw.shape[-2:]) * slope + intercept
        values = values.astype(np.float32) if values.dtype == np.float64 else values
        if values.dtype.kind == "f":  # of a damaged slope; infinite pixels are refused, as NaN was
            values = np.where(np.isnan(values), np.float32("inf"), values)
        return values if padding is None else np.where(padding.reshape(values.shape), _NAN, values)


def _check_spare_bits(path: Path, data: Any) -> None:
    """Refuse bits above BitsStored that are no sign, nor an overlay by the header.

    They are cut off: values that are larger than BitsStored says would come out as other greys.
    """
    stored = int(data.BitsStored)
    if data.BitsAllocated != 16 or stored >= 16:
        return
    order = "<" if data.file_meta.TransferSyntaxUID.is_little_endian else ">"
    spare = np.frombuffer(data.PixelData, f"{order}u2") >> stored
    sign = 2 ** (16 - stored) - 1 if data.PixelRepresentation else 0
    overlays = (data.get((0x6000 + 2 * i, 0x0102)) for i in range(16))
    if ((spare != 0) & (spare != sign)).any() and not any(o and o.value for o in overlays):
        raise UserError(
            f"{printable(path)} has pixels larger than its {stored} bits (BitsStored) can hold, "
            "and no overlay that says so",
            "export the images again; if their values are sound, BitsStored and HighBit are wrong",
        )


def _padding(raw: np.ndarray, data: Any) -> np.ndarray | None:
    """Which stored values are padding; None where none is."""
    value = data.get("PixelPaddingValue")
    if value is None or raw.dtype.kind not in "iu":
        return None
    limit = data.get("PixelPaddingRangeLimit")
    # Written signed or unsigned by the representation of the pixels, and by some in spite of it.
    ends = np.array([value, value if limit is None else limit], np.int64).astype(raw.dtype)
    padding = (raw >= ends.min()) & (raw <= ends.max())
    return padding if padding.any() else None


def _frame_steps(path: Path, data: Any) -> np.ndarray | None:
    """Slope and intercept of the frames of an enhanced file, float32 ``[N or 1, 2]``, else None."""
    sequence, names = "PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept")
    shared = (data.get("SharedFunctionalGroupsSequence") or [{}])[0]
    groups = data.get("PerFrameFunctionalGroupsSequence") or []
    if not any(sequence in group for group in groups):
        if sequence not in shared:
            return None
        groups = [shared]
    steps = []
    for group in groups:
        own = group if sequence in group else shared
        steps.append([own[sequence][0].get(name) if sequence in own else None for name in names])
    lacking = sum(None in step for step in steps)
    if lacking:
        raise UserError(
            f"{printable(path)}: {lacking} of its {len(steps)} frames have no RescaleSlope or no "
            "RescaleIntercept, so how their greys compare is not sure",
            "export the series again with the slope and the intercept of every frame",
        )
    return np.array(steps, np.float32)


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
