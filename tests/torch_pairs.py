"""One network in both frameworks with the same weights and the same batch, run and compared."""

from typing import Any

import numpy as np

from mvo_jax.interop.parity import pair, suite
from mvo_jax.interop.parity.cases import Case, full_size_case
from mvo_jax.interop.parity.pair import FlaxSide
from mvo_jax.interop.parity.results import Row


def broken(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """Value and bound of every row whose bound does not hold."""
    return {f"{row.stage}, {row.quantity}": (row.value, row.bound) for row in rows if not row.holds}


def check_float64(case: Case) -> tuple[FlaxSide, Any, dict[str, np.ndarray]]:
    """Inference and a training pass hold every bound; returns the sides to go on with.

    Returns:
        The Flax side (compiled), the torch weights and the batch.
    """
    weights = pair.draw_weights(case, seed=0)
    batch = pair.cast(pair.draw_batch(case, seed=0), "float64")
    flax = FlaxSide(case, "float64")
    rows = suite.stage_rows(flax, weights, batch)
    assert broken(rows) == {}
    quantities = {row.quantity for row in rows}
    assert {"loss", "logits", "gradient input"} <= quantities
    assert {f"gradient {name}" for name, _ in weights.named_parameters()} <= quantities
    statistics = {name for name, _ in weights.named_buffers() if "running" in name}
    assert statistics <= quantities
    return flax, weights, batch


def check_full_size_in_float32(model: str) -> None:
    """The published network: every intermediate and output within float32's rounding.

    float32 rounds at 6e-8, sums have up to some thousand terms, and up to 199 layers follow each
    other; a wrong window, epsilon or order of axes is 1e-3 or more.
    """
    case = full_size_case(model)
    weights, batch = pair.draw_weights(case, seed=0), pair.draw_batch(case, seed=0)
    flax = FlaxSide(case, "float32")
    ours = flax.infer(flax.variables(weights), batch)
    theirs = pair.TorchSide(case, weights, "float32").infer(batch)
    for kind, arrays in theirs.items():
        assert ours[kind].keys() == arrays.keys()
        for name, their in arrays.items():
            difference = np.abs(ours[kind][name] - their).max()
            assert difference <= 1e-5 * max(1.0, float(np.abs(their).max())), name
