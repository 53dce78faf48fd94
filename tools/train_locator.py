"""Train the locator of the left ventricle: ``python -m tools.train_locator --data FILE --out DIR``.

First a start from simulated cine, which no patient is part of, then one network for every fold,
each without its patients, and one that has seen all, which ships. Stages share what they may: folds
1 and 2 begin at a network that saw neither's patients. A killed run goes on where it last saved;
what is finished is not trained again. One thread, seeded: the same command gives the same weights
on the same processor.
"""

import argparse
import functools
import logging
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from flax import serialization

from mvo_jax.errors import UserError
from mvo_jax.files import replace_with
from tools.locator.network import UNet, fold_normalisation
from tools.locator.samples import (
    FOLDS,
    Frames,
    draw_batch,
    fold_of,
    read_sunnybrook,
    simulated_frames,
)

log = logging.getLogger(__name__)

BATCH, SAVE_SECONDS = 16, 60.0
PEAK_RATE, WEIGHT_DECAY = 3e-3, 1e-4


class Stage(NamedTuple):
    """One network."""

    start: str | None  # the stage it begins at; None for new variables
    unseen: tuple[int, ...]  # folds whose patients take no part, here and in all stages before
    steps: int
    # Share of images without a ventricle; a fifth left too many places below the diaphragm that
    # were taken for one.
    empty: float = 0.35


STAGES = {
    "start": Stage(None, tuple(range(FOLDS)), 600, 0.2),
    "without0": Stage("start", (0,), 1800, 0.2),
    "seen": Stage("without0", (), 500, 0.2),
    "late": Stage("seen", (), 250),
    "late0": Stage("without0", (0,), 250),
    "without12": Stage("start", (1, 2), 500),
    "begun1": Stage("without12", (1,), 300),
    "begun2": Stage("without12", (2,), 300),
    "without34": Stage("start", (3, 4), 450),
    "begun3": Stage("without34", (3,), 300),
    "begun4": Stage("without34", (4,), 300),
    "late1": Stage("begun1", (1,), 1200),
    "late2": Stage("begun2", (2,), 1200),
    "late3": Stage("begun3", (3,), 1200),
    "late4": Stage("begun4", (4,), 1200),
    "fold0": Stage("late0", (0,), 2000),
    "fold1": Stage("late1", (1,), 2000),
    "fold2": Stage("late2", (2,), 2000),
    "fold3": Stage("late3", (3,), 2000),
    "fold4": Stage("late4", (4,), 2000),
    "all": Stage("late", (), 2000),
}


class Progress(NamedTuple):
    """All that training goes on from."""

    params: Any
    batch_stats: Any
    optimizer: Any
    step: int


def loss_of(params: Any, batch_stats: Any, images: jax.Array, targets: jax.Array) -> Any:
    """Cross-entropy of the pixels and, of images with a ventricle, one less soft Dice."""
    variables = {"params": params, "batch_stats": batch_stats}
    logit, changed = UNet().apply(variables, images, train=True, mutable=["batch_stats"])
    entropy = optax.sigmoid_binary_cross_entropy(logit, targets).mean(axis=(1, 2))
    found, drawn = jax.nn.sigmoid(logit).sum((1, 2)), targets.sum((1, 2))
    both = (jax.nn.sigmoid(logit) * targets).sum((1, 2))
    dice = (2 * both + 1) / (found + (targets**2).sum((1, 2)) + 1)
    missed = jnp.where(drawn > 0, 1 - dice, 0)
    return (20 * entropy + missed).mean(), changed["batch_stats"]


def schedule(steps: int) -> optax.GradientTransformation:
    """AdamW with a short rise and a cosine to nothing."""
    rate = optax.warmup_cosine_decay_schedule(0.0, PEAK_RATE, min(100, steps // 10 + 1), steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=WEIGHT_DECAY))


@functools.cache
def compiled_update(steps: int) -> Any:
    """One step: (params, stats, state, images, targets) to the first three and the loss."""
    optimizer = schedule(steps)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def update(params: Any, stats: Any, state: Any, images: jax.Array, targets: jax.Array) -> Any:
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, stats), grads = gradient(params, stats, images, targets)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state, loss

    return update


def train(
    out: Path, real: Frames | None, simulated: Frames, stage: Stage, *, seed: int, start: Any
) -> Any:
    """Train one network, or go on with it.

    Args:
        out: file of its progress; stages that begin here read it.
        start: variables to start from; None for new ones.

    Returns:
        The variables.
    """
    steps = stage.steps
    optimizer = schedule(steps)
    if start is None:
        blank = np.zeros((1, 32, 32), np.float32)
        start = jax.device_get(UNet().init(jax.random.key(seed), blank))
    params, stats = start["params"], start["batch_stats"]
    now = Progress(params, stats, optimizer.init(params), 0)
    if out.is_file():
        stored: Any = serialization.from_bytes(now, out.read_bytes())
        now = Progress(*stored)

    update = compiled_update(steps)
    params, stats, state, losses = now.params, now.batch_stats, now.optimizer, []
    saved = time.monotonic()
    for step in range(int(now.step), steps):
        images, targets = draw_batch(real, simulated, BATCH, (seed, step), empty=stage.empty)
        params, stats, state, loss = update(params, stats, state, images, targets)
        losses.append(loss)
        if len(losses) == 100:
            log.info(f"{out.stem}: step {step + 1} of {steps}, loss {np.mean(losses):.4f}")
            losses = []
        if step + 1 == steps or time.monotonic() - saved > SAVE_SECONDS:
            content = serialization.to_bytes(Progress(params, stats, state, step + 1))
            replace_with(out, lambda path, content=content: path.write_bytes(content))
            saved = time.monotonic()
    # On the host: several stages begin here, and the first would take the arrays from the others.
    return jax.device_get({"params": params, "batch_stats": stats})


def write_weights(path: Path, variables: Any) -> None:
    """Folded kernels and biases as float16, which is what ships."""
    arrays = {k: v.astype(np.float16) for k, v in fold_normalisation(variables).items()}
    replace_with(path, lambda temporary: safetensors.numpy.save_file(arrays, temporary))


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="lv_cavity.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder of the weights")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        frames = read_sunnybrook(args.data)
        args.out.mkdir(parents=True, exist_ok=True)
        folds = fold_of(list(frames.patient))
        simulated = simulated_frames(400, args.seed)
        variables: dict[str | None, Any] = {None: None}
        for i, (name, stage) in enumerate(STAGES.items()):
            seen = [patient for patient, fold in folds.items() if fold not in stage.unseen]
            variables[name] = train(
                args.out / f"{name}.msgpack",
                frames.of(seen) if seen else None,
                simulated,
                stage,
                seed=args.seed + i,
                start=variables[stage.start],
            )
            write_weights(args.out / f"{name}.safetensors", variables[name])
            log.info(f"{name}: {stage.steps} steps, {len(seen)} patients")
    except UserError as error:
        raise SystemExit(f"{error.cause}\n{error.remedy}") from None


if __name__ == "__main__":
    main()
