"""Pixels of DICOM images, as the scanner meant them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvo_jax.data.importers.cine import check_size, printable, reading
from mvo_jax.data.importers.dicom_headers import Image, read_file
from mvo_jax.errors import UserError


def read_pixels(slices: Sequence[Sequence[Image]]) -> list[np.ndarray]:
    """Grey values of slices, each ``[T, H, W]``, after rescaling and with black at the low end.

    Args:
        slices: images of each slice in time order.

    Raises:
        UserError: too large, damaged, or compressed in a way no installed decoder reads.
    """
    images = [image for one in slices for image in one]
    check_size(images[0].path.parent, sum(i.shape[0] * i.shape[1] for i in images), 4)
    files: dict[Path, np.ndarray] = {}
    out = []
    for one in slices:
        frames = []
        for image in one:
            if image.frame is None:
                frames.append(_pixels(image.path).reshape(image.shape))
                continue
            if image.path not in files:
                stored = _pixels(image.path)  # a file of one frame has two axes
                files[image.path] = stored.reshape(-1, *stored.shape[-2:])
            frames.append(files[image.path][image.frame])
        out.append(np.stack(frames))
    return out


def same_pixels(one: Path, other: Path) -> bool:
    """Whether two files hold the same pixels; files that cannot be decoded only if stored so."""
    first, second = (read_file(path).get("PixelData") for path in (one, other))
    if first == second:
        return True
    try:
        return np.array_equal(_pixels(one), _pixels(other))
    except UserError:
        return False


def _pixels(path: Path) -> np.ndarray:
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
        high, stored = data.get("HighBit"), int(data.BitsStored)
        if high is not None and int(high) != stored - 1 and not syntax.is_compressed:
            raise UserError(
                f"{printable(path)} has {stored} bits a pixel below bit {high} (HighBit): where "
                "they lie is not sure",
                f"export the images again; if they are the low bits, HighBit is {stored - 1}",
            )
        raw = data.pixel_array
        if data.get("PhotometricInterpretation", "") == "MONOCHROME1":  # low values are white
            raw = np.float32(2 ** int(data.BitsStored) - 1) - raw.astype(np.float32)
        steps = _frame_steps(data)
        if steps is not None:
            slope, intercept = (step.reshape(-1, 1, 1) for step in steps.T)
            return raw.reshape(-1, *raw.shape[-2:]) * slope + intercept
        values = apply_modality_lut(raw, data)
        return values.astype(np.float32) if values.dtype == np.float64 else values


def _frame_steps(data: Any) -> np.ndarray | None:
    """Slope and intercept of the frames of an enhanced file, float32 ``[N or 1, 2]``, else None."""
    sequence = "PixelValueTransformationSequence"
    shared = (data.get("SharedFunctionalGroupsSequence") or [{}])[0]
    groups = data.get("PerFrameFunctionalGroupsSequence") or []
    own = [sequence in group for group in groups]
    if any(own):
        if not all(own) and sequence not in shared:
            raise ValueError("some frames have a RescaleSlope and others have none")
        steps = [(group if sequence in group else shared)[sequence][0] for group in groups]
    elif sequence in shared:
        steps = [shared[sequence][0]]
    else:
        return None
    return np.array([(one.RescaleSlope, one.RescaleIntercept) for one in steps], np.float32)
