"""Training steps of a full-size network, JAX beside PyTorch, on the same machine in the same run.

Each contender (JAX with one lowering, torch in one mode) lives in its own process, so that thread
pools and allocators do not disturb each other. The processes take turns: in every round each one
runs its steps while the others wait on a pipe, and a ratio compares neighbours in time. A step is
forward pass, cross-entropy + lambda MSE, backward pass and update (AdamW or SGD), on a fixed batch
that lies in device memory.

    python benchmarks/train_step.py --impl jax,torch --batch 2,4 --rounds 10 --json result.json
    python benchmarks/train_step.py --system vivit --batch 2
    python benchmarks/train_step.py --system c3d --optimizer sgd --batch 2

Needs jax, flax, optax and torch.
"""

import argparse
import json
import os
import pkgutil
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from a checkout, installed or not

# model -> its torch class, which takes (frames, image size, **fields of the Flax module)
SYSTEMS = {
    "mvo_net": "mvo_jax.interop.torch_models.mvo_net:TorchMVONet",
    "timesformer": "mvo_jax.interop.torch_models.timesformer:TorchTimeSformer",
    "vivit": "mvo_jax.interop.torch_models.vivit:TorchViViT",
    "c3d": "mvo_jax.interop.torch_models.c3d:TorchC3D",
    "i3d": "mvo_jax.interop.torch_models.i3d:TorchI3D",
    "slowfast": "mvo_jax.interop.torch_models.slowfast:TorchSlowFast",
    "p3d": "mvo_jax.interop.torch_models.p3d:TorchP3D",
}
NOT_OF_TORCH = ("name", "dtype", "lowering")  # fields that are no argument of the torch class
OPTIMISERS: dict[str, dict[str, Any]] = {
    "adamw": {"learning_rate": 1e-4, "weight_decay": 0.01},
    "sgd": {"learning_rate": 1e-2, "weight_decay": 5e-4, "decoupled_weight_decay": False},
}
# arguments all processes get
SHARED = ("system", "optimizer", "frames", "size", "width", "steps", "warmup")
FULL_SIZE = {"frames": 30, "size": 64, "width": 0}


def model_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The ``model`` part of a config: the published size, or another width where one is given."""
    from mvo_jax.models.build import published_config

    fields = published_config(config["system"])
    if config["width"]:
        fields["width"] = config["width"]
    return fields


def training_gflop(config: dict[str, Any]) -> float:
    """GFLOP of one clip, forward and backward, dense."""
    from mvo_jax.models.build import build_model
    from mvo_jax.models.cost import forward_flops

    model = build_model(model_fields(config), backend="tpu")
    clip = (config["frames"], config["size"], config["size"], 1)
    return 3e-9 * forward_flops(model, clip, train=True, with_mask=True)


def make_batch(config: dict[str, Any]) -> dict[str, Any]:
    """A random batch, the same for every contender."""
    import numpy as np

    rng = np.random.default_rng(0)
    batch, frames, size = config["batch"], config["frames"], config["size"]
    return {
        "video": rng.standard_normal((batch, frames, size, size, 1), dtype=np.float32),
        "label": np.arange(batch, dtype=np.int32) % 2,
        "coarse_mask": rng.uniform(size=(batch, 16, 16)).astype(np.float32),
    }


class JaxContender:
    """The shipped training step, jitted with a donated state."""

    def __init__(self, config: dict[str, Any]):
        import jax
        import jax.numpy as jnp

        from mvo_jax.models.build import build_model
        from mvo_jax.training.losses import LossSettings
        from mvo_jax.training.optim import OptimiserSettings, make_optimiser
        from mvo_jax.training.state import create_state
        from mvo_jax.training.step import make_train_step

        fields = model_fields(config) | {"dtype": config["dtype"]}
        if "lowering" in fields:
            fields["lowering"] = config["option"]
        model: Any = build_model(
            fields, backend=jax.default_backend(), xla_flags=os.environ.get("XLA_FLAGS", "")
        )
        optimiser = make_optimiser(
            OptimiserSettings(name=config["optimizer"], **OPTIMISERS[config["optimizer"]])
        )
        clip = (config["frames"], config["size"], config["size"], 1)
        self.dtype = jnp.dtype(config["dtype"])
        self.key = jax.random.key(0)
        self.state = create_state(model, optimiser, self.key, clip)
        self.batch = jax.device_put(make_batch(config))
        step = make_train_step(model, optimiser, LossSettings())
        start = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=0).lower(self.state, self.batch, self.key)
        self.step = lowered.compile()
        memory = self.step.memory_analysis()
        self.about = {
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "lowering": model.lowering if "lowering" in fields else None,
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "compile_s": round(time.perf_counter() - start, 1),
            "temporaries_gb": round(memory.temp_size_in_bytes / 1e9, 2) if memory else None,
        }

    def run(self, steps: int) -> float:
        """Take steps and wait for the last; returns its loss."""
        metrics: dict[str, Any] = {}
        for _ in range(steps):
            self.state, metrics = self.step(self.state, self.batch, self.key)
        return float(metrics["loss"])

    def matmul_gflops(self) -> float:
        """Best rate of a square matrix product in this framework and dtype."""
        import jax
        import jax.numpy as jnp

        side = matmul_side(on_cpu=jax.default_backend() == "cpu")
        square = jnp.ones((side, side), self.dtype)
        product = jax.jit(lambda a: a @ a)
        return matmul_rate(lambda: product(square).block_until_ready(), side)


class TorchContender:
    """The same network in torch: channels_last_3d, fused AdamW, autocast for bfloat16."""

    def __init__(self, config: dict[str, Any]):
        import torch

        from mvo_jax.interop.torch_models import training as torch_training
        from mvo_jax.interop.torch_models.recording import Output

        torch.manual_seed(0)
        cuda = torch.cuda.is_available()
        device = torch.device("cuda" if cuda else "cpu")
        if cuda:
            torch.backends.cudnn.benchmark = True
            # XLA uses TF32 for float32 matrix products by default; the same here.
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
        fields = {k: v for k, v in model_fields(config).items() if k not in NOT_OF_TORCH}
        model = pkgutil.resolve_name(SYSTEMS[config["system"]])(
            config["frames"], config["size"], **fields
        ).to(device)
        layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
        for parameter in model.parameters():
            if parameter.dim() in layouts:
                parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.dim()])
        optimiser = torch_training.make_optimiser(
            model.parameters(),
            config["optimizer"],
            weight_decay=OPTIMISERS[config["optimizer"]]["weight_decay"],
            fused=True,
        )
        torch_training.set_learning_rate(
            optimiser, OPTIMISERS[config["optimizer"]]["learning_rate"]
        )
        batch = {k: torch.from_numpy(v).to(device) for k, v in make_batch(config).items()}
        autocast = config["dtype"] == "bfloat16"

        def loss_fn() -> torch.Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                output = model(batch["video"])
            output = Output(*(part if part is None else part.float() for part in output))
            return torch_training.total_loss(output, batch["label"], batch["coarse_mask"])

        modes = {"eager": None, "compile": "default", "autotune": "max-autotune-no-cudagraphs"}
        mode = modes[config["option"]]
        if mode is not None:
            loss_fn = torch.compile(loss_fn, mode=mode)

        def step() -> torch.Tensor:
            optimiser.zero_grad(set_to_none=True)
            loss = loss_fn()
            loss.backward()
            optimiser.step()
            return loss

        self.step = step
        self.dtype = torch.bfloat16 if autocast else torch.float32
        self.device = device
        self.about = {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "threads": torch.get_num_threads(),
        }

    def run(self, steps: int) -> float:
        """Take steps and wait for the last; returns its loss."""
        loss = None
        for _ in range(steps):
            loss = self.step()
        assert loss is not None
        return loss.item()

    def matmul_gflops(self) -> float:
        """Best rate of a square matrix product in this framework and dtype."""
        import torch

        side = matmul_side(on_cpu=self.device.type == "cpu")
        square = torch.ones(side, side, dtype=self.dtype, device=self.device)
        return matmul_rate(lambda: (square @ square)[0, 0].item(), side)


def matmul_side(*, on_cpu: bool) -> int:
    """Side of the square matrices that measure the ceiling."""
    return 2048 if on_cpu else 8192


def matmul_rate(product: Callable[[], Any], side: int) -> float:
    """GFLOP/s of the fastest of several calls that each multiply two square matrices."""
    product()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return 2e-9 * side**3 / min(seconds)


def busy_seconds() -> float:
    """CPU seconds used so far by all processes of the machine; 0 where Linux does not say."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except FileNotFoundError:
        return 0.0
    user, nice, system, _idle, _wait, interrupt, soft, stolen = map(int, fields[1:9])
    ticks = user + nice + system + interrupt + soft + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


def work(config: dict[str, Any]) -> None:
    """Body of a contender's process: answer requests, one JSON line each."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not end up among the replies
    contender = (JaxContender if config["impl"] == "jax" else TorchContender)(config)

    def reply(**message: Any) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    start = time.perf_counter()
    for _ in range(config["warmup"]):
        contender.run(1)
    about = contender.about | {"warmup_s": round(time.perf_counter() - start, 1)}
    reply(about=about, matmul_gflops=contender.matmul_gflops())
    for _ in sys.stdin:
        start, cpu_start, busy_start = time.perf_counter(), time.process_time(), busy_seconds()
        loss = contender.run(config["steps"])
        seconds = time.perf_counter() - start
        cpu_seconds = time.process_time() - cpu_start
        others = (busy_seconds() - busy_start - cpu_seconds) / (seconds * (os.cpu_count() or 1))
        reply(
            seconds=seconds / config["steps"],
            cpu_seconds=cpu_seconds / config["steps"],
            others=max(others, 0.0),
            loss=loss,
            peak_host_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        )


class Worker:
    """A contender's process, seen from outside."""

    def __init__(self, config: dict[str, Any]):
        from mvo_jax.cli.xla_flags import configure_xla

        self.name = f"{config['impl']}:{config['option']}"
        environment = dict(os.environ)
        if config["impl"] == "jax":
            configure_xla(environment)
            # The other contenders share the accelerator's memory.
            environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        ready = self.receive()
        self.about: dict[str, Any] = ready["about"]
        self.matmul_gflops: float = ready["matmul_gflops"]

    def receive(self) -> dict[str, Any]:
        """Next reply of the process."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def run(self) -> dict[str, Any]:
        """Let the process take its steps of one round."""
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self.receive()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def summarise(seconds: list[float]) -> dict[str, float]:
    """Median, quartiles and extremes of a list of seconds."""
    low, median, high = (
        statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    )
    return {
        "median_s": median,
        "quartile1_s": low,
        "quartile3_s": high,
        "min_s": min(seconds),
        "max_s": max(seconds),
    }


def take_rounds(
    workers: list[Worker], rounds: int, quiet: float, patience_s: float
) -> list[list[dict[str, Any]]]:
    """Let the contenders run in turns.

    Args:
        workers: the contenders.
        rounds: rounds to return.
        quiet: share of the machine that other processes may use in a round; rounds are repeated
            until enough are as quiet as that, for ``patience_s`` at most.
        patience_s: see ``quiet``.

    Returns:
        The quietest ``rounds`` rounds in the order they were run, each a reply for each contender.
    """
    taken: list[list[dict[str, Any]]] = []
    start = time.monotonic()

    def noise(answers: list[dict[str, Any]]) -> float:
        return max(answer["others"] for answer in answers)

    while sum(noise(answers) <= quiet for answers in taken) < rounds:
        if len(taken) >= rounds and time.monotonic() - start > patience_s:
            break
        # Look before running: a round on a busy machine only makes it busier.
        busy = busy_seconds()
        time.sleep(1)
        waited = time.monotonic() - start
        if busy_seconds() - busy > quiet * (os.cpu_count() or 1) and waited < patience_s:
            continue
        # Every other round in reverse, so that nobody always follows the same neighbour.
        order = range(len(workers))[:: 1 if len(taken) % 2 == 0 else -1]
        answers = {index: workers[index].run() for index in order}
        taken.append([answers[index] for index in range(len(workers))])
    bound = sorted(map(noise, taken))[rounds - 1]
    return [answers for answers in taken if noise(answers) <= bound][:rounds]


def compare(
    configs: list[dict[str, Any]], rounds: int, quiet: float, patience_s: float
) -> list[dict[str, Any]]:
    """Run the contenders of one batch size and dtype in turns; one row of results each."""
    workers: list[Worker] = []
    try:
        for config in configs:
            workers.append(Worker(config))
            print(f"  ready: {workers[-1].name} {workers[-1].about}", flush=True)
        replies = zip(*take_rounds(workers, rounds, quiet, patience_s), strict=True)
    finally:
        for worker in workers:
            worker.close()
    ceiling = max(worker.matmul_gflops for worker in workers)
    rows = []
    for config, worker, answers in zip(configs, workers, replies, strict=True):
        seconds = [answer["seconds"] for answer in answers]
        row = {**config, "name": worker.name, "about": worker.about, "seconds": seconds}
        row |= summarise(seconds) | {"final_loss": answers[-1]["loss"]}
        row["others"] = [answer["others"] for answer in answers]
        row["median_cpu_s"] = statistics.median(answer["cpu_seconds"] for answer in answers)
        row["peak_host_gb"] = max(answer["peak_host_gb"] for answer in answers)
        row["clips_per_s"] = config["batch"] / row["median_s"]
        row["matmul_ceiling_gflops"] = ceiling
        if all(config[name] == value for name, value in FULL_SIZE.items()):
            row["gflops"] = training_gflop(config) * row["clips_per_s"]
            row["utilisation"] = row["gflops"] / ceiling
        rows.append(row)
    fastest = min(
        (r for r in rows if r["impl"] == "torch"), key=lambda r: r["median_s"], default=None
    )
    if fastest is not None:
        for row in rows:
            ratios = [a / b for a, b in zip(row["seconds"], fastest["seconds"], strict=True)]
            row["baseline"] = fastest["name"]
            row["ratios"] = ratios
            row["median_ratio"] = statistics.median(ratios)
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line for each contender, batch size and dtype."""
    print(
        f"{'batch':>5} {'dtype':9} {'contender':22} {'median s':>9} {'quartiles':>17} "
        f"{'clips/s':>8} {'/ torch':>8} {'GFLOP/s':>8} {'of peak':>8} {'others':>7}"
    )
    for row in rows:
        quartiles = f"{row['quartile1_s']:.4g} - {row['quartile3_s']:.4g}"
        ratio = f"{row['median_ratio']:.3f}" if "median_ratio" in row else "-"
        gflops = f"{row['gflops']:.0f}" if "gflops" in row else "-"
        used = f"{row['utilisation']:.0%}" if "utilisation" in row else "-"
        print(
            f"{row['batch']:>5} {row['dtype']:9} {row['name']:22} {row['median_s']:>9.4g} "
            f"{quartiles:>17} {row['clips_per_s']:>8.4g} {ratio:>8} {gflops:>8} {used:>8} "
            f"{statistics.median(row['others']):>7.0%}"
        )


def listed(text: str) -> list[str]:
    """Items of a comma-separated argument."""
    return [item for item in text.split(",") if item]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--system", choices=SYSTEMS, default="mvo_net")
    parser.add_argument("--impl", type=listed, default=["jax", "torch"])
    parser.add_argument("--optimizer", choices=OPTIMISERS, default="adamw")
    parser.add_argument("--batch", type=listed, default=["2", "4"])
    parser.add_argument("--dtype", type=listed, default=["float32"], help="float32,bfloat16")
    parser.add_argument(
        "--lowering", type=listed, default=["auto"], help="keys of layers.LOWERINGS, or auto"
    )
    parser.add_argument(
        "--torch-mode", type=listed, default=["eager"], help="eager,compile,autotune"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps a round; more on a GPU")
    parser.add_argument(
        "--quiet",
        type=float,
        default=1.0,
        help="repeat rounds in which other processes used more than this share of the CPUs",
    )
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to do so at most")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--frames", type=int, default=FULL_SIZE["frames"])
    parser.add_argument("--size", type=int, default=FULL_SIZE["size"])
    parser.add_argument("--width", type=int, default=0, help="another width than the published")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(json.loads(args.worker))
        return

    options = {"jax": args.lowering, "torch": args.torch_mode}
    shared = {name: getattr(args, name) for name in SHARED}
    rows = []
    for dtype in args.dtype:
        for batch in args.batch:
            print(f"{args.system}, batch {batch}, {dtype}", flush=True)
            configs = [
                {"impl": impl, "option": option, "batch": int(batch), "dtype": dtype, **shared}
                for impl in args.impl
                for option in options[impl]
            ]
            rows += compare(configs, args.rounds, args.quiet, args.patience)
    print_table(rows)
    if args.json:
        host = {"python": platform.python_version(), "cpus": os.cpu_count()}
        args.json.write_text(json.dumps({"host": host, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
