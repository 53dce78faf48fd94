"""Each layer of a network by itself: forward, gradient of its input, gradient of its weights.

    python benchmarks/layers.py --batch 4 --lowering conv2d_cpu,im2col_conv1d --json layers.json
    python benchmarks/layers.py --system vivit --batch 2

Milliseconds, the median of rounds in which all forms and PyTorch take turns, in one process: both
have the same memory settings. Of the method and of C3D the convolutions (one shape stands for a
stage of the method: its second block), of the two transformers the linear maps and attentions; an
attention has no weights, its input is query, key and value together.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, installed or not

from benchmarks import interleaved

PARTS = ("forward", "input", "weight")
SYSTEMS = ("mvo_net", "c3d", "vivit", "timesformer")


# Of input, weights (an attention has none) and output.
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class Convolution(NamedTuple):
    """One convolution: kernel ``[kt, k, k, C, F]`` on ``[B, T, H, W, C]``, padded by half of it."""

    name: str
    clip: tuple[int, int, int, int]
    kernel: tuple[int, int, int, int, int]
    stride: int = 1

    def shapes(self, batch: int) -> Shapes:
        """Of input, weights and output."""
        frames, rows, columns, _ = self.clip
        rows, columns = (-(-n // self.stride) for n in (rows, columns))
        return (batch, *self.clip), self.kernel, (batch, frames, rows, columns, self.kernel[-1])


class LinearMap(NamedTuple):
    """One linear map ``[C, F]`` of S tokens a clip, all rows of one matrix as in the networks."""

    name: str
    clip: tuple[int, int]
    kernel: tuple[int, int]

    def shapes(self, batch: int) -> Shapes:
        """Of input, weights and output."""
        rows = batch * self.clip[0]
        return (rows, self.clip[1]), self.kernel, (rows, self.kernel[1])


class Attention(NamedTuple):
    """Self-attention within each of N sequences, ``[B, N, S, 3 * heads * D]`` fused."""

    name: str
    clip: tuple[int, int, int]
    heads: int

    def shapes(self, batch: int) -> Shapes:
        """Of input, weights (none) and output."""
        return (batch, *self.clip), (), (batch, *self.clip[:2], self.clip[2] // 3)


Layer = Convolution | LinearMap | Attention
PARTS_OF = {Convolution: 3, LinearMap: 3, Attention: 2}  # an attention has no weights


def layers(system: str, frames: int, size: int, width: int) -> Sequence[Layer]:
    """The layers of a network on clips ``[frames, size, size, 3]``.

    The width is of the first stage, of the transformers a token's over 8.
    """
    if system == "mvo_net":
        return _r2plus1d_layers(frames, size, width)
    if system == "c3d":
        return _c3d_layers(frames, size, width)
    from mvo_jax.models.registry import published_config

    # Widths as fields of the model; 512 of both as published.
    config = published_config(system)
    hidden, mlp, heads = 8 * width, config["mlp_dim"] * width // 64, config["num_heads"]
    fused = 3 * heads * config["head_dim"] * width // 64
    patches = (size // config["patch_size"]) ** 2
    in_space, in_time = (frames, patches + 1), (1, frames + 1)
    gated = system == "timesformer"
    if gated:  # both attentions see all tokens, and a CLS token beside each sequence
        in_space, in_time = (frames, patches + 1), (patches, frames + 1)
    tokens = frames * patches + 1 if gated else frames * (patches + 1)
    return [
        LinearMap(f"query, key, value, {fused}", (tokens, hidden), (hidden, fused)),
        *(
            Attention(f"attention in {axis}, {length}", (number, length, fused), heads)
            for axis, (number, length) in {"space": in_space, "time": in_time}.items()
        ),
        LinearMap(f"attention, out, {hidden}", (tokens, fused // 3), (fused // 3, hidden)),
        LinearMap(f"MLP, in, {mlp * (1 + gated)}", (tokens, hidden), (hidden, mlp * (1 + gated))),
        LinearMap(f"MLP, out, {hidden}", (tokens, mlp), (mlp, hidden)),
    ]


def _r2plus1d_layers(frames: int, size: int, width: int) -> list[Layer]:
    """The stem's two convolutions and those of the second block of each stage (paper, Sec. 2)."""
    from mvo_jax.models.r2plus1d import mid_planes

    half = -(-size // 2)
    stem = 45 * width // 64
    found: list[Layer] = [
        Convolution("stem, spatial", (frames, size, size, 3), (1, 7, 7, 3, stem), 2),
        Convolution("stem, temporal", (frames, half, half, stem), (3, 1, 1, stem, width)),
    ]
    for stage in range(1, 5):
        clip = (frames, half, half)
        mid = mid_planes(width, width)
        found += [
            Convolution(f"stage {stage}, spatial, {mid}", (*clip, width), (1, 3, 3, width, mid)),
            Convolution(f"stage {stage}, temporal, {mid}", (*clip, mid), (3, 1, 1, mid, width)),
        ]
        frames, half, width = -(-frames // 2), -(-half // 2), 2 * width
    return found


def _c3d_layers(frames: int, size: int, width: int) -> list[Layer]:
    from mvo_jax.models.baselines.c3d import STAGES

    found: list[Layer] = []
    channels = 3
    for names, factor, window, _ in STAGES:
        for name in names:
            clip, kernel = (frames, size, size, channels), (3, 3, 3, channels, factor * width)
            found.append(Convolution(f"{name}, {channels} to {kernel[-1]}", clip, kernel))
            channels = kernel[-1]
        frames, size = frames // window[0], size // window[1]
    return found


def arrays(layer: Layer, batch: int) -> tuple[Any, Any, Any]:
    """Random float32 input, weights and gradient of the output."""
    import numpy as np

    rng = np.random.default_rng(0)
    x, kernel, dy = (rng.standard_normal(shape, np.float32) for shape in layer.shapes(batch))
    return x, kernel, dy


def jax_parts(layer: Layer, batch: int, lowering: str) -> list[Callable[[], Any]]:
    """What computes and waits for each of ``PARTS``; ``lowering`` is of convolutions."""
    import jax

    from mvo_jax.models.ops.attention import attend, split_heads
    from mvo_jax.models.ops.lowerings import convolution, half

    def forward(x: Any, kernel: Any) -> Any:
        if isinstance(layer, LinearMap):
            return x @ kernel
        if isinstance(layer, Attention):
            return attend(*split_heads(x, layer.heads))
        stride, padding = (1, layer.stride, layer.stride), half(layer.kernel[:3])
        return convolution(x, kernel, stride=stride, padding=padding, lowering=lowering)

    x, kernel, dy = (jax.device_put(value) for value in arrays(layer, batch))
    programs: list[tuple[Any, tuple[Any, ...]]] = [
        (jax.jit(forward), (x, kernel)),
        (jax.jit(lambda x, kernel, dy: jax.vjp(forward, x, kernel)[1](dy)[0]), (x, kernel, dy)),
        (jax.jit(lambda x, kernel, dy: jax.vjp(forward, x, kernel)[1](dy)[1]), (x, kernel, dy)),
    ]
    return [
        lambda program=program, values=values: jax.block_until_ready(program(*values))
        for program, values in programs[: PARTS_OF[type(layer)]]
    ]


def torch_parts(layer: Layer, batch: int) -> list[Callable[[], Any]]:
    """The same of PyTorch; clips channels_last_3d, attention as the public implementations."""
    import torch

    x, kernel, dy = (torch.from_numpy(value) for value in arrays(layer, batch))
    if isinstance(layer, LinearMap):
        return [lambda: x @ kernel, lambda: dy @ kernel.T, lambda: x.T @ dy]
    if isinstance(layer, Attention):
        return _torch_attention(layer, x, dy)
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


def _torch_attention(layer: Attention, x: Any, dy: Any) -> list[Callable[[], Any]]:
    import torch

    def forward(x: Any) -> Any:
        heads = x.unflatten(-1, (3 * layer.heads, -1)).transpose(-2, -3)
        query, key, value = heads.chunk(3, dim=-3)
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        return (weights @ value).transpose(-2, -3).flatten(-2)

    def backward() -> Any:  # with the forward pass, as JAX's
        traced = x.detach().requires_grad_()
        return torch.autograd.grad(forward(traced), traced, dy)[0]

    def without_gradient() -> Any:
        with torch.no_grad():
            return forward(x)

    return [without_gradient, backward]


def measure(
    layer: Layer, batch: int, lowerings: list[str], *, torch: bool, rounds: int
) -> list[dict[str, Any]]:
    """One row a contender, with the median milliseconds of each part.

    A stem's input is the clip, whose gradient nobody needs; it is measured all the same.
    """
    title = "jax:{}"
    if not isinstance(layer, Convolution):
        title, lowerings = "jax", lowerings[:1]  # all the same
    contenders = {title.format(name): jax_parts(layer, batch, name) for name in lowerings}
    if torch:
        contenders["torch"] = torch_parts(layer, batch)
    samples = {name: [[] for _ in parts] for name, parts in contenders.items()}
    for round_ in range(rounds + 1):
        for index in range(PARTS_OF[type(layer)]):
            for name, parts in contenders.items():
                start = time.perf_counter()
                parts[index]()
                if round_:  # the first one compiles
                    samples[name][index].append(1e3 * (time.perf_counter() - start))
    return [
        {
            "layer": layer.name,
            "clip": layer.clip,
            "shapes": layer.shapes(batch),
            "batch": batch,
            "name": name,
            "ms": dict(zip(PARTS, map(statistics.median, times), strict=False)),
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
    parser = interleaved.base_parser(__doc__, SYSTEMS)
    parser.set_defaults(width=64)
    parser.add_argument("--batch", type=int, default=4)
    interleaved.add_contenders(parser)
    parser.add_argument("--rounds", type=int, default=9)
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
    for layer in layers(args.system, args.frames, args.size, args.width):
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
