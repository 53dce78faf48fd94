"""Pixels of DICOM images, as the scanner meant them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import check_size, printable, reading
from mvo_jax.data.importers.dicom_headers import Image, read_file
from mvo_jax.errors import UserError

_NAN = np.float32("nan")


def read_pixels(slices: Sequence[Sequence[Image]]) -> list[np.ndarray]:
    """Grey values of slices, each ``[T, H, W]``, after rescaling and with black at the low end.

    Padding (PixelPaddingValue, PixelPaddingRangeLimit) is no image: it gets the lowest value of
    the slice, so that it moves no grey window.

    Args:
        slices: images of each slice in time order.

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
    """Check that the greys of the images compare: one scale for all, or each with its own.

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
                raise UserError(
                    f"{printable(path)} has {name}, which no scanner writes and is not read",
                    "export the images as the scanner wrote them, in whole numbers",
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
    """Check that bits above BitsStored are empty, or a sign, or what the header calls an overlay.

    They are cut off: values that are larger than BitsStored says would come out as other greys.

    Raises:
        UserError: nothing says what they are.
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
    """Slope and intercept of the frames of an enhanced file, float32 ``[N or 1, 2]``, else None.

    Raises:
        UserError: some frames have them and others not.
    """
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
