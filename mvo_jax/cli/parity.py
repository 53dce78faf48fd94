"""``python -m mvo_jax parity``: is a Flax network equal to its PyTorch twin?"""

import importlib.metadata
import os
import platform
import time

from mvo_jax.cli.flags import Flags, parse
from mvo_jax.errors import EXIT_COMPARISON, UserError
from mvo_jax.interop.torch_models import TWINS


def _define(values: Flags) -> None:
    values.enum("model", "mvo_net", list(TWINS), "Which network.")
    values.enum("dtype", "float64", ["float64", "float32", "both"], "Precision to compare in.")
    values.integer("steps", 100, "Training steps of AdamW and of SGD.", lower_bound=1)
    values.bool("full_size", True, "Also one forward pass of the published network.")
    values.integer("jobs", 2, "Processes that share the work.", lower_bound=1)
    values.string("report", "", "HTML page to write.")
    values.string("json", "", "JSON file to write.")


def main(arguments: list[str]) -> None:
    """Compare, print the table and write what was asked for.

    Raises:
        UserError: a bound does not hold (exit code 1), or torch is missing.
    """
    values = parse(arguments, _define)
    try:
        versions = {n: importlib.metadata.version(n) for n in ("torch", "jax", "flax", "optax")}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"this needs {error.name}, which is not installed",
            "pip install -r requirements-dev.txt",
        ) from error
    import jax

    from mvo_jax.interop.parity import report, suite

    dtypes = suite.DTYPES if values.dtype == "both" else (values.dtype,)
    start, options = time.perf_counter(), {"full_size": values.full_size, "jobs": values.jobs}
    result = suite.run(values.model, dtypes, steps=values.steps, **options)
    seconds = round(time.perf_counter() - start)
    about = {
        "model": values.model,
        **versions,
        "backend": jax.default_backend(),
        "processor": platform.machine(),
        "dtype": "+".join(dtypes),
        "steps": values.steps,
        "seconds": seconds,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") or "none",
    }
    print(report.text_table(result))
    if values.report:
        report.write_html(values.report, result, about)
    if values.json:
        report.write_json(values.json, result, about)
    print(f"{len(result.rows)} comparisons in {seconds} s, {len(result.broken)} broken")
    if broken := result.broken:
        worst = max(broken, key=lambda row: row.strain)
        raise UserError(
            f"{len(broken)} of {len(result.rows)} bounds are broken, first of all "
            f"{worst.quantity} of {worst.case}: {report.value_text(worst)}, bound {worst.bound:g}",
            "see the table; --json keeps every value",
            exit_code=EXIT_COMPARISON,
        )
