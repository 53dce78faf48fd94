"""Whether a MATLAB v5 to v7 file can be what it says, before a reader believes it.

Readers allocate what the dimensions claim: one changed byte in a file without compression, and they
ask for terabytes or crash. Compressed variables carry a checksum; of them only the size is read.
"""

import math
import mmap
import struct
import zlib
from pathlib import Path

_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _OBJECT, _CHAR, _DOUBLE, _UINT64 = 1, 2, 3, 4, 6, 15
_NUMBERS = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13}  # kinds of elements
_TEXT = {1, 2, 4, 16, 17, 18}
_COMPLEX = 0x800  # flag of a variable
_DEPTH = 32
_TAG = 8  # bytes: kind and size


def claimed_bytes(path: Path) -> int:
    """Bytes that all variables unpack to, by what the file says.

    Raises:
        ValueError: no MAT-file of version 5, or claims that its own size denies.
    """
    total, at = 0, 128
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[126:128] not in (b"IM", b"MI"):
            raise ValueError("no MAT-file of version 5 or 7")
        order = "<" if data[126:128] == b"IM" else ">"
        while at + _TAG <= len(data):
            kind, size = struct.unpack_from(f"{order}II", data, at)
            at += _TAG
            claimed = size
            if kind == _COMPRESSED:
                inner = zlib.decompressobj().decompress(data[at : at + min(size, 4096)], _TAG)
                _, claimed = struct.unpack(f"{order}II", inner)
            total += claimed
            if kind == _MATRIX and at + size <= len(data):  # else it is too large, or cut off
                _check_matrix(data, at, at + size, order, 0)
            at += size
    return total


def _element(data: mmap.mmap, start: int, end: int, order: str) -> tuple[int, int, int, int]:
    """(kind, place of the data, size, place of the next element)."""
    if start + _TAG > end:
        raise ValueError(f"an element at byte {start} lies outside its variable")
    kind, size = struct.unpack_from(f"{order}II", data, start)
    if small := kind >> 16:  # up to four bytes, kept in the tag itself
        if small > 4:
            raise ValueError(f"an element at byte {start} has an impossible size")
        return kind & 0xFFFF, start + 4, small, start + _TAG
    if start + _TAG + size > end:
        raise ValueError(f"an element at byte {start} is larger than its variable")
    return kind, start + _TAG, size, start + _TAG + (size + 7) // 8 * 8


def _check_matrix(data: mmap.mmap, start: int, end: int, order: str, depth: int) -> None:
    """Check that the values that the dimensions claim can be there, also in what is nested."""
    if start == end:  # how an empty field may be written
        return
    if depth > _DEPTH:
        raise ValueError("variables are nested too deeply")
    _, at, size, place = _element(data, start, end, order)
    if size < 8:
        raise ValueError(f"a variable at byte {start} has no type")
    (flags,) = struct.unpack_from(f"{order}i", data, at)
    of_class = flags & 0xFF
    _, at, size, place = _element(data, place, end, order)
    dimensions = struct.unpack_from(f"{order}{size // 4}i", data, at)
    if len(dimensions) < 2 or min(dimensions) < 0:
        raise ValueError(f"a variable at byte {start} has dimensions {dimensions[:8]}")
    count = math.prod(dimensions)
    _, _, _, place = _element(data, place, end, order)  # its name
    if of_class == _CHAR or _DOUBLE <= of_class <= _UINT64:
        for _ in range(1 + bool(flags & _COMPLEX)):
            kind, _, size, place = _element(data, place, end, order)
            if kind not in (_TEXT if of_class == _CHAR else _NUMBERS):
                raise ValueError(f"a variable at byte {start} holds values of an unknown kind")
            if count > size:  # a value takes a byte at least
                raise ValueError(f"a variable at byte {start} claims {count:,} values")
        return
    if of_class == _OBJECT:
        _, _, _, place = _element(data, place, end, order)
    if of_class in (_STRUCT, _OBJECT):
        _, at, size, place = _element(data, place, end, order)
        length = struct.unpack_from(f"{order}{size // 4}i", data, at)
        _, _, size, place = _element(data, place, end, order)
        if len(length) != 1 or length[0] < 1:
            raise ValueError(f"a structure at byte {start} has no field names")
        count *= size // length[0]
    elif of_class != _CELL:
        return
    if count * _TAG > end - place:
        claim = f"claims {count:,} parts in {end - place} bytes"
        raise ValueError(f"a variable at byte {start} {claim}")
    for _ in range(count):
        kind, at, size, place = _element(data, place, end, order)
        if kind != _MATRIX:
            raise ValueError(f"a part before byte {place} is no variable")
        _check_matrix(data, at, at + size, order, depth + 1)
