"""What the data cost: the shipped step on a split in device memory beside one on a fixed batch.

Five functions take turns in one process: the step on a fixed batch, the shipped step with gathering
and normalising, the same with augmentation, and the making of both batches alone. The share of the
augmentation is the difference of the last two over a step: the difference of two whole steps would
be lost in their noise.

    python benchmarks/data_step.py --batch 4 --rounds 5
    python benchmarks/data_step.py --batch 16,128 --dtype bfloat16 --chunk 20 --rounds 10   # a GPU

Needs jax, flax and optax.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, installed or not

from benchmarks import interleaved, networks
from benchmarks.resident import AUGMENTATION, MASK_SIZE, Resident


def random_split(config: dict[str, Any], cases: int) -> dict[str, Any]:
    """Noise of the shape of a split: what a step costs does not depend on what is in the images."""
    import numpy as np

    rng = np.random.default_rng(0)
    frames, size, _, _ = networks.clip_shape(config)
    return {
        "video": rng.integers(0, 256, (cases, frames, size, size, 1), dtype=np.uint8),
        "lge_mask": rng.integers(0, 4, (cases, size, size), dtype=np.uint8),
        "label": np.arange(cases, dtype=np.int32) % 2,
    }


def measure(config: dict[str, Any], *, rounds: int, cases: int) -> dict[str, Any]:
    """Seconds a step of each function, ratios and shares; medians over rounds."""
    import jax
    from jax import lax

    from mvo_jax.data.augment import Augmentation
    from mvo_jax.devices import parallel
    from mvo_jax.training.step import make_batch

    chunk = config["chunk"]
    run = Resident(config, random_split(config, cases), total_steps=8000)
    fixed_batch = {key: jax.device_put(v[None]) for key, v in networks.make_batch(config).items()}

    def on_fixed_batch(state: Any, batch: Any, key: Any) -> Any:
        if chunk == 1:
            return run.train_step(state, batch, key)
        return lax.scan(lambda state, _: run.train_step(state, batch, key), state, length=chunk)

    fixed_step = parallel.data_parallel(
        on_fixed_batch, in_axes=(None, 0, None), out_axes=None, on=run.devices, donate=(0,)
    )
    taken = 0

    def step_fixed() -> Any:
        run.state, metrics = fixed_step(run.state, fixed_batch, run.key)
        return metrics

    def step_on_split(augmentation: dict[str, Any]) -> Callable[[], Any]:
        step = run.step_on_split(augmentation)

        def call() -> Any:
            nonlocal taken
            run.state, metrics = step(run.state, run.data, run.indices(taken, chunk), run.key)
            taken += chunk
            return metrics

        return call

    def batches(augmentation: dict[str, Any]) -> Callable[[], Any]:
        @jax.jit
        def make(data: Any, indices: Any, key: Any) -> Any:
            return make_batch(
                data, indices, key, augmentation=Augmentation(**augmentation), mask_size=MASK_SIZE
            )

        indices = jax.device_put(run.indices(0, 1)[0, 0])

        def call() -> Any:
            return [make(run.data, indices, run.key) for _ in range(chunk)]

        return call

    functions = {
        "fixed batch": step_fixed,
        "gathered": step_on_split({}),
        "augmented": step_on_split(AUGMENTATION),
        "batch gathered": batches({}),
        "batch augmented": batches(AUGMENTATION),
    }
    for function in functions.values():  # compile, and once more to warm up
        jax.block_until_ready(function())
        jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds):
        for name in list(functions)[:: 1 if turn % 2 == 0 else -1]:
            start = time.perf_counter()
            jax.block_until_ready(functions[name]())
            seconds[name].append((time.perf_counter() - start) / chunk)
    making = statistics.median(
        a - b for a, b in zip(seconds["batch augmented"], seconds["batch gathered"], strict=True)
    )
    return {
        **config,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "lowering": networks.lowering(run.model),
        "seconds": seconds,
        "median_s": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio": statistics.median(
            a / b for a, b in zip(seconds["augmented"], seconds["fixed batch"], strict=True)
        ),
        "augmentation_share": making / statistics.median(seconds["augmented"]),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line a batch size and dtype."""
    print(
        f"{'batch':>5} {'dtype':9} {'chunk':>5} {'fixed s':>9} {'data s':>9} {'data / fixed':>12} "
        f"{'augmentation':>12}"
    )
    for row in rows:
        median = row["median_s"]
        print(
            f"{row['batch']:>5} {row['dtype']:9} {row['chunk']:>5} {median['fixed batch']:>9.4g} "
            f"{median['augmented']:>9.4g} {row['ratio']:>12.3f} {row['augmentation_share']:>12.2%}"
        )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = interleaved.base_parser(__doc__, networks.SYSTEMS)
    parser.add_argument("--batch", type=interleaved.listed_numbers, default=[4])
    parser.add_argument("--dtype", type=interleaved.listed, default=["float32"])
    parser.add_argument("--lowering", default="auto")
    parser.add_argument("--chunk", type=int, default=1, help="steps in one dispatch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", type=int, default=440)
    args = parser.parse_args(arguments)
    from mvo_jax.devices.environment import configure_xla

    interleaved.check_lowerings([args.lowering])
    configure_xla(os.environ)
    shared = {name: getattr(args, name) for name in ("system", *interleaved.FULL_SIZE)}
    shared |= {"lowering": args.lowering, "chunk": args.chunk}
    rows = []
    for dtype in args.dtype:
        for batch in args.batch:
            config = {**shared, "batch": batch, "dtype": dtype}
            rows.append(measure(config, rounds=args.rounds, cases=args.cases))
            if args.json:
                interleaved.write_json(args.json, rows)
    print_table(rows)


if __name__ == "__main__":
    main()
