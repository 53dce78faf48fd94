"""``mvo-jax inspect COHORT_OR_SOURCE``: a table, checks, and a page with the clips."""

from pathlib import Path
from typing import TYPE_CHECKING

from mvo_jax.cli.flags import Flags, define_source_flags, parse, source_options
from mvo_jax.errors import EXIT_FINDINGS, UserError

if TYPE_CHECKING:
    from mvo_jax.inspect_images import Inspected


def _define(values: Flags) -> None:
    define_source_flags(values)
    values.string("out", "inspection.html", "Page to write.")
    values.integer("tiles", 48, "Most clips to show.", lower_bound=0, upper_bound=1000)
    values.integer("frames", 30, "Of a source: frames a clip.")
    values.integer("image_size", 64, "Of a source: pixels of a side.")
    values.float("spacing_mm", 2.0, "Of a source: side of a pixel.")


def _print(found: "Inspected") -> None:
    names = ("split", "patients", "cases", "positive", "negative", "unknown")
    head = ("split", "patients", "slices", "MVO", "no MVO", "unlabelled")
    table = [head, *(tuple(str(row[name]) for name in names) for row in found.table)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells))
    for key, value in found.facts.items():
        print(f"{key}: {value}")
    for finding in found.findings:
        print(f"{'FAILED' if finding.is_fault else 'look  '}  {finding.check}: {finding.cause}")
        for case in finding.cases[:3]:
            print(f"        {case}")


def main(arguments: list[str]) -> None:
    """Inspect the source, write the page and print what was found.

    Raises:
        UserError: the source cannot be read; or, with exit code 4, a check failed.
    """
    values = parse(arguments, _define, positional=("source",))
    from mvo_jax.data.slices import Target
    from mvo_jax.inspect_images import inspect_images

    out = Path(values.out).expanduser()
    found = inspect_images(
        Path(values.source),
        out,
        Target(values.frames, values.image_size, values.spacing_mm),
        form=values.format,
        options=source_options(values),
        tiles=values.tiles,
    )
    _print(found)
    print(f"page: {out}")
    faults = [finding for finding in found.findings if finding.is_fault]
    if faults:
        names = ", ".join(dict.fromkeys(finding.check for finding in faults))
        raise UserError(
            f"{len(faults)} of the checks failed: {names}",
            f"{faults[0].remedy}; all findings are in {out}",
            exit_code=EXIT_FINDINGS,
        )
    print("no check failed")
