"""``python -m mvo_jax parity``: is the Flax network equal to the PyTorch one?"""

import importlib.metadata
import os
import platform
import sys
import time

import jax
from absl import flags

from mvo_jax.cli.flags import parse
from mvo_jax.errors import EXIT_COMPARISON, UserError
from mvo_jax.interop.parity import suite
from mvo_jax.interop.parity.report import text_table, value_text, write_html, write_json


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "dtype", "float64", [*suite.DTYPES, "both"], "Precision to compare in.", flag_values=values
    )
    flags.DEFINE_integer(
        "steps", 100, "Training steps of AdamW and of SGD.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_bool(
        "full_size", True, "Also one forward pass of the full network.", flag_values=values
    )
    flags.DEFINE_integer(
        "jobs", 2, "Processes that share the work.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string("report", "", "HTML page to write.", flag_values=values)
    flags.DEFINE_string("json", "", "JSON file to write.", flag_values=values)


def main(arguments: list[str]) -> None:
    """Compare, print the table and write what was asked for.

    Raises:
        UserError: a bound does not hold (exit code 1), or torch is missing.
    """
    values = parse(arguments, _define)
    dtypes = suite.DTYPES if values.dtype == "both" else (values.dtype,)
    suite.require_torch()
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - start:6.0f} s  {text}", file=sys.stderr)

    result = suite.run(
        dtypes, steps=values.steps, full_size=values.full_size, jobs=values.jobs, say=say
    )
    seconds = round(time.perf_counter() - start)
    about = {
        **{name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "torch")},
        "backend": jax.default_backend(),
        "processor": platform.machine(),
        "dtype": "+".join(dtypes),
        "steps": values.steps,
        "seconds": seconds,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") or "none",
    }
    print(text_table(result))
    if values.report:
        write_html(values.report, result, about)
    if values.json:
        write_json(values.json, result, about)
    broken = result.broken
    print(f"{len(result.rows)} comparisons in {seconds} s, {len(broken)} broken")
    if broken:
        worst = max(broken, key=lambda row: row.value / (row.bound or 1))
        raise UserError(
            f"{len(broken)} of {len(result.rows)} bounds are broken, first of all "
            f"{worst.quantity} of {worst.case}: {value_text(worst)}, bound {worst.bound:g}",
            "see the table; --json keeps every value",
            exit_code=EXIT_COMPARISON,
        )
