"""The whole comparison: float64 stage by stage, training steps, float32 against float64, full size.

Importable without torch; the functions that compute need it.
"""

import concurrent.futures
import dataclasses
import importlib.metadata
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mvo_jax.data.coarse_mask import coarse_mask
from mvo_jax.errors import UserError
from mvo_jax.interop.parity.cases import (
    BOUNDS,
    FLOAT32_RATIO,
    Bounds,
    Case,
    Row,
    Trace,
    deep_case,
    table2_cases,
)

if TYPE_CHECKING:
    from mvo_jax.interop.parity.pair import Arrays, Outcome

DTYPES = ("float64", "float32")
BATCHES = 8  # different batches that training steps cycle through
# Draws of weights and clips over which float32 errors are pooled: one draw of a quantity of one
# number tells luck from precision no better than one throw of a coin. With 128 the ratio of two
# equally good sides has a standard deviation of 0.09 even there.
FLOAT32_DRAWS = 128
# A rounding error that turns a ReLU's input from one side of 0 to the other is another function,
# not a less precise one: the gradient of the input is then wrong by 1e-4 to 1e-2, else by 1e-6.
FLIPPED = 1e-5
# Where torch's error is below the last digit of float32, that digit is the measure.
FLOAT32_FLOOR = float(np.finfo(np.float32).eps)

Say = Callable[[str], None]


@dataclasses.dataclass
class Result:
    """What was found.

    Attributes:
        rows: every comparison.
        traces: drift along training steps.
    """

    rows: list[Row] = dataclasses.field(default_factory=list)
    traces: list[Trace] = dataclasses.field(default_factory=list)

    @property
    def broken(self) -> list[Row]:
        """Rows whose bound does not hold."""
        return [row for row in self.rows if not row.holds]


def require_torch() -> None:
    """Check that torch is installed.

    Raises:
        UserError: it is not.
    """
    try:
        importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            "this needs PyTorch, which is not installed",
            "pip install -r requirements-dev.txt (or pip install torch==2.13.0)",
        ) from error


def run(
    dtypes: Sequence[str] = DTYPES,
    *,
    steps: int = 100,
    full_size: bool = True,
    cases: Sequence[Case] | None = None,
    jobs: int = 2,
    say: Say = lambda text: None,
) -> Result:
    """Compare everything.

    Args:
        dtypes: 'float64', 'float32' or both.
        steps: training steps of each float64 trajectory.
        full_size: also one forward pass of the full network in each dtype.
        cases: networks to compare; by default every variant of Table 2 with every lowering, and a
            deep one. float32 takes of each network the first lowering, and all of the full one.
        jobs: processes that share the work.
        say: called with a line of progress.

    Returns:
        Rows and traces; nothing is raised when a bound does not hold.

    Raises:
        UserError: torch is not installed.
    """
    require_torch()
    cases = [*table2_cases(), deep_case()] if cases is None else list(cases)
    tasks = [(dtype, group) for dtype in dtypes for group in _by_network(cases)]
    result = Result()
    with jax.enable_x64(True):
        result.rows += formulas(steps)
    # Most of the time is compilation, which uses one core.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        running = {
            pool.submit(_compare_network, dtype, group, steps): (dtype, group)
            for dtype, group in tasks
        }
        found = {}
        for future in concurrent.futures.as_completed(running):
            dtype, group = running[future]
            found[dtype, group[0]] = future.result()
            say(f"{dtype}: {group[0].options['variant']}, {len(group)} lowerings")
    for dtype, group in tasks:
        result.rows += found[dtype, group[0]].rows
        result.traces += found[dtype, group[0]].traces
    if full_size:
        with jax.enable_x64(True):
            result.rows += full_size_rows(dtypes)
        say("full size, 30x64x64")
    return result


def _compare_network(dtype: str, group: list[Case], steps: int) -> Result:
    """One network with each of its lowerings, in a process of its own."""
    import torch

    # Small tensors gain nothing from threads that wait for each other.
    torch.set_num_threads(1)
    result = Result()
    with jax.enable_x64(True):
        if dtype == "float64":
            _compare_float64(group, steps, result)
        else:
            full = group[0].options["variant"] == "full"
            for case in group if full else group[:1]:
                result.rows += float32_rows(case)
    return result


def _by_network(cases: Sequence[Case]) -> list[list[Case]]:
    """Cases that differ in their lowering only, together."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(repr(dataclasses.replace(case, lowering="")), []).append(case)
    return list(groups.values())


def _compare_float64(group: Sequence[Case], steps: int, result: Result) -> None:
    """All stages and trajectories of one network with each lowering.

    The torch side of a trajectory runs once: the dropout masks it is given do not depend on the
    lowering, which is checked.
    """
    from mvo_jax.interop.parity import pair

    network = group[0]
    weights = pair.draw_weights(network, seed=0)
    batches = [pair.cast(pair.draw_batch(network, seed=seed), "float64") for seed in range(BATCHES)]
    paths: dict[str, Any] = {}
    for case in group:
        flax = pair.FlaxSide(case, "float64")
        variables = flax.variables(weights)
        result.rows += stage_rows(case, flax, weights, batches[0])
        for name in pair.OPTIMISERS:
            settings = pair.optimiser_settings(name, steps)
            losses, path, masks = flax.steps(variables, batches, settings, steps)
            if name not in paths:
                side = pair.TorchSide(case, weights, "float64")
                paths[name] = (*side.steps(batches, settings, masks), masks)
            torch_losses, torch_path, torch_masks = paths[name]
            trace = Trace(
                str(case),
                name,
                "float64",
                torch_losses,
                [abs(a - b) for a, b in zip(losses, torch_losses, strict=True)],
                [pair.relative_l2(a, b) for a, b in zip(path, torch_path, strict=True)],
            )
            result.traces.append(trace)
            result.rows += trajectory_rows(trace, BOUNDS)
            result.rows.append(_masks_row(case, name, masks, torch_masks))


def _masks_row(case: Case, name: str, ours: list["Arrays"], theirs: list["Arrays"]) -> Row:
    different = sum(
        0 if np.array_equal(our.get(key, ()), value) else 1
        for our, their in zip(ours, theirs, strict=True)
        for key, value in their.items()
    )
    what = "dropout masks that differ between lowerings"
    stage = f"{_OPTIMISER_NAMES[name]} steps"
    return Row(str(case), stage, what, different, different, "absolute", different, 0.0)


_OPTIMISER_NAMES = {"adamw": "AdamW", "sgd": "SGD"}


def stage_rows(case: Case, flax: Any, weights: Any, batch: "Arrays") -> list[Row]:
    """Inference and one training pass in float64."""
    from mvo_jax.interop.parity import pair

    variables = flax.variables(weights)
    torch_side = pair.TorchSide(case, weights, "float64")
    rows = _compare(case, "inference", flax.infer(variables, batch), torch_side.infer(batch))
    ours, _, _ = flax.train(variables, batch, jax.random.key(1))
    theirs = torch_side.train(batch, ours["dropout"])
    return rows + _compare(case, "training step", ours, theirs)


def _compare(case: Case, stage: str, ours: "Outcome", theirs: "Outcome") -> list[Row]:
    from mvo_jax.interop.parity.pair import largest, relative_l2

    rows = []
    for kind, their_arrays in theirs.items():
        our_arrays = ours[kind]
        for name in sorted(our_arrays.keys() | their_arrays.keys()):
            label = f"{_KIND_NAMES[kind]}{name}"
            if name not in our_arrays or name not in their_arrays:
                # One side has a quantity that the other lacks: NaN breaks every bound.
                rows.append(Row(str(case), stage, label, math.nan, math.nan, "absolute", *_NAN))
                continue
            our, their = our_arrays[name], their_arrays[name]
            absolute, relative = largest(our, their), relative_l2(our, their)
            if kind == "gradients":
                measure, value, bound = _gradient_verdict(case, name, our, their, relative)
            elif kind == "statistics":
                measure, value, bound = "absolute", absolute, BOUNDS.statistics
            else:
                scale = max(1.0, float(np.abs(their).max())) if kind == "intermediates" else 1.0
                measure, value, bound = "absolute", absolute, BOUNDS.forward * scale
            rows.append(Row(str(case), stage, label, absolute, relative, measure, value, bound))
    return rows


_NAN = (math.nan, 0.0)
_KIND_NAMES = {"values": "", "intermediates": "", "gradients": "gradient ", "statistics": ""}


def _gradient_verdict(
    case: Case, name: str, our: np.ndarray, their: np.ndarray, relative: float
) -> tuple[str, float, float]:
    size = float(np.linalg.norm(their))
    if case.zero_gradient(name):
        return "absolute", max(size, float(np.linalg.norm(our))), BOUNDS.zero_gradient
    # A gradient of nothing would make the comparison empty.
    return "relative", relative if size > 1e-6 else math.nan, BOUNDS.gradient


def trajectory_rows(trace: Trace, bounds: Bounds) -> list[Row]:
    """Bounds along training steps: the loss of each step, and the parameters at the end."""
    stage = f"{_OPTIMISER_NAMES[trace.optimiser]} steps"
    rows = []
    for first, last, bound in (
        (0, 30, bounds.loss_after_30),
        (30, len(trace.loss), bounds.loss_after_100),
    ):
        difference = trace.loss_difference[first:last]
        if not difference:
            continue
        end = min(last, len(trace.loss))
        absolute = float(np.max(difference))
        relative = float(np.max(np.array(difference) / np.abs(trace.loss[first:last])))
        rows.append(
            Row(
                trace.case,
                stage,
                f"loss, steps {first + 1} to {end}",
                absolute,
                relative,
                "absolute",
                absolute,
                bound,
            )
        )
        drift = float(np.max(trace.parameter_difference[first:last]))
        rows.append(
            Row(
                trace.case,
                stage,
                f"parameters, steps {first + 1} to {end}",
                math.nan,
                drift,
                "relative",
                drift,
                bound,
            )
        )
    return rows


def float32_rows(case: Case, *, draws: int = FLOAT32_DRAWS) -> list[Row]:
    """Errors of both float32 sides against torch in float64, pooled over draws.

    In these rows ``absolute`` is torch's relative error and ``relative`` ours.
    """
    from mvo_jax.interop.parity import pair

    flax = pair.FlaxSide(case, "float32")
    # Squared norms by draw: of our error, of torch's, and of the truth.
    squares: dict[tuple[str, str], list[list[float]]] = {}
    for seed in range(draws):
        weights = pair.draw_weights(case, seed=seed)
        batch = pair.draw_batch(case, seed=seed)
        ours, _, _ = flax.train(flax.variables(weights), batch, jax.random.key(seed))
        dropout = ours["dropout"]
        theirs = pair.TorchSide(case, weights, "float32").train(batch, dropout)
        wide = pair.cast(batch, "float64")
        truth = pair.TorchSide(case, weights, "float64").train(wide, dropout)
        for (kind, name), true in _named(truth):
            sides = (ours[kind][name] - true, theirs[kind][name] - true, true)
            row = [float(np.square(side).sum()) for side in sides]
            squares.setdefault((kind, name), []).append(row)

    by_draw = {quantity: np.array(rows) for quantity, rows in squares.items()}
    of_input = by_draw["gradients", "input"]
    flipped = np.sqrt(of_input[:, :2] / of_input[:, 2:]) > FLIPPED
    smooth = ~flipped.any(axis=1)
    counts = flipped.sum(axis=0)
    label = f"draws where a ReLU flips, of {draws} (torch: {counts[1]})"
    share = float(1 - smooth.mean())
    # More than half would leave too few gradients to compare.
    found = float(counts[0]), share, "relative", share, 0.5
    rows = [Row(str(case), "float32", label, *found)]
    for (kind, name), sums in by_draw.items():
        if kind == "gradients" and case.zero_gradient(name):
            continue  # nothing but rounding on either side
        our, their, true = sums[smooth if kind == "gradients" else slice(None)].sum(axis=0)
        our, their = float(np.sqrt(our / true)), float(np.sqrt(their / true))
        ratio = our / max(their, FLOAT32_FLOOR)
        label = f"{_KIND_NAMES[kind]}{name}"
        rows.append(Row(str(case), "float32", label, their, our, "ratio", ratio, FLOAT32_RATIO))
    return rows


def _named(outcome: "Outcome") -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    for kind, arrays in outcome.items():
        for name, value in arrays.items():
            yield (kind, name), value


def full_size_rows(dtypes: Sequence[str]) -> list[Row]:
    """One forward pass of the full network, 30x64x64, in each dtype."""
    from mvo_jax.interop.parity import pair

    # im2col: XLA:CPU has a fast float64 matrix product, but a slow float64 convolution.
    case = Case(
        "im2col_conv1d",
        {
            "variant": "full",
            "width": 64,
            "num_heads": 8,
            "stage_sizes": (2, 2, 2, 2),
            "decoder_layout": "released",
        },
        clip=(30, 64, 64, 1),
        batch=1,
    )
    weights, batch = pair.draw_weights(case, seed=0), pair.draw_batch(case, seed=0)
    truth = pair.TorchSide(case, weights, "float64").infer(pair.cast(batch, "float64"))
    rows = []
    if "float64" in dtypes:
        flax = pair.FlaxSide(case, "float64")
        ours = flax.infer(flax.variables(weights), pair.cast(batch, "float64"))
        rows += _compare(case, "full size", ours, truth)
    if "float32" in dtypes:
        flax = pair.FlaxSide(case, "float32")
        ours = flax.infer(flax.variables(weights), batch)
        theirs = pair.TorchSide(case, weights, "float32").infer(batch)
        for (kind, name), true in _named(truth):
            our, their = (
                pair.relative_l2(side[kind][name].astype(np.float64), true)
                for side in (ours, theirs)
            )
            ratio = our / max(their, FLOAT32_FLOOR)
            label = f"{name}, float32"
            bound = FLOAT32_RATIO
            rows.append(Row(str(case), "full size", label, their, our, "ratio", ratio, bound))
    return rows


def formulas(steps: int) -> list[Row]:
    """Coarse mask (Eq. 1) and learning rates: the two sides' own formulas."""
    import torch

    from mvo_jax.interop.parity import pair
    from mvo_jax.interop.torch_models import training as torch_training

    rows = []
    rng = np.random.default_rng(0)
    for side, mask_size in ((64, 16), (64, 4), (64, 32), (64, 64), (50, 16), (7, 3)):
        lge_mask = rng.integers(0, 4, (5, side, side), dtype=np.uint8)
        ours = np.asarray(coarse_mask(lge_mask, mask_size))
        theirs = torch_training.coarse_mask(torch.from_numpy(lge_mask), mask_size).numpy()
        difference = pair.largest(ours, theirs)
        label = f"coarse mask {side} to {mask_size}"
        # Counts are exact integers below 2^24 and are divided once on both sides.
        rows.append(
            Row("Eq. (1)", "formulas", label, difference, difference, "absolute", difference, 0.0)
        )
    for name in pair.OPTIMISERS:
        ours, theirs = pair.schedules(name, steps)
        relative = float(np.max(np.abs(ours - theirs) / np.abs(theirs)))
        label = f"learning rate, {_OPTIMISER_NAMES[name]}"
        absolute = pair.largest(ours, theirs)
        # A handful of operations, each rounding at 1.1e-16.
        rows.append(
            Row("schedule", "formulas", label, absolute, relative, "relative", relative, 1e-14)
        )
    return rows


@dataclasses.dataclass(frozen=True)
class Family:
    """Rows of one kind: how many, and the one that came closest to its bound or broke it most."""

    name: str
    stage: str
    count: int
    worst: Row


def families(rows: Sequence[Row]) -> list[Family]:
    """Rows grouped by stage and kind of quantity, in the order of their first occurrence."""
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        grouped.setdefault((row.stage, _family(row.quantity)), []).append(row)
    return [
        Family(name, stage, len(members), max(members, key=_strain))
        for (stage, name), members in grouped.items()
    ]


def _strain(row: Row) -> float:
    """Value over bound; infinite for a broken bound that is 0 or a value that is NaN."""
    if not row.holds:
        return math.inf if math.isnan(row.value) or row.bound == 0 else row.value / row.bound
    return row.value / row.bound if row.bound else 0.0


def _family(quantity: str) -> str:
    """Gradients by part of the network, statistics together, everything else by its own name."""
    if quantity.startswith("gradient "):
        name = quantity.removeprefix("gradient ")
        return f"gradient, {_PARTS.get(name.split('.')[0], name)}"
    if quantity.endswith(("running_mean", "running_var")):
        return "running " + quantity.rpartition("running_")[2]
    if quantity.startswith("draws where"):
        return "draws where a ReLU flips"
    return quantity


_PARTS = {
    "trunk": "trunk",
    "bert": "encoder",
    "fc_action": "classifier",
    "pseudo_branch": "decoder",
}
