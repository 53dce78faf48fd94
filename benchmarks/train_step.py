"""Training steps of a full-size network, JAX beside PyTorch, on the same machine in the same run.

A step is forward pass, cross-entropy + lambda MSE, backward pass and update (AdamW or SGD), on a
fixed batch that lies in device memory. ``interleaved.py`` says how the contenders take turns.

    python benchmarks/train_step.py --impl jax,torch --batch 2,4 --rounds 10 --json result.json
    python benchmarks/train_step.py --system vivit --batch 2
    python benchmarks/train_step.py --system c3d --optimizer sgd --batch 2
    python benchmarks/train_step.py --batch 16,128 --dtype bfloat16 --lowering conv2d,conv3d \
        --chunk 1,20 --torch-mode eager,compile --steps 20       # a GPU

Torch gets channels_last_3d, autocast for bfloat16, a fused optimiser and cudnn.benchmark. Needs
jax, flax and optax, and torch to compare with.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, installed or not

from benchmarks import interleaved, networks
from benchmarks.interleaved import Config

OPTIMISERS: dict[str, dict[str, Any]] = {
    "adamw": {"learning_rate": 1e-4, "weight_decay": 0.01},
    "sgd": {"learning_rate": 1e-2, "weight_decay": 5e-4, "decoupled_weight_decay": False},
}


def training_gflop(config: Config) -> float:
    """GFLOP of one clip, forward and backward, dense."""
    return 3 * networks.forward_gflop(config, train=True, with_mask=True)


def jax_contender(config: Config) -> interleaved.Contender:
    """The shipped training step, jitted with a donated state; a chunk of steps is one scan."""
    import jax
    from jax import lax

    from mvo_jax.settings import LossSettings
    from mvo_jax.training.optim import OptimiserSettings, make_optimiser
    from mvo_jax.training.state import create_state
    from mvo_jax.training.step import make_loss, make_train_step

    model, name, chunk = networks.jax_model(config), config["optimizer"], config["chunk"]
    optimiser = make_optimiser(OptimiserSettings(name=name, **OPTIMISERS[name]))
    key = jax.random.key(0)
    state = create_state(model, optimiser, key, networks.clip_shape(config))
    batch = jax.device_put(networks.make_batch(config))
    step = make_train_step(make_loss(model, LossSettings()), optimiser)

    def several(state: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        if chunk == 1:
            return step(state, batch, key)
        state, metrics = lax.scan(lambda state, _: step(state, batch, key), state, length=chunk)
        return state, jax.tree.map(lambda value: value[-1], metrics)

    start = time.perf_counter()
    compiled = jax.jit(several, donate_argnums=0).lower(state, batch, key).compile()
    about = networks.about_jax(compiled, time.perf_counter() - start)

    def run(steps: int) -> float:
        """Takes ``steps`` steps, rounded up to whole chunks."""
        nonlocal state
        metrics: dict[str, Any] = {}
        for _ in range(-(-steps // chunk)):
            state, metrics = compiled(state, batch, key)
        return float(metrics["loss"])

    return about | {"lowering": networks.lowering(model)}, run


def torch_contender(config: Config) -> interleaved.Contender:
    """The same network in torch: channels_last_3d, fused optimiser, autocast for bfloat16."""
    import torch

    from mvo_jax.interop.torch_models import training as torch_training
    from mvo_jax.interop.torch_models.recording import Output

    device, settings = networks.torch_device(), OPTIMISERS[config["optimizer"]]
    model = networks.torch_model(config, device)
    optimiser = torch_training.make_optimiser(
        model.parameters(), config["optimizer"], weight_decay=settings["weight_decay"], fused=True
    )
    torch_training.set_learning_rate(optimiser, settings["learning_rate"])
    batch = {k: torch.from_numpy(v).to(device) for k, v in networks.make_batch(config).items()}
    autocast = config["dtype"] == "bfloat16"

    def loss_fn() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            output = model(batch["video"])
        output = Output(*(part if part is None else part.float() for part in output))
        return torch_training.total_loss(output, batch["label"], batch["coarse_mask"])

    mode = networks.TORCH_MODES[config["mode"]]
    compiled = loss_fn if mode is None else torch.compile(loss_fn, mode=mode)

    def run(steps: int) -> float:
        loss = None
        for _ in range(steps):
            optimiser.zero_grad(set_to_none=True)
            loss = compiled()
            loss.backward()
            optimiser.step()
        assert loss is not None
        return loss.item()

    return networks.about_torch(device), run


def make_contender(config: Config) -> interleaved.Contender:
    """The contender of a config: its ``run`` takes steps, and returns the last loss."""
    return (jax_contender if config["impl"] == "jax" else torch_contender)(config)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = interleaved.argument_parser(__doc__, networks.SYSTEMS)
    parser.add_argument("--optimizer", choices=OPTIMISERS, default="adamw")
    parser.add_argument(
        "--chunk",
        type=interleaved.listed_numbers,
        default=[1],
        help="steps in one JAX dispatch (slow on a CPU)",
    )
    args = parser.parse_args(arguments)
    if args.worker:
        interleaved.work(json.loads(args.worker), make_contender)
        return
    interleaved.check(args)
    uneven = [chunk for chunk in args.chunk if args.steps % chunk]
    if uneven and "jax" in args.impl:
        interleaved.refuse(
            f"--steps {args.steps} is no multiple of --chunk {uneven[0]}",
            f"--steps {math.lcm(*args.chunk)}",
        )
    own = {
        "jax": [
            {"option": lowering if chunk == 1 else f"{lowering}:x{chunk}"}
            | {"lowering": lowering, "chunk": chunk}
            for lowering in args.lowering
            for chunk in args.chunk
        ],
        "torch": [{"option": mode, "mode": mode} for mode in args.torch_mode],
    }
    shared = {name: getattr(args, name) for name in (*interleaved.SHARED, "optimizer")}
    groups = [
        (
            f"{args.system}, batch {batch}, {dtype}",
            [
                {"impl": impl, "batch": batch, "dtype": dtype, **options, **shared}
                for impl in args.impl
                for options in own[impl]
            ],
        )
        for dtype in args.dtype
        for batch in args.batch
    ]
    interleaved.run(__file__, args, groups, training_gflop)


if __name__ == "__main__":
    main()
