"""What a compiled TPU program moves, read from its text.

XLA's own 'bytes accessed' also counts what stays in the chip's fast memory and both ends of every
copy into it. Here only what is in the large memory (HBM) counts, in its padded layout, and a copy
counts once.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_ARRAY = re.compile(rf"\b({'|'.join(_ITEM_BYTES)})\[([\d,]*)\](?:\{{([^}}]*)\}})?")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?(%[\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
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


class _Operation(NamedTuple):
    """One instruction of a program: what it moves, and where in the network it comes from."""

    kind: str
    source: str
    hbm_bytes: int
    operand_bytes: int
    cycles: int


def _operations(program: str) -> Iterator[_Operation]:
    start = program.find("\nENTRY ")
    if start < 0:
        raise ValueError("no entry computation in the program's text")
    types: dict[str, str] = {}
    for line in program[start + 1 :].splitlines()[1:]:
        found = _INSTRUCTION.match(line)
        if not found:
            continue
        name, result, operation, rest = found.groups()
        types[name] = result
        operands = [types.get(o, "") for o in re.findall(r"%[\w.\-]+", rest.split(")")[0])]
        if operation in _NO_TRAFFIC or operation.endswith("-done"):
            moved = 0
        elif operation == "copy-start":  # (target, source, context)
            moved = _arrays(result)[0][0]
        elif operation == "slice-start":  # ((source), target, context)
            moved = _arrays(result)[1][0]
        else:
            parts = [part for text in (result, *operands) for part in _arrays(text)]
            moved = sum(size for size, in_hbm in parts if in_hbm)
        source, cycles = re.search(r'op_name="([^"]*)"', line), _CYCLES.search(line)
        yield _Operation(
            operation.removesuffix("-start"),
            source[1] if source else "",
            moved,
            sum(size for o in operands for size, _ in _arrays(o)),
            int(cycles[1]) if cycles else 0,
        )


def read(program: str) -> Traffic:
    """Traffic of a program, from ``compiled.as_text()``.

    Raises:
        ValueError: the text has no entry computation.
    """
    operations = list(_operations(program))
    collectives: dict[str, tuple[int, int]] = {}
    for operation in operations:
        if operation.kind in _COLLECTIVES:
            count, size = collectives.get(operation.kind, (0, 0))
            collectives[operation.kind] = count + 1, size + operation.operand_bytes
    return Traffic(
        sum(operation.hbm_bytes for operation in operations),
        collectives,
        sum(operation.cycles for operation in operations),
    )


def by_layer(program: str, network: str) -> dict[str, tuple[int, int]]:
    """Bytes through the large memory and estimated cycles of each part of a network.

    Returns:
        'forward trunk/layer1_block1' and so on, the largest first; 'copies' and the rest of what
        names no part under its kind.
    """
    parts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for operation in _operations(program):
        found = re.search(rf"\b{network}\)*/(.*)", operation.source)
        if found:
            # 'I3D.features' is a method of the network, no part of it.
            path = [part for part in found[1].split("/") if "." not in part]
            way = "backward" if "transpose(" in operation.source else "forward"
            part = f"{way} {'/'.join(path[: 2 if len(path) > 2 else 1])}"
        else:
            part = "copies" if operation.kind in ("copy", "slice") else operation.kind
        parts[part][0] += operation.hbm_bytes
        parts[part][1] += operation.cycles
    ordered = sorted(parts.items(), key=lambda item: -item[1][0])
    return {part: (moved, cycles) for part, (moved, cycles) in ordered if moved or cycles}
