"""Masks of an LGE by their kind of file: NIfTI, NRRD and DICOM segmentations.

NRRD holds label maps, or as ``.seg.nrrd`` of 3D Slicer named segments, also in layers:
http://teem.sourceforge.net/nrrd/format.html; of segmentations the Slicer manual, "Segmentations".
"""

import dataclasses
import io
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mvo_jax.data.importers.cine import (
    Options,
    check_size,
    map_mask,
    note_of_values,
    printable,
    reading,
)
from mvo_jax.data.importers.cvi42 import is_workspace
from mvo_jax.data.importers.segments import join_segments, segment_values
from mvo_jax.data.importers.volume import Volume, read_volume, stored_turn, stored_volume
from mvo_jax.data.importers.walk import fault

# As patterns see them, in small letters; ``.dcm`` is a mask only by the rest of its name.
SUFFIX = re.compile(r"\.(nii(\.gz)?|(seg\.)?nrrd|dcm)$", re.IGNORECASE)
_NRRD = re.compile(r"\.n(rrd|hdr)$", re.IGNORECASE)
# Signs by which the axes of a space of NRRD become right, anterior, superior.
_TO_RAS = {
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
}  # fmt: skip
_UNIT_MM = {"": 1.0, "mm": 1.0, "millimeter": 1.0, "cm": 10.0, "m": 1000.0, "um": 1e-3}
_MAX_LAYERS = 256


def read_mask(path: Path, options: Options) -> Volume:
    """A 3-D mask in the project's values, ``data`` ``[1, Z, H, W]``; its kind goes by the name.

    Raises:
        UserError: it cannot be read, or has values without a meaning.
    """
    if is_workspace(path):
        remedy = "give the DICOM images beside it, or export the mask as NIfTI or NRRD"
        raise fault(path, " holds contours on DICOM images", remedy)
    if _NRRD.search(path.name):
        return _read_nrrd(path, options.mask_values)
    if path.suffix.lower() == ".dcm":
        from mvo_jax.data.importers.dicom_seg import read_seg  # needs pydicom

        return read_seg(path, options.mask_values)
    volume = read_volume(path, axes=3)
    labels = map_mask(path, volume.data, options.mask_values)
    notes = (*volume.notes, *note_of_values(path, [labels], options.mask_values))
    return dataclasses.replace(volume, data=labels, notes=notes)


def _read_nrrd(path: Path, mask_values: Mapping[int, int]) -> Volume:
    """A mask whose segments are told apart by their names, where ``mask_values`` says no other."""
    import nrrd

    with reading(path, " as NRRD"):
        with path.open("rb") as file:
            header = nrrd.read_header(file)
            stored = _read_values(path, header, file)
        space = _space_axes(path, header)
        affine, oriented = _affine(path, header, space)
        stored = np.moveaxis(stored, space, (-3, -2, -1))  # a list of layers comes first
        layers = stored.reshape(-1, *stored.shape[-3:])
        segments = _segments(header, has_list=stored.ndim > 3)
    turn, notes = stored_turn(path, layers.shape[1:], affine, oriented=oriented)
    if segments:
        names = {number: name for number, (name, *_) in segments.items()}
        values = segment_values(path, names, mask_values)
        parts = []
        for number, (_, layer, label) in segments.items():
            if layer >= len(layers):
                says = f": segment {number} lies in layer {layer} of {len(layers)}"
                raise fault(path, says, "save the segmentation again")
            parts.append((layers[layer] == label, values[number]))
        mask = join_segments(parts, layers.shape[1:])
        unnamed = set(np.unique(layers).tolist()) - {0, *(label for *_, label in segments.values())}
        if unnamed:
            says = f" has the values {sorted(unnamed)[:8]}, which are no segment of its header"
            raise fault(path, says, "save the segmentation again")
    elif len(layers) > 1:
        remedy = "save it as a label map of three axes, or from 3D Slicer as .seg.nrrd"
        raise fault(path, f" has {len(layers)} layers and no segment in its header", remedy)
    else:
        mask = map_mask(path, layers[0], mask_values)
        notes = (*notes, *note_of_values(path, [mask], mask_values))
    return stored_volume(path, mask[..., None], affine, turn, oriented=oriented, notes=notes)


def _read_values(path: Path, header: dict[str, Any], file: BinaryIO) -> np.ndarray:
    """The array in the order of the header's axes."""
    import nrrd

    if {"data file", "datafile"} & header.keys():
        raise fault(path, " has its data in another file", "save it as one .nrrd file")
    sizes = [int(n) for n in header["sizes"]]
    if any(n < 1 for n in sizes):
        raise fault(path, f" claims {sizes} voxels", "write the file again")
    check_size(path, math.prod(sizes), 8)
    if header["encoding"] in ("raw", "ascii", "ASCII", "text", "txt"):
        return nrrd.read_data(header, file)
    if header["encoding"] not in ("gzip", "gz"):
        says = f" has the encoding {header['encoding']}"
        raise fault(path, says, "save it with gzip, or uncompressed")
    # Unpacked here, because the library would go on as long as something comes, as of a bomb.
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
    unpacked = inflate.decompress(file.read(), math.prod(sizes) * 8 + 1)
    return nrrd.read_data({**header, "encoding": "raw"}, io.BytesIO(unpacked))


def _space_axes(path: Path, header: Mapping[str, Any]) -> list[int]:
    """Which three axes are those of space; beside them there may be a list of layers."""
    sizes, directions = header["sizes"], header.get("space directions")
    if directions is None:
        kinds = header.get("kinds", ["domain"] * len(sizes))
        space = [i for i, kind in enumerate(kinds) if kind in ("domain", "space", "none", "???")]
    else:
        rows = [np.asarray(row, float) if row is not None else None for row in directions]
        space = [i for i, r in enumerate(rows) if r is not None and np.isfinite(r).all()]
    layers = int(np.prod([n for i, n in enumerate(sizes) if i not in space] or [1]))
    if len(space) != 3 or len(sizes) > 4 or layers > _MAX_LAYERS:
        says = f" has the axes {'x'.join(map(str, sizes))}, {len(space)} of them in space"
        raise fault(path, says, "save a mask of three axes, or a .seg.nrrd of 3D Slicer")
    return space


def _affine(path: Path, header: Mapping[str, Any], space: list[int]) -> tuple[np.ndarray, bool]:
    """(Stored axes of space to RAS mm, whether the file states where they lie)."""
    out = np.eye(4)
    directions, name = header.get("space directions"), str(header.get("space", "")).lower()
    if directions is None:
        spacings = np.asarray(header.get("spacings", [1.0] * len(header["sizes"])), float)[space]
        out[:3, :3] = np.diag(np.where(np.isfinite(spacings), spacings, 1.0))
        return out, False
    units = {str(unit).strip('" ') for unit in header.get("space units", [""])}
    if len(units) > 1 or not units <= _UNIT_MM.keys():
        raise fault(path, f" has the units {sorted(units)}", "save it in mm")
    out[:3, :3] = np.array([directions[i] for i in space], float).T * _UNIT_MM[units.pop()]
    if name in ("", "scanner-xyz"):
        return out, False
    if name not in _TO_RAS:
        raise fault(path, f" has the space {printable(name)!r}", "save it in LPS or RAS")
    if header.get("space origin") is None:
        raise fault(path, " has no space origin", "save it again, with where it lies")
    out[:3, 3] = np.asarray(header["space origin"], float)
    out[:3] *= np.array(_TO_RAS[name], float)[:, None]
    return out, True


def _segments(header: Mapping[str, Any], *, has_list: bool) -> dict[int, tuple[str, int, int]]:
    """(Name, layer, label value) of each by its label value, or where these repeat by its place.

    Places count from 1. Files before Slicer 4.11 have a layer a segment.
    """
    found = []
    for i in range(_MAX_LAYERS):
        name = header.get(f"Segment{i}_Name", header.get(f"Segment{i}_ID"))
        if name is None:
            break
        layer = int(header.get(f"Segment{i}_Layer", i if has_list else 0))
        found.append((str(name), layer, int(header.get(f"Segment{i}_LabelValue", 1))))
    labels = [label for *_, label in found]
    numbers = labels if len(set(labels)) == len(labels) else range(1, len(found) + 1)
    return dict(zip(numbers, found, strict=True))
