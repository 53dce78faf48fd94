"""Each convolution of the network by itself: forward, input gradient and weight gradient.

    python benchmarks/layers.py --batch 4 --lowering conv2d_cpu,im2col_conv1d --json layers.json

Milliseconds, the median of rounds in which all forms and PyTorch take turns, in one process: both
have the same memory settings. One shape stands for a stage: its second block.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, installed or not

from benchmarks import interleaved

PARTS = ("forward", "input", "weight")


class Layer(NamedTuple):
    """One convolution: kernel ``[kt, k, k, C, F]`` on ``[B, T, H, W, C]``, padded by half of it."""

    name: str
    clip: tuple[int, int, int, int]
    kernel: tuple[int, int, int, int, int]
    stride: int = 1


def layers(frames: int, size: int, width: int) -> list[Layer]:
    """The stem's two convolutions and those of the second block of each stage (paper, Sec. 2)."""
    from mvo_jax.models.r2plus1d import mid_planes

    half = -(-size // 2)
    stem = 45 * width // 64
    found = [
        Layer("stem, spatial", (frames, size, size, 3), (1, 7, 7, 3, stem), 2),
        Layer("stem, temporal", (frames, half, half, stem), (3, 1, 1, stem, width)),
    ]
    for stage in range(1, 5):
        clip = (frames, half, half)
        mid = mid_planes(width, width)
        found += [
            Layer(f"stage {stage}, spatial, {mid}", (*clip, width), (1, 3, 3, width, mid)),
            Layer(f"stage {stage}, temporal, {mid}", (*clip, mid), (3, 1, 1, mid, width)),
        ]
        frames, half, width = -(-frames // 2), -(-half // 2), 2 * width
    return found


def jax_parts(layer: Layer, batch: int, lowering: str) -> list[Callable[[], Any]]:
    """What computes and waits for each of ``PARTS`` in one lowering."""
    import jax

    from mvo_jax.models.ops.lowerings import convolution, half

    stride, padding = (1, layer.stride, layer.stride), half(layer.kernel[:3])

    def forward(x: Any, kernel: Any) -> Any:
        return convolution(x, kernel, stride=stride, padding=padding, lowering=lowering)

    x, kernel, dy = (jax.device_put(value) for value in arrays(layer, batch))
    programs: list[tuple[Any, tuple[Any, ...]]] = [
        (jax.jit(forward), (x, kernel)),
        (jax.jit(lambda x, kernel, dy: jax.vjp(forward, x, kernel)[1](dy)[0]), (x, kernel, dy)),
        (jax.jit(lambda x, kernel, dy: jax.vjp(forward, x, kernel)[1](dy)[1]), (x, kernel, dy)),
    ]
    return [
        lambda program=program, values=values: jax.block_until_ready(program(*values))
        for program, values in programs
    ]


def torch_parts(layer: Layer, batch: int) -> list[Callable[[], Any]]:
    """The same of PyTorch, channels_last_3d."""
    import torch

    x, kernel, dy = (torch.from_numpy(value) for value in arrays(layer, batch))
    # Moving the channels to the front leaves the memory as it is: channels last.
    x, dy = x.permute(0, 4, 1, 2, 3), dy.permute(0, 4, 1, 2, 3)
    kernel = kernel.permute(4, 3, 0, 1, 2).contiguous(memory_format=torch.channels_last_3d)
    stride = [1, layer.stride, layer.stride]  # in time all of them have 1
    padding = [size // 2 for size in layer.kernel[:3]]

    def gradient(which: int) -> Any:
        mask = [which == 0, which == 1, False]
        return torch.ops.aten.convolution_backward(
            dy, x, kernel, None, stride, padding, [1, 1, 1], False, [0, 0, 0], 1, mask
        )[which]

    return [
        lambda: torch.nn.functional.conv3d(x, kernel, None, stride, padding),
        lambda: gradient(0),
        lambda: gradient(1),
    ]


def arrays(layer: Layer, batch: int) -> tuple[Any, Any, Any]:
    """Random float32 input, kernel and gradient of the output."""
    import numpy as np

    rng = np.random.default_rng(0)
    frames, rows, columns, _ = layer.clip
    rows, columns = (-(-n // layer.stride) for n in (rows, columns))
    shapes = (batch, *layer.clip), layer.kernel, (batch, frames, rows, columns, layer.kernel[-1])
    x, kernel, dy = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
    return x, kernel, dy


def measure(
    layer: Layer, batch: int, lowerings: list[str], *, torch: bool, rounds: int
) -> list[dict[str, Any]]:
    """One row a contender, with the median milliseconds of each part.

    A stem's input is the clip, whose gradient nobody needs; it is measured all the same.
    """
    contenders = {f"jax:{name}": jax_parts(layer, batch, name) for name in lowerings}
    if torch:
        contenders["torch"] = torch_parts(layer, batch)
    samples = {name: [[] for _ in PARTS] for name in contenders}
    for round_ in range(rounds + 1):
        for index in range(len(PARTS)):
            for name, parts in contenders.items():
                start = time.perf_counter()
                parts[index]()
                if round_:  # the first one compiles
                    samples[name][index].append(1e3 * (time.perf_counter() - start))
    return [
        {
            "layer": layer.name,
            "clip": layer.clip,
            "kernel": layer.kernel,
            "batch": batch,
            "name": name,
            "ms": dict(zip(PARTS, map(statistics.median, times), strict=True)),
            "samples": times,
        }
        for name, times in samples.items()
    ]


def print_rows(rows: list[dict[str, Any]]) -> None:
    """A line a layer: forward / input gradient / weight gradient of each contender."""
    cells = [
        f"{row['name']} " + " / ".join(f"{ms:.1f}" for ms in row["ms"].values()) for row in rows
    ]
    print(f"{rows[0]['layer']:26}  " + "   ".join(f"{cell:36}" for cell in cells), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=4)
    interleaved.add_contenders(parser)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--frames", type=int, default=interleaved.FULL_SIZE["frames"])
    parser.add_argument("--size", type=int, default=interleaved.FULL_SIZE["size"])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write all figures here")
    args = parser.parse_args(arguments)
    import jax

    from mvo_jax.models.ops.lowerings import choose_lowering

    interleaved.check(args)
    best = choose_lowering(jax.default_backend(), os.environ.get("XLA_FLAGS", ""))
    lowerings = list(dict.fromkeys(best if name == "auto" else name for name in args.lowering))
    if "jax" not in args.impl:
        lowerings = []
    print("milliseconds: forward / input gradient / weight gradient")
    rows: list[dict[str, Any]] = []
    for layer in layers(args.frames, args.size, args.width):
        found = measure(
            layer, args.batch, lowerings, torch="torch" in args.impl, rounds=args.rounds
        )
        print_rows(found)
        rows += found
        if args.json:
            interleaved.write_json(args.json, rows)


if __name__ == "__main__":
    from mvo_jax.cli.huge_pages import restart_with_huge_pages
    from mvo_jax.devices.environment import configure_xla

    restart_with_huge_pages()
    configure_xla(os.environ)  # before JAX is imported
    main()
