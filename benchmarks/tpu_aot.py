"""The full training step compiled for TPUs on a machine without one.

Reports what the compiler says of it: memory, bytes moved a clip, and traffic between chips.

    pip install "jax[tpu]" flax optax
    python benchmarks/tpu_aot.py --chip v5e --chips 1 --batch 16,64 --json tpu.json
    python benchmarks/tpu_aot.py --chip v5e,v4,v5p,v6e --chips 1,8,256 --batch 16

A program takes 2 to 4 minutes on two cores. Nothing runs, so nothing here is a time.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, installed or not

from benchmarks import hlo_traffic, interleaved, networks

# chips -> topology; one chip is the first of the smallest.
FLAT = {1: "2x2", 4: "2x2", 8: "2x4", 16: "4x4", 64: "8x8", 256: "16x16"}
CUBIC = {1: "2x2x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 64: "4x4x4", 256: "4x8x8"}
TOPOLOGIES = {"v5e": FLAT, "v6e": FLAT, "v4": CUBIC, "v5p": CUBIC}


def compile_step(config: dict[str, Any]) -> dict[str, Any]:
    """Compile the step of one chip, number of chips, batch and lowering.

    Args:
        config: as in ``networks``, and 'chip', 'chips', 'lowering'; 'batch' is that of one chip.

    Returns:
        The config with what the compiler says; per clip where the name says so.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from mvo_jax.devices.parallel import AXIS
    from mvo_jax.settings import LossSettings
    from mvo_jax.training.optim import OptimiserSettings, make_optimiser
    from mvo_jax.training.state import create_state
    from mvo_jax.training.step import make_loss, make_train_step

    chips, batch = config["chips"], config["batch"]
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{config['chip']}:{TOPOLOGIES[config['chip']][chips]}"
    )
    mesh = Mesh(np.array(topology.devices[:chips]), (AXIS,))
    model = networks.jax_model(config, axis_name=AXIS, backend="tpu")
    optimiser = make_optimiser(OptimiserSettings())
    step = make_train_step(make_loss(model, LossSettings()), optimiser, axis_name=AXIS)
    # What `jax.pmap`, which the loop uses, makes of a step.
    everywhere, shared = PartitionSpec(), PartitionSpec(AXIS)
    parallel = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(everywhere, shared, everywhere),
        out_specs=everywhere,
        check_vma=False,
    )

    def placed(tree: Any, spec: Any) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    clip = networks.clip_shape(config)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda: create_state(model, optimiser, jax.random.key(0), clip))
    clips = {
        "video": jax.ShapeDtypeStruct((chips * batch, *clip), jnp.float32),
        "label": jax.ShapeDtypeStruct((chips * batch,), jnp.int32),
        "coarse_mask": jax.ShapeDtypeStruct((chips * batch, 16, 16), jnp.float32),
    }
    start = time.perf_counter()
    traced = jax.jit(parallel, donate_argnums=0).trace(
        placed(state, everywhere), placed(clips, shared), placed(key, everywhere)
    )
    compiled: Any = traced.lower(lowering_platforms=("tpu",)).compile()
    seconds = time.perf_counter() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    text = compiled.as_text()
    traffic = hlo_traffic.read(text)
    return {
        **config,
        "lowering": networks.lowering(model),
        "jax": jax.__version__,
        "compile_s": round(seconds, 1),
        "peak_gb": memory.peak_memory_in_bytes / 1e9,
        "temporaries_gb": memory.temp_size_in_bytes / 1e9,
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "donated_gb": memory.alias_size_in_bytes / 1e9,
        "gb_a_clip": cost["bytes accessed"] / 1e9 / batch,
        "hbm_gb_a_clip": traffic.hbm_bytes / 1e9 / batch,
        "gflop_a_clip": cost["flops"] / 1e9 / batch,
        "megacycles_a_clip": traffic.cycles / 1e6 / batch,
        "collectives": traffic.collectives,
        # part of the network -> (bytes through HBM, cycles) of the whole batch
        "parts": hlo_traffic.by_layer(text, type(model).__name__),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line a program."""
    print(
        f"{'chip':5} {'chips':>5} {'batch':>5} {'dtype':9} {'lowering':14} {'peak GB':>8} "
        f"{'temp GB':>8} {'GB/clip':>8} {'of HBM':>7} {'Mcycles':>8} {'all-reduce':>16}"
    )
    for row in rows:
        count = sum(number for number, _ in row["collectives"].values())
        moved = sum(size for _, size in row["collectives"].values()) / 1e6
        print(
            f"{row['chip']:5} {row['chips']:>5} {row['batch']:>5} {row['dtype']:9} "
            f"{row['lowering'] or '-':14} {row['peak_gb']:>8.2f} {row['temporaries_gb']:>8.2f} "
            f"{row['gb_a_clip']:>8.3f} {row['hbm_gb_a_clip']:>7.3f} "
            f"{row['megacycles_a_clip']:>8.2f} {f'{count} of {moved:.1f} MB':>16}"
        )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = interleaved.base_parser(__doc__, networks.SYSTEMS)
    parser.add_argument("--chip", type=interleaved.listed, default=["v5e"], help="v5e,v4,v5p,v6e")
    parser.add_argument("--chips", type=interleaved.listed_numbers, default=[1])
    parser.add_argument("--batch", type=interleaved.listed_numbers, default=[16], help="of a chip")
    parser.add_argument("--dtype", type=interleaved.listed, default=["bfloat16"])
    parser.add_argument("--lowering", type=interleaved.listed, default=["auto"])
    args = parser.parse_args(arguments)
    for chip in args.chip:
        if chip not in TOPOLOGIES or set(args.chips) - set(TOPOLOGIES[chip]):
            parser.error(f"chips are {','.join(TOPOLOGIES)}, their numbers {sorted(FLAT)}")
    interleaved.check_lowerings(args.lowering)
    # This machine has no TPU: the compiler need not look for its neighbours.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    shared = {name: getattr(args, name) for name in ("system", *interleaved.FULL_SIZE)}
    rows: list[dict[str, Any]] = []
    failed = []
    for config in (
        {"chip": chip, "chips": chips, "batch": batch, "dtype": dtype, "lowering": lowering}
        for chip in args.chip
        for chips in args.chips
        for batch in args.batch
        for dtype in args.dtype
        for lowering in args.lowering
    ):
        title = " ".join(str(value) for value in config.values())
        try:
            rows.append(compile_step({**shared, **config}))
        except (RuntimeError, ValueError) as error:  # what XLA and libtpu raise
            failed.append(title)
            print(f"{title}: {str(error).splitlines()[0]}", flush=True)
            continue
        print(f"{title}: compiled in {rows[-1]['compile_s']} s", flush=True)
        if args.json:
            interleaved.write_json(args.json, rows)
    if rows:
        print_table(rows)
    if failed:
        raise SystemExit(
            f"error: not compiled: {'; '.join(failed)}\n"
            "  what to do: see above; without libtpu, pip install 'jax[tpu]'"
        )


if __name__ == "__main__":
    main()
