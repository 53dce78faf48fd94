"""The whole comparison: float64 stage by stage, training steps, float32 against float64, full size.

torch is imported here.
"""

import concurrent.futures
import dataclasses
import functools
import logging
import math
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from mvo_jax.data.coarse_mask import coarse_mask
from mvo_jax.interop.parity import pair
from mvo_jax.interop.parity.cases import BOUNDS, FLOAT32_RATIO, Case, cases_of, full_size_case
from mvo_jax.interop.parity.pair import Arrays, FlaxSide, Outcome, TorchSide
from mvo_jax.interop.parity.results import OPTIMISER_NAMES, Result, Row, Trace
from mvo_jax.interop.torch_models import training as torch_training
from mvo_jax.training.optim import learning_rate_schedule

logger = logging.getLogger(__name__)

DTYPES = ("float64", "float32")
BATCHES = 8  # different batches that training steps cycle through
# Draws of weights and clips over which float32 errors are pooled: one draw of a quantity of one
# number tells luck from precision no better than one throw of a coin. With 128 the ratio of two
# equally good sides has a standard deviation of 0.09 even there.
FLOAT32_DRAWS = 128
# Four clips give the encoder 20 rows. Products of fewer than 16 rows torch sums in 16 chains, of
# half the error: one clip would compare two kernels and not two networks.
FULL_SIZE_CLIPS = 4
# A rounding error that turns a ReLU's input from one side of 0 to the other is another function,
# not a less precise one: the gradient of the input is then wrong by 1e-4 to 1e-2, else by 1e-6.
FLIPPED = 1e-5
# Where torch's error is below the last digit of float32, that digit is the measure.
FLOAT32_FLOOR = float(np.finfo(np.float32).eps)


def run(
    model: str = "mvo_net",
    dtypes: Sequence[str] = DTYPES,
    *,
    steps: int = 100,
    full_size: bool = True,
    jobs: int = 2,
) -> Result:
    """Compare a model with its torch twin; nothing is raised when a bound does not hold.

    Args:
        model: name in the registry.
        dtypes: float32 takes of each network the first lowering, and all of the full ``mvo_net``.
        steps: training steps of each float64 trajectory.
        full_size: also one forward pass of the published network in each dtype.
        jobs: processes that share the work.
    """
    by_network: dict[str, list[Case]] = {}  # cases that differ in their lowering only, together
    for case in cases_of(model):
        by_network.setdefault(repr(dataclasses.replace(case, lowering="")), []).append(case)
    tasks = [(dtype, group, steps) for dtype in dtypes for group in by_network.values()]
    with jax.enable_x64(True):
        result = Result(formulas(steps))
    # Most of the time is compilation, which uses one core.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context, end_with_parent) as pool:
        running = [pool.submit(_compare_network, *task) for task in tasks]
        for (dtype, group, _), future in zip(tasks, running, strict=True):
            found = future.result()
            result.rows += found.rows
            result.traces += found.traces
            ways = f", {len(group)} lowerings" if len(group) > 1 else ""
            logger.info("%s: %s%s", dtype, group[0], ways)
    if full_size:
        case = full_size_case(model, clips=FULL_SIZE_CLIPS)
        with jax.enable_x64(True):
            result.rows += full_size_rows(case, dtypes)
        logger.info("full size: %s", case)
    return result


def end_with_parent() -> None:
    """End this process with the one that started it, also where that is killed."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _compare_network(dtype: str, group: list[Case], steps: int) -> Result:
    """One network with each of its lowerings, in a process of its own."""
    # Small tensors gain nothing from threads that wait for each other.
    torch.set_num_threads(1)
    with jax.enable_x64(True):
        if dtype == "float64":
            return _compare_float64(group, steps)
        cases = group if group[0].config.get("variant") == "full" else group[:1]
        return Result([row for case in cases for row in float32_rows(case)])


def _compare_float64(group: Sequence[Case], steps: int) -> Result:
    """All stages and trajectories of one network with each lowering.

    The torch side of a trajectory runs once: dropout does not depend on the lowering (checked).
    """
    result, paths = Result(), {}
    weights = pair.draw_weights(group[0], seed=0)
    drawn = (pair.draw_batch(group[0], seed=seed) for seed in range(BATCHES))
    batches = [pair.cast(batch, "float64") for batch in drawn]
    for case in group:
        flax = FlaxSide(case, "float64")
        result.rows += stage_rows(flax, weights, batches[0])
        for name in pair.OPTIMISERS:
            settings = pair.optimiser_settings(name, steps)
            losses, path, masks = flax.steps(flax.variables(weights), batches, settings, steps)
            if name not in paths:
                side = TorchSide(case, weights, "float64")
                paths[name] = (*side.steps(batches, settings, masks), masks)
            torch_losses, torch_path, torch_masks = paths[name]
            trace = Trace(
                str(case),
                name,
                torch_losses,
                np.abs(np.subtract(losses, torch_losses)).tolist(),
                [pair.relative_l2(a, b) for a, b in zip(path, torch_path, strict=True)],
            )
            result.traces.append(trace)
            different = sum(
                not np.array_equal(our.get(key, ()), mask)
                for our, their in zip(masks, torch_masks, strict=True)
                for key, mask in their.items()
            )
            result.rows += trajectory_rows(trace, different)
    return result


def stage_rows(flax: FlaxSide, weights: Any, batch: Arrays) -> list[Row]:
    """Inference and one training pass in float64, torch with the dropout masks of Flax."""
    case, variables = flax.case, flax.variables(weights)
    torch_side = TorchSide(case, weights, "float64")
    rows = compare(case, "inference", flax.infer(variables, batch), torch_side.infer(batch))
    ours, _, _ = flax.train(variables, batch, jax.random.key(1))
    theirs = torch_side.train(batch, ours["dropout"])
    return rows + compare(case, "training step", ours, theirs)


def compare(case: Case, stage: str, ours: Outcome, theirs: Outcome) -> list[Row]:
    """A row for each quantity of the two sides in float64; one that a side lacks is broken."""
    return [
        _row(case, stage, kind, name, ours[kind].get(name), arrays.get(name))
        for kind, arrays in theirs.items()
        for name in sorted(ours[kind].keys() | arrays.keys())
    ]


def _row(case: Case, stage: str, kind: str, name: str, our: Any, their: Any) -> Row:
    row = functools.partial(Row, str(case), stage, _label(kind, name))
    if our is None or their is None:
        return row(math.nan, math.nan, "absolute", math.nan, 0.0)
    absolute, relative = pair.largest(our, their), pair.relative_l2(our, their)
    if kind != "gradients":
        bound = BOUNDS.statistics if kind == "statistics" else BOUNDS.forward
        if kind in ("values", "intermediates"):
            bound *= max(1.0, float(np.abs(their).max()))
        return row(absolute, relative, "absolute", absolute, bound)
    ours, size = float(np.linalg.norm(our)), float(np.linalg.norm(their))
    if case.zero_gradient(name):
        return row(absolute, relative, "absolute", max(size, ours), BOUNDS.zero_gradient)
    # A gradient of nothing would make the comparison empty.
    value = relative if size > 1e-6 else math.nan
    return row(absolute, relative, "relative", value, BOUNDS.gradient)


def _label(kind: str, name: str) -> str:
    return f"gradient {name}" if kind == "gradients" else name


def trajectory_rows(trace: Trace, different: int) -> list[Row]:
    """Bounds along training steps: losses, parameters, and dropout masks that are ``different``."""
    row = functools.partial(Row, trace.case, f"{OPTIMISER_NAMES[trace.optimiser]} steps")
    count, rows = len(trace.loss), []
    for first, last, bound in (
        (0, min(30, count), BOUNDS.loss_after_30),
        (30, count, BOUNDS.loss_after_100),
    ):
        if first >= last:
            continue
        which = f"steps {first + 1} to {last}"
        difference = np.array(trace.loss_difference[first:last])
        absolute = float(difference.max())
        relative = float((difference / np.abs(trace.loss[first:last])).max())
        drift = float(np.max(trace.parameter_difference[first:last]))
        rows.append(row(f"loss, {which}", absolute, relative, "absolute", absolute, bound))
        rows.append(row(f"parameters, {which}", math.nan, drift, "relative", drift, bound))
    what = "dropout masks that differ between lowerings"
    return [*rows, row(what, different, different, "absolute", different, 0.0)]


def _in_float32(case: Case, weights: Any, method: str, *arguments: Any) -> list[Outcome]:
    """What torch computes with oneDNN's kernels, and with its own.

    They sum in different orders, oneDNN's in one that depends on the processor and on the threads:
    after the second stage of the published trunk torch's errors are 3.2, 4.2 and 5.0e-7 with oneDNN
    and two threads, with one, and without oneDNN. The larger one is torch's precision.
    """
    found = []
    try:
        for enabled in (True, False):
            # torch's context manager for this also sets TF32, with a warning on a CPU.
            torch.backends.mkldnn.set_flags(_enabled=enabled)
            found.append(getattr(TorchSide(case, weights, "float32"), method)(*arguments))
    finally:
        torch.backends.mkldnn.set_flags(_enabled=True)
    return found


def float32_rows(case: Case, *, draws: int = FLOAT32_DRAWS) -> list[Row]:
    """Errors of both float32 sides against torch in float64, pooled over draws."""
    flax = FlaxSide(case, "float32")
    # Squared norms by draw: of our error, of torch's with either kernels, of the truth.
    squares: dict[tuple[str, str], list[list[float]]] = {}
    for seed in range(draws):
        weights = pair.draw_weights(case, seed=seed)
        batch = pair.draw_batch(case, seed=seed)
        ours, _, _ = flax.train(flax.variables(weights), batch, jax.random.key(seed))
        dropout = ours["dropout"]
        theirs = _in_float32(case, weights, "train", batch, dropout)
        wide = pair.cast(batch, "float64")
        truth = TorchSide(case, weights, "float64").train(wide, dropout)
        for kind, name, true in _named(truth):
            errors = [side[kind][name] - true for side in (ours, *theirs)]
            row = [float(np.square(array).sum()) for array in (*errors, true)]
            squares.setdefault((kind, name), []).append(row)

    by_draw = {quantity: np.array(rows) for quantity, rows in squares.items()}
    of_input = by_draw["gradients", "input"]
    flipped = np.sqrt(of_input[:, :3] / of_input[:, 3:]) > FLIPPED
    smooth = ~flipped.any(axis=1)
    counts = flipped.sum(axis=0)
    label = f"draws where a ReLU flips, of {draws} (torch: {counts[1]})"
    share = float(1 - smooth.mean())
    # More than half would leave too few gradients to compare.
    rows = [Row(str(case), "float32", label, float(counts[0]), share, "relative", share, 0.5)]
    for (kind, name), sums in by_draw.items():
        if kind == "gradients" and case.zero_gradient(name):
            continue  # nothing but rounding on either side
        our, *their, true = sums[smooth if kind == "gradients" else slice(None)].sum(axis=0)
        our, their = float(np.sqrt(our / true)), float(np.sqrt(max(their) / true))
        rows.append(_ratio_row(case, "float32", _label(kind, name), our, their))
    return rows


def _ratio_row(case: Case, stage: str, label: str, our: float, their: float) -> Row:
    ratio = our / max(their, FLOAT32_FLOOR)
    return Row(str(case), stage, label, their, our, "ratio", ratio, FLOAT32_RATIO)


def _named(outcome: Outcome) -> Iterator[tuple[str, str, np.ndarray]]:
    for kind, arrays in outcome.items():
        for name, value in arrays.items():
            yield kind, name, value


def full_size_rows(case: Case, dtypes: Sequence[str]) -> list[Row]:
    """One forward pass of ``cases.full_size_case`` in each dtype."""
    weights, batch = pair.draw_weights(case, seed=0), pair.draw_batch(case, seed=0)
    wide = pair.cast(batch, "float64")
    truth = TorchSide(case, weights, "float64").infer(wide)
    rows = []
    if "float64" in dtypes:
        flax = FlaxSide(case, "float64")
        rows += compare(case, "full size", flax.infer(flax.variables(weights), wide), truth)
    if "float32" in dtypes:
        flax = FlaxSide(case, "float32")
        ours = flax.infer(flax.variables(weights), batch)
        theirs = _in_float32(case, weights, "infer", batch)
        for kind, name, true in _named(truth):
            our, *their = (
                pair.relative_l2(outcome[kind][name].astype(np.float64), true)
                for outcome in (ours, *theirs)
            )
            rows.append(_ratio_row(case, "full size", f"{name}, float32", our, max(their)))
    return rows


def formulas(steps: int) -> list[Row]:
    """Coarse mask (Eq. 1) and learning rates: the two sides' own formulas."""
    rows = []
    rng = np.random.default_rng(0)
    for side, mask_size in ((64, 16), (64, 4), (64, 32), (64, 64), (50, 16), (7, 3)):
        lge_mask = rng.integers(0, 4, (5, side, side), dtype=np.uint8)
        ours = np.asarray(coarse_mask(lge_mask, mask_size))
        theirs = torch_training.coarse_mask(torch.from_numpy(lge_mask), mask_size).numpy()
        found = pair.largest(ours, theirs)
        # Counts are exact integers below 2^24 and are divided once on both sides.
        values = found, found, "absolute", found, 0.0
        rows.append(Row("Eq. (1)", "formulas", f"coarse mask {side} to {mask_size}", *values))
    for name in pair.OPTIMISERS:
        settings = pair.optimiser_settings(name, steps)
        rate = jax.jit(learning_rate_schedule(settings))
        ours = np.array([float(rate(jnp.int32(step))) for step in range(steps)])
        theirs = np.array([torch_training.learning_rate(step, settings) for step in range(steps)])
        relative = float(np.max(np.abs(ours - theirs) / np.abs(theirs)))
        # A handful of operations, each rounding at 1.1e-16.
        values = pair.largest(ours, theirs), relative, "relative", relative, 1e-14
        label = f"learning rate, {OPTIMISER_NAMES[name]}"
        rows.append(Row("schedule", "formulas", label, *values))
    return rows
