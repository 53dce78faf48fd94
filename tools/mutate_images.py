"""Spoil small sources of images in every format, and see what becomes of them.

    python -m tools.mutate_images --inputs 2000 --seed 0

Every input is a sound source of one format with one change drawn from ``mutation/kinds.py``,
where its outcome was fixed before anything is read:

- *must refuse*: something is refused with a cause and a remedy, and what is not refused is what it
  would have been without the change.
- *must not matter*: every row of the manifest is the same, the hash of clip and mask included.
- *may change*: refused, or the columns that the change must touch (or any) differ in the manifest.

Whatever the group, no exception that nobody foresaw, no input that takes longer than 30 seconds,
and no more than 1 GB in all. A third of the inputs are of each group. All in one process, which
imports no JAX. Exit code 1 if one input violates this; ``--only N`` repeats one.
"""

import argparse
import collections
import dataclasses
import logging
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mvo_jax.data.cohort.work import Recipe, prepare_one
from mvo_jax.data.importers.cine import Options
from mvo_jax.data.importers.formats import choose_importer
from mvo_jax.data.importers.table import Table, read_table
from mvo_jax.data.slices import Rejected, Target
from mvo_jax.errors import EXIT_COMPARISON, UserError
from tools.mutation.kinds import MUTATIONS, REFUSED, SAME, SEEN, Mutation
from tools.mutation.sources import FRAMES, PIXEL_MM, SOURCES, Files

TARGET = Target(frames=FRAMES, image_size=16, spacing_mm=PIXEL_MM)
SECONDS, MOST_BYTES = 30, 1_000_000_000
_GROUPS = (REFUSED, SAME, SEEN)  # in turns
# Of a row: where it lies, which is not a property of the clip.
_PLACES = ("source", "result", "position")
_UNFORESEEN = "check the file, or leave it out"  # the remedy where any exception was caught


class TooLongError(BaseException):
    """An input took longer than it may; no reader may take it for damage."""


@dataclasses.dataclass
class Outcome:
    """What became of a source: rows of the manifest by case, and causes of what is refused."""

    rows: dict[str, dict[str, Any]]
    refused: list[UserError]


def read(folder: Path) -> Outcome:
    """Read a source as ``prepare`` does, up to the rows of the manifest."""
    out, scratch = Outcome({}, []), folder.with_name("scratch")
    try:
        table = folder / "table.csv"
        given = read_table(table) if table.exists() else Table()
        importer = choose_importer(folder)
        # PNG stores no size of a pixel; of the others it must come from the file.
        options = Options(pixel_mm=PIXEL_MM if importer.name == "png" else None, table=given)
        recipe = Recipe(importer.load, options, TARGET, folder)
        for series in importer.find(folder, options):
            for one in prepare_one(recipe, scratch, series):
                if isinstance(one, Rejected):
                    out.refused.append(UserError(one.cause, one.remedy))
                else:
                    out.rows[one["case_id"]] = {
                        k: v for k, v in one.items() if k not in _PLACES and k != "series"
                    }
    except UserError as error:
        out.refused.append(error)
    shutil.rmtree(scratch, ignore_errors=True)
    return out


def judge(mutation: Mutation, sound: Outcome, found: Outcome) -> str | None:
    """What is wrong with an outcome; None where it is as it must be."""
    for error in found.refused:
        if not error.cause.strip() or not error.remedy.strip():
            return "refused without a cause or a remedy"
        if error.remedy == _UNFORESEEN or "Traceback" in error.cause:
            return f"nobody foresaw it: {error.cause[-200:]}"
    may_tell = mutation.columns if mutation.group == SAME else ()

    def of(row: dict[str, Any] | None) -> dict[str, Any]:
        return {name: value for name, value in (row or {}).items() if name not in may_tell}

    changed = sorted(
        case for case, row in found.rows.items() if of(sound.rows.get(case)) != of(row)
    )
    if mutation.group == REFUSED:
        if not found.refused:
            return "nothing is refused"
        return _beside_refusals(sound, found)
    if mutation.group == SAME:
        if found.refused:
            return f"refused: {found.refused[0].cause[-200:]}"
        if changed or found.rows.keys() != sound.rows.keys():
            return f"changed: {changed}"
    if found.refused or not mutation.columns:
        return None
    if any(
        sound.rows[case].get(column) != found.rows[case].get(column)
        for case in sound.rows.keys() & found.rows.keys()
        for column in mutation.columns
    ):
        return None
    return f"none of {', '.join(mutation.columns)} tells of it"


def _beside_refusals(sound: Outcome, found: Outcome) -> str | None:
    """What of the rest differs, but for the notes and counts that tell of the refusal."""
    by_content = {row["sha256"]: row for row in sound.rows.values()}
    told = ("note", "images", "case_id", "slice_index")  # slices are counted with the refused ones
    for case, row in found.rows.items():
        before = by_content.get(row["sha256"], sound.rows.get(case))
        if before is None:
            return f"{case} is new"
        other = [k for k in row if k not in told and row[k] != before.get(k)]
        # Without a mask beside it the crop is placed otherwise, and nothing is labelled.
        if other and row["label"] != -1:
            return f"{case} is used and differs in {', '.join(other[:4])}"
    return None


def write(files: Files, folder: Path) -> None:
    """A source anew."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _stop(*_: object) -> None:
    raise TooLongError


def run(inputs: int, seed: int, only: int | None = None) -> Iterator[tuple[int, Mutation, str]]:
    """Spoil and read; yields (number, change, what is wrong or nothing) of every input."""
    sources = {form: make() for form, make in SOURCES.items()}
    by_group = {group: [m for m in MUTATIONS if m.group == group] for group in _GROUPS}
    before = signal.signal(signal.SIGALRM, _stop)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "source"
        sound = {}
        for form, files in sources.items():
            write(files, folder)
            sound[form] = read(folder)
            if sound[form].refused or not sound[form].rows:
                raise AssertionError(f"the sound source {form} is refused: {sound[form].refused}")
        for number in range(inputs) if only is None else [only]:
            draws = random.Random(f"{seed} {number}")
            kinds = by_group[_GROUPS[number % len(_GROUPS)]]
            mutation = kinds[number // len(_GROUPS) % len(kinds)]
            files = dict(sources[mutation.form])
            mutation.change(files, draws)
            if mutation.group == SEEN and not mutation.columns and files == sources[mutation.form]:
                yield number, mutation, ""
                continue
            write(files, folder)
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                wrong = judge(mutation, sound[mutation.form], read(folder))
            except TooLongError:
                wrong = f"took longer than {SECONDS} s"
            except Exception as error:  # whatever no reader foresaw
                wrong = f"{type(error).__name__}: {str(error)[:200]}"
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            yield number, mutation, wrong or ""
    signal.signal(signal.SIGALRM, before)


def main() -> int:
    """Run, and print a table and every violation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one input, by its number")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    start, cpu = time.monotonic(), time.process_time()
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    violations = []
    for number, mutation, wrong in run(arguments.inputs, arguments.seed, arguments.only):
        counts[mutation.group, mutation.form] += 1
        if wrong:
            violations.append(
                f"{number} {mutation.form}, {mutation.name} ({mutation.group}): {wrong}"
            )
            print(f"VIOLATION {violations[-1]}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if peak > MOST_BYTES:
        violations.append(f"the process took {peak / 1e6:.0f} MB")
        print(f"VIOLATION {violations[-1]}")
    if "jax" in sys.modules:
        violations.append("JAX was imported")
    forms = list(SOURCES)
    print(f"{'':<16}" + "".join(f"{form:>8}" for form in forms) + f"{'all':>8}")
    for group in _GROUPS:
        row = [counts[group, form] for form in forms]
        print(f"{group:<16}" + "".join(f"{n:>8}" for n in [*row, sum(row)]))
    print(
        f"{counts.total()} inputs, {len(violations)} violations, "
        f"{time.monotonic() - start:.0f} s ({time.process_time() - cpu:.0f} s of CPU), "
        f"at most {peak / 1e6:.0f} MB"
    )
    return EXIT_COMPARISON if violations else 0


if __name__ == "__main__":
    sys.exit(main())
