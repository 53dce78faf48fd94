"""``mvo-jax prepare SOURCE --out COHORT``: a folder of images to a prepared cohort."""

import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from mvo_jax.cli.flags import Flags, define_source_flags, parse, source_options
from mvo_jax.errors import UserError

if TYPE_CHECKING:
    from mvo_jax.data.cohort.storage import CohortFolder

log = logging.getLogger(__name__)


def _define(values: Flags) -> None:
    define_source_flags(values)
    values.string("out", None, "Folder of the cohort.", required=True)
    values.integer("frames", 30, "Frames a clip.")
    values.integer("image_size", 64, "Pixels along each side.")
    values.float("spacing_mm", 2.0, "Side of a pixel.")
    window = "Grey values that become 0 and 255, like 0,1500; robust percentiles of each clip if"
    values.list("window", None, f"{window} left out.")
    values.bool("end_diastole_first", False, "Start every clip at end-diastole.")
    shares = "Shares of the patients in train, validation and test."
    values.list("fractions", ["0.65", "0.15", "0.2"], shares)
    values.integer("folds", 0, "Folds in place of fractions.")
    values.integer("split_seed", 0, "Seed of the division.", lower_bound=0, upper_bound=2**32 - 1)
    values.integer("jobs", None, "Processes; all cores if left out.", lower_bound=1)
    values.bool("strict", False, "End at the first case that cannot be prepared.")


def _numbers(name: str, texts: list[str]) -> tuple[float, ...]:
    try:
        return tuple(map(float, texts))
    except ValueError:
        cause = f"--{name} is {','.join(texts)}"
        raise UserError(cause, "give numbers with commas between them") from None


def main(arguments: list[str]) -> None:
    """Prepare the cohort and say what it holds and what was rejected.

    Exit code 0: a cohort is there, though cases may be rejected (not with ``--strict``); 2: none.
    """
    values = parse(arguments, _define, positional=("source",))
    from mvo_jax.data.cohort.partition import Partition
    from mvo_jax.data.cohort.prepare import prepare, read_rejected
    from mvo_jax.data.processes import available_cores
    from mvo_jax.data.slices import Target

    window = None if values.window is None else _numbers("window", values.window)
    if window is not None and len(window) != 2:
        raise UserError(f"--window has {len(window)} numbers", "give two: --window 0,1500")
    target = Target(
        frames=values.frames,
        image_size=values.image_size,
        spacing_mm=values.spacing_mm,
        window=None if window is None else (window[0], window[1]),
        end_diastole_first=values.end_diastole_first,
    )
    fractions = _numbers("fractions", values.fractions)
    partition = Partition(fractions=fractions, folds=values.folds, seed=values.split_seed)
    cohort = prepare(
        Path(values.source),
        Path(values.out),
        format=values.format,
        options=source_options(values),
        target=target,
        partition=partition,
        jobs=available_cores() if values.jobs is None else values.jobs,
        strict=values.strict,
    )
    _print(cohort)
    _log_rejected(cohort.path, read_rejected(cohort.path))
    print(f"look at it: python -m mvo_jax inspect {cohort.path}")


def _print(cohort: "CohortFolder") -> None:
    """What the cohort holds."""
    from mvo_jax.data.cohort.partition import split_order

    manifest = cohort.manifest().values()
    print(
        f"{cohort.path}: {cohort.frames} frames of {cohort.image_size}x{cohort.image_size} pixels, "
        f"{cohort.spacing_mm:g} mm"
    )
    for split in sorted(cohort.cases, key=split_order):
        patients = len({row["patient_id"] for row in manifest if row["split"] == split})
        positive = cohort.positive[split]
        what = "without label, for prediction" if split == "unlabelled" else f"{positive} with MVO"
        print(f"  {split:12}{cohort.cases[split]:7} slices of {patients} patients, {what}")
    if unknown := sum(not row["spacing_mm"] for row in manifest):
        print(f"{unknown} slices do not say how large a pixel is; if it is known, give --pixel_mm")
    if unsure := sum(row["centre_from"] == "motion" for row in manifest):
        print(
            f"{unsure} crops are to be reviewed: the locator is not sure where the left ventricle "
            "is, so its motion placed them, an estimate (centre_from in the manifest is motion)"
        )


def _log_rejected(cohort: Path, rejected: list[dict[str, str]]) -> None:
    """What was rejected, and why most often."""
    if not rejected:
        return
    where = cohort / "rejected.csv"
    log.warning(f"{len(rejected)} cases were rejected, see {where}; the most frequent causes:")
    for remedy, count in Counter(row["remedy"] for row in rejected).most_common(3):
        example = next(row["cause"] for row in rejected if row["remedy"] == remedy)
        log.warning(f"  {count:6}  {example}\n          {remedy}")
