"""``python -m mvo_jax inspect COHORT_OR_SOURCE``: a table, checks, and a page with the clips."""

import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from mvo_jax.cli.flags import define_source_flags, parse, source_options
from mvo_jax.data.checks import Finding, Inspection
from mvo_jax.data.clips import Source, open_source, read_clips
from mvo_jax.data.cohort.partition import split_order
from mvo_jax.data.importers.cine import printable
from mvo_jax.data.slices import Clip, Rejected, Target
from mvo_jax.errors import EXIT_FINDINGS, UserError
from mvo_jax.evaluation.pages.montage import write_montage

Tile = tuple[Clip, list[str]]


def _define(values: flags.FlagValues) -> None:
    define_source_flags(values)
    flags.DEFINE_string("out", "inspection.html", "Page to write.", flag_values=values)
    flags.DEFINE_integer(
        "tiles", 48, "Most clips to show.", lower_bound=0, upper_bound=1000, flag_values=values
    )
    flags.DEFINE_integer("frames", 30, "Of a source: frames a clip.", flag_values=values)
    flags.DEFINE_integer("image_size", 64, "Of a source: pixels of a side.", flag_values=values)
    flags.DEFINE_float("spacing_mm", 2.0, "Of a source: side of a pixel.", flag_values=values)


class Montage:
    """Clips to show: the first that have something wrong, and a fair sample of the others.

    Args:
        limit: most clips; half of them may be wrong ones.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._flawed: list[tuple[int, Tile]] = []
        self._sample: list[tuple[int, Tile]] = []
        self._seen = 0
        self._draws = random.Random(0)

    def offer(self, clip: Clip, wrong: list[str]) -> None:
        """Keep a clip or not."""
        place, tile = self._seen, (clip, wrong)
        self._seen += 1
        if wrong and len(self._flawed) < self._limit // 2:
            self._flawed.append((place, tile))
        elif len(self._sample) < self._limit:
            self._sample.append((place, tile))
        elif self._limit:
            # Reservoir sampling: every clip has the same chance, and none is read twice.
            other = self._draws.randrange(place + 1)
            if other < self._limit:
                self._sample[other] = (place, tile)

    def tiles(self) -> list[Tile]:
        """Wrong ones first, then by the order of the source."""
        rest = sorted(self._sample[: self._limit - len(self._flawed)], key=lambda item: item[0])
        return [tile for _, tile in [*self._flawed, *rest]]


def _rows(inspection: Inspection) -> list[dict[str, Any]]:
    return [
        {
            "split": name,
            "cases": count.cases,
            "patients": len(count.patients),
            "positive": count.positive,
            "negative": count.negative,
            "unknown": count.unknown,
            "positive_patients": len(count.positive_patients),
        }
        for name, count in sorted(inspection.splits.items(), key=lambda item: split_order(item[0]))
    ]


def _facts(source: Source, inspection: Inspection) -> dict[str, str]:
    def listed(counts: dict[Any, int]) -> str:
        return ", ".join(f"{key} ({n})" for key, n in sorted(counts.items(), key=lambda i: -i[1]))

    shapes = {f"{s[0]} frames of {s[1]}x{s[2]}": n for s, n in inspection.shapes.items()}
    placed = {"crops placed by": listed(dict(inspection.placed))} if inspection.placed else {}
    rejected = source.rejected if source.is_cohort else len(inspection.rejected)
    see = f" when it was prepared, see {source.path / 'rejected.csv'}" if source.rejected else ""
    return {
        "kind": source.kind,
        "clips": listed(shapes),
        "frames in the source": listed(dict(inspection.source_frames)),
        "pixel, mm": listed(dict(inspection.spacings)),
        **placed,
        "rejected": f"{rejected}{see}",
    }


def _print(rows: Sequence[dict[str, Any]], facts: dict[str, str], found: list[Finding]) -> None:
    names = ("split", "patients", "cases", "positive", "negative", "unknown")
    head = ("split", "patients", "slices", "MVO", "no MVO", "unlabelled")
    table = [head, *(tuple(str(row[name]) for name in names) for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells))
    for key, value in facts.items():
        print(f"{key}: {value}")
    for finding in found:
        print(f"{'FAILED' if finding.is_fault else 'look  '}  {finding.check}: {finding.cause}")
        for case in finding.cases[:3]:
            print(f"        {case}")


def main(arguments: list[str]) -> list[Finding]:
    """Inspect the source, print what was found, write the page; returns the findings."""
    values = parse(arguments, _define, positional=("source",))
    options = source_options(values)
    target = Target(values.frames, values.image_size, values.spacing_mm)
    inspection, montage = Inspection(), Montage(values.tiles)
    with tempfile.TemporaryDirectory() as scratch:
        source = open_source(
            Path(values.source),
            form=values.format,
            options=options,
            scratch=Path(scratch) / "unpacked",
        )
        clips = read_clips(source, None if source.is_cohort else target)
        shown = sys.stderr.isatty()
        for one in tqdm(clips, unit="slice", desc="Inspecting", disable=not shown):
            if isinstance(one, Rejected):
                inspection.add_rejected(one)
            else:
                montage.offer(one, inspection.add(one))
    rows, facts, found = _rows(inspection), _facts(source, inspection), inspection.findings()
    out = Path(values.out).expanduser()
    write_montage(
        out,
        title=printable(source.path),
        table=rows,
        facts=facts,
        findings=found,
        tiles=montage.tiles(),
    )
    _print(rows, facts, found)
    print(f"page: {out}")
    faults = [finding for finding in found if finding.is_fault]
    if faults:
        names = ", ".join(dict.fromkeys(finding.check for finding in faults))
        raise UserError(
            f"{len(faults)} of the checks failed: {names}",
            f"{faults[0].remedy}; all findings are in {out}",
            exit_code=EXIT_FINDINGS,
        )
    print("no check failed")
    return found
