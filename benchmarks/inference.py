"""Inference of a full-size network, JAX beside PyTorch and, with --onnx, onnxruntime.

JAX runs the shipped evaluation step: uint8 clips that lie in device memory, gathered, normalised
and classified. Torch runs ``eval()`` under ``inference_mode`` on the same uint8 clips with the same
normalisation, in channels_last_3d, with autocast for bfloat16. Neither side folds BatchNorm into
the convolutions by hand: XLA and torch.compile may fuse it, eager torch calls it as a layer.

    python benchmarks/inference.py --batch 2,4 --rounds 10 --json result.json
    python benchmarks/inference.py --batch 1 --part mask --onnx
    python benchmarks/inference.py --part classify --batch 1,16,128 --dtype bfloat16 \
        --torch-mode eager,compile --steps 20                    # a GPU

Needs jax and flax, and torch to compare with; for --onnx what ``export`` needs.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, installed or not

from benchmarks import interleaved, networks
from benchmarks.interleaved import Config

# What is asked of the network -> whether its mask branch runs.
PARTS = {"classify": False, "mask": True}


def inference_gflop(config: Config) -> float:
    """GFLOP of one clip, dense."""
    return networks.forward_gflop(config, train=False, with_mask=PARTS[config["part"]])


def grey_clips(config: Config) -> Any:
    """Random uint8 clips, the same for every contender."""
    import numpy as np

    shape = (config["batch"], *networks.clip_shape(config))
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def jax_contender(config: Config) -> interleaved.Contender:
    """The shipped evaluation step."""
    import jax
    import numpy as np

    from mvo_jax.training.step import make_eval_step

    model = networks.jax_model(config)

    def init(key: Any) -> Any:
        clip = jax.numpy.zeros((1, *networks.clip_shape(config)))
        return model.init(key, clip, train=False)

    variables = jax.jit(init)(jax.random.key(0))
    data = jax.device_put({"video": grey_clips(config)})
    indices = jax.device_put(np.arange(config["batch"], dtype=np.int32))
    start = time.perf_counter()
    jitted = jax.jit(make_eval_step(model, with_mask=PARTS[config["part"]]))
    step = jitted.lower(variables, data, indices).compile()
    about = networks.about_jax(step, time.perf_counter() - start)

    def run(steps: int) -> float:
        result: dict[str, Any] = {}
        for _ in range(steps):
            result = step(variables, data, indices)
        for value in result.values():
            value.block_until_ready()
        return float(result["probability"].mean())

    return about | {"lowering": networks.lowering(model)}, run


def torch_contender(config: Config) -> interleaved.Contender:
    """The same network in torch, ``eval()`` and ``inference_mode``."""
    import torch

    device, with_mask = networks.torch_device(), PARTS[config["part"]]
    model = networks.torch_model(config, device).eval()
    video = torch.from_numpy(grey_clips(config)).to(device)
    autocast = config["dtype"] == "bfloat16"

    def predict() -> tuple[torch.Tensor, torch.Tensor | None]:
        clips = video.float()
        centred = clips - clips.mean((1, 2, 3, 4), keepdim=True)
        deviation = centred.square().mean((1, 2, 3, 4), keepdim=True).sqrt()
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            output = model(centred / deviation.clamp(min=0.5), with_mask=with_mask)
        return torch.sigmoid(output.logits.float()), output.coarse_mask

    mode = networks.TORCH_MODES[config["mode"]]
    compiled = predict if mode is None else torch.compile(predict, mode=mode)

    def run(steps: int) -> float:
        probability = None
        with torch.inference_mode():
            for _ in range(steps):
                probability, _ = compiled()
            assert probability is not None
            return probability.mean().item()

    return networks.about_torch(device), run


def onnx_contender(config: Config) -> interleaved.Contender:
    """The graph of a bundle, run by onnxruntime on the CPU; normalisation is part of it."""
    import onnxruntime
    import torch

    from mvo_jax.interop.onnx_graph import WholeModel, onnx_bytes

    whole = WholeModel(networks.torch_model(config, torch.device("cpu"))).eval()
    session = onnxruntime.InferenceSession(
        onnx_bytes(whole, networks.clip_shape(config)), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    names = [name for name in names if PARTS[config["part"]] or name != "coarse_mask"]
    video = grey_clips(config)

    def run(steps: int) -> float:
        result: Any = None
        for _ in range(steps):
            result = session.run(names, {"video": video})
        return float(result[names.index("probability")].mean())

    return {"onnxruntime": onnxruntime.__version__, "device": "cpu"}, run


CONTENDERS = {"jax": jax_contender, "torch": torch_contender, "onnx": onnx_contender}


def make_contender(config: Config) -> interleaved.Contender:
    """The contender of a config: its ``run`` predicts the batch, and returns its probability."""
    return CONTENDERS[config["impl"]](config)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = interleaved.argument_parser(__doc__, networks.SYSTEMS)
    parser.add_argument(
        "--part", choices=PARTS, default=None, help="classify, or mask as well; both by default"
    )
    parser.add_argument(
        "--onnx", action="store_true", help="the graph of a bundle too, by onnxruntime, in float32"
    )
    args = parser.parse_args(arguments)
    if args.worker:
        interleaved.work(json.loads(args.worker), make_contender)
        return
    interleaved.check(args)
    shared = {name: getattr(args, name) for name in interleaved.SHARED}
    own = {
        "jax": [{"option": name, "lowering": name} for name in args.lowering],
        "torch": [{"option": mode, "mode": mode} for mode in args.torch_mode],
        "onnx": [{"option": "onnxruntime"}],
    }
    parts = [args.part] if args.part else list(PARTS)
    groups = []
    for dtype in args.dtype:
        for batch in args.batch:
            for part in parts:
                configs = []
                onnx = ["onnx"] if args.onnx and dtype == "float32" else []
                for impl in [*args.impl, *onnx]:
                    for options in own[impl]:
                        config = {"impl": impl, "batch": batch, "dtype": dtype, **shared, **options}
                        config |= {"part": part, "option": f"{part}:{options['option']}"}
                        configs.append(config)
                groups.append((f"{args.system}, batch {batch}, {dtype}, {part}", configs))
    interleaved.run(__file__, args, groups, inference_gflop)


if __name__ == "__main__":
    main()
