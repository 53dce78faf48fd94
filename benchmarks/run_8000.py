"""The paper's whole schedule on the simulated cohort: 8000 steps of 16 clips, timed by part.

The parts are those of `train.py` (step on a split in device memory, evaluation step, checkpoints),
put together so that each can be timed: what is in flight is waited for at every validation.

    python benchmarks/run_8000.py --json run_8000.json                       # a GPU, bfloat16
    python benchmarks/run_8000.py --steps 20 --eval-every 10 --dtype float32 --batch 2     # a CPU

Needs jax, flax, optax and orbax-checkpoint. Checkpoints go to a temporary folder.
"""

import collections
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, installed or not

from benchmarks import interleaved, networks
from benchmarks.resident import AUGMENTATION, Resident, simulated_split

IN_FLIGHT = 2  # dispatches, as in the loop


def train(config: dict[str, Any], limit_s: float, folder: Path) -> dict[str, Any]:
    """Train, and return the seconds of every part."""
    start = time.perf_counter()
    import jax
    import numpy as np

    from mvo_jax.devices import parallel
    from mvo_jax.evaluation.metrics import roc_auc
    from mvo_jax.runs.checkpoint import Checkpoints
    from mvo_jax.training.step import make_eval_step

    seconds: dict[str, float] = collections.defaultdict(float)
    since = time.perf_counter()

    def account(part: str) -> float:
        nonlocal since
        now = time.perf_counter()
        spent, since = now - since, now
        seconds[part] += spent
        return spent

    training = simulated_split(config["cohort"], "train", config)
    validation = simulated_split(config["cohort"], "validation", config)
    account("cohort")
    run = Resident(config, training, total_steps=config["steps"])
    step_on_split = run.step_on_split(AUGMENTATION)
    eval_step = parallel.data_parallel(
        make_eval_step(run.model, with_mask=True),
        in_axes=(None, None, 0),
        out_axes=0,
        on=run.devices,
    )
    clips = parallel.replicate({"video": validation["video"]}, run.devices)
    cases = len(validation["label"])
    checkpoints = Checkpoints(folder, create=True)
    jax.block_until_ready((run.state, clips))
    account("set-up")

    def predict() -> Any:
        parts = []
        for first in range(0, cases, run.batch):
            indices = np.minimum(np.arange(first, first + run.batch), cases - 1).astype(np.int32)
            result = eval_step(run.state.eval_variables(), clips, indices[None])
            parts.append(np.asarray(result["probability"])[0])
        return np.concatenate(parts)[:cases]

    predict()
    account("compile")  # and run once, as below
    chunk, taken, losses, best = config["chunk"], 0, [], -1.0
    in_flight: collections.deque[Any] = collections.deque()

    def collect(keep: int) -> None:
        while len(in_flight) > keep:
            losses.extend(np.asarray(in_flight.popleft()["loss"]).tolist())

    first_chunk = 0.0
    while taken < config["steps"] and (not taken or time.perf_counter() - start < limit_s):
        indices = run.indices(taken, chunk)
        run.state, metrics = step_on_split(run.state, run.data, indices, run.key)
        in_flight.append(metrics)
        taken += chunk
        if taken == chunk:
            collect(0)
            first_chunk = account("compile")
        collect(IN_FLIGHT)
        if taken % config["eval_every"] == 0 or taken >= config["steps"]:
            collect(0)
            account("steps")
            auc = roc_auc(validation["label"], predict())
            account("evaluation")
            if auc > best:
                best = auc
                checkpoints.save_best(run.state, {"step": taken, "auc": auc})
            checkpoints.save_latest(run.state)
            account("checkpoints")
    collect(0)
    account("steps")
    checkpoints.finish()
    account("checkpoints")
    timed = taken - chunk
    gflop = 3 * networks.forward_gflop(config, train=True, with_mask=True)
    ceiling = networks.matmul_gflops({**config, "impl": "jax"})
    clips_per_s = timed * run.batch / seconds["steps"] if timed else float("nan")
    return {
        **config,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "lowering": networks.lowering(run.model),
        "steps_taken": taken,
        "seconds": dict(seconds),
        "total_s": sum(seconds.values()),
        "first_chunk_s": first_chunk,
        "clips_per_s": clips_per_s,
        "gflop_a_clip": gflop,
        "matmul_ceiling_gflops": ceiling,
        "utilisation": gflop * clips_per_s / ceiling,
        "final_loss": losses[-1],
        "finite": bool(np.isfinite(losses).all()),
        "best_auc": best,
    }


def print_table(row: dict[str, Any]) -> None:
    """Seconds by part."""
    print(
        f"{row['steps_taken']} of {row['steps']} steps of {row['batch']} clips, {row['dtype']}, "
        f"{row['lowering']}, {row['device']}, JAX {row['jax']}"
    )
    for part, seconds in row["seconds"].items():
        print(f"  {part:12}{seconds:10.2f} s  {seconds / row['total_s']:5.1%}")
    print(f"  {'total':12}{row['total_s']:10.2f} s")
    print(
        f"  {row['clips_per_s']:.1f} clips/s, {row['utilisation']:.1%} of the measured matmul "
        f"ceiling; last loss {row['final_loss']:.4f}, best validation AUC {row['best_auc']:.4f}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = interleaved.base_parser(__doc__, networks.SYSTEMS)
    parser.add_argument("--cohort", choices=("paper", "tiny"), default="paper")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--eval-every", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=0, help="steps a dispatch; 0: 1 on a CPU, 20")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--lowering", default="auto")
    parser.add_argument("--limit", type=float, default=float("inf"), help="stop after SECONDS")
    args = parser.parse_args(arguments)
    from mvo_jax.devices.environment import configure_xla

    interleaved.check_lowerings([args.lowering])
    configure_xla(os.environ)
    import jax

    config = {name: getattr(args, name) for name in interleaved.FULL_SIZE}
    config |= {name: getattr(args, name) for name in ("batch", "dtype", "lowering", "cohort")}
    config |= {"system": args.system, "steps": args.steps, "eval_every": args.eval_every}
    config["chunk"] = args.chunk or (1 if jax.default_backend() == "cpu" else 20)
    if args.eval_every % config["chunk"] or args.steps % config["chunk"]:
        interleaved.refuse(
            f"--steps {args.steps} or --eval-every {args.eval_every} is no multiple of --chunk "
            f"{config['chunk']}",
            "choose multiples, or --chunk 1",
        )
    with tempfile.TemporaryDirectory() as folder:
        row = train(config, args.limit, Path(folder))
    if args.json:
        interleaved.write_json(args.json, [row])
    print_table(row)
    if not row["finite"]:
        raise SystemExit("error: a loss is not finite")


if __name__ == "__main__":
    main()
