"""What a compiled TPU program moves, read from its text.

XLA's own 'bytes accessed' also counts what stays in the chip's fast memory and both ends of every
copy into it. Here only what is in the large memory (HBM) counts, in its padded layout, and a copy
counts once.
"""

import collections
import math
import re
from typing import NamedTuple

_ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_ARRAY = re.compile(rf"\b({'|'.join(_ITEM_BYTES)})\[([\d,]*)\](?:\{{([^}}]*)\}})?")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?(%[\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_NO_TRAFFIC = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "custom-call"}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Traffic(NamedTuple):
    """What one execution moves.

    Attributes:
        hbm_bytes: read from and written to the large memory.
        collectives: kind -> (number of operations, bytes of their operands on one chip).
        cycles: the compiler's estimate; 0 where it gives none.
    """

    hbm_bytes: int
    collectives: dict[str, tuple[int, int]]
    cycles: int


def array_bytes(kind: str, shape: str, layout: str) -> int:
    """Bytes of an array, filled up to whole tiles.

    Args:
        kind: element type, e.g. 'bf16'.
        shape: e.g. '16,30,32,32,64'.
        layout: e.g. '4,0,3,2,1:T(8,128)(2,1)': axes from the fastest on, then the tile.
    """
    sizes = [int(size) for size in shape.split(",") if size]
    tile = re.search(r"T\(([\d,]+)\)", layout)
    if tile and sizes:
        order = [int(axis) for axis in layout.partition(":")[0].split(",") if axis]
        for axis, block in zip(order, reversed(tile[1].split(",")), strict=False):
            sizes[axis] = -(-sizes[axis] // int(block)) * int(block)
    return math.prod(sizes) * _ITEM_BYTES[kind]


def _arrays(types: str) -> list[tuple[int, bool]]:
    """(bytes, whether in HBM) of each array in a type or tuple of types."""
    return [
        (array_bytes(kind, shape, layout), not re.search(r"S\([1-9]\)", layout))
        for kind, shape, layout in _ARRAY.findall(types)
    ]


def read(program: str) -> Traffic:
    """Traffic of a program, from ``compiled.as_text()``.

    Raises:
        ValueError: the text has no entry computation.
    """
    start = program.find("\nENTRY ")
    if start < 0:
        raise ValueError("no entry computation in the program's text")
    types: dict[str, str] = {}
    total = 0
    collectives: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for line in program[start + 1 :].splitlines()[1:]:
        found = _INSTRUCTION.match(line)
        if not found:
            continue
        name, result, operation, rest = found.groups()
        types[name] = result
        operands = [types.get(o, "") for o in re.findall(r"%[\w.\-]+", rest.split(")")[0])]
        kind = operation.removesuffix("-start")
        if kind in _COLLECTIVES:
            collectives[kind][0] += 1
            collectives[kind][1] += sum(size for o in operands for size, _ in _arrays(o))
        if operation in _NO_TRAFFIC or operation.endswith("-done"):
            continue
        if operation == "copy-start":  # (target, source, context)
            total += _arrays(result)[0][0]
        elif operation == "slice-start":  # ((source), target, context)
            total += _arrays(result)[1][0]
        else:
            parts = [part for text in (result, *operands) for part in _arrays(text)]
            total += sum(size for size, in_hbm in parts if in_hbm)
    cycles = re.findall(r'"estimated_cycles":"(\d+)"', program[start:])
    return Traffic(total, {k: (v[0], v[1]) for k, v in collectives.items()}, sum(map(int, cycles)))
