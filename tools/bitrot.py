"""Flip single bits of a checkpoint, one at a time, and count how many are found.

    python -m tools.bitrot --flips 1000

Makes the checkpoints of a tiny run (or takes those of ``--workdir``, on a copy). Half of the flips
hit a random byte of all, half a random byte of a random file, so that the small files are hit as
well. Each is undone before the next. A flip is found if reading the newest checkpoint is *refused*,
or *falls back* to the one before; otherwise it is *missed*. Exit code 1 if one is missed.
"""

import argparse
import collections
import json
import logging
import random
import shutil
import sys
import tempfile
from pathlib import Path

from mvo_jax.errors import EXIT_COMPARISON, UserError
from mvo_jax.runs.checkpoint import Checkpoints

OUTCOMES = ("refused", "fell back", "missed")


def flip(path: Path, byte: int, bit: int) -> None:
    """Turn one bit of a file over."""
    with path.open("r+b") as file:
        file.seek(byte)
        (value,) = file.read(1)
        file.seek(byte)
        file.write(bytes([value ^ 1 << bit]))


def trial(folder: Path, kind: str, newest: Path) -> str:
    """Read the newest checkpoint of a run as a run would; one of ``OUTCOMES``."""
    checkpoints = Checkpoints(folder, create=False)
    try:
        return "missed" if checkpoints.read(kind).path == newest else "fell back"
    except UserError:
        return "refused"
    finally:
        checkpoints.finish()


def rot(folder: Path, kind: str, flips: int, *, seed: int) -> dict[str, dict[str, int]]:
    """Flip bits of the newest checkpoint of a run, which is left as it was.

    Args:
        kind: 'latest' or 'best'.

    Returns:
        Counts of ``OUTCOMES`` by what was hit.
    """
    checkpoints = Checkpoints(folder, create=False)
    path = folder / "checkpoints" / kind / str(checkpoints.steps(kind)[-1])
    checkpoints.finish()
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.stat().st_size)
    sizes = [file.stat().st_size for file in files]
    draws = random.Random(seed)
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for number in range(flips):
        file = draws.choices(files, sizes if number % 2 else None)[0]
        byte, bit = draws.randrange(file.stat().st_size), draws.randrange(8)
        parts = file.relative_to(path).parts
        hit = "array bytes" if "d" in parts else "/".join(parts)
        flip(file, byte, bit)
        counts[hit][trial(folder, kind, path)] += 1
        flip(file, byte, bit)
    if trial(folder, kind, path) != "missed":
        raise SystemExit("the checkpoint was not left as it was")
    return {hit: dict(counter) for hit, counter in sorted(counts.items())}


def main(arguments: list[str]) -> int:
    """Print the counts; exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--workdir", type=Path, help="run whose checkpoints to copy and damage")
    parser.add_argument("--which", choices=["latest", "best"], default="latest")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.getLogger("mvo_jax").setLevel(logging.ERROR)  # every fall back is a warning
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        if options.workdir:
            shutil.copytree(options.workdir / "checkpoints", folder / "checkpoints")
        else:
            from mvo_jax.runs.goodput import Clock
            from tools.tiny_run import start, tiny_config

            start(folder, Clock(), tiny_config(**{"train.total_steps": 8}))
        counts = rot(folder, options.which, options.flips, seed=options.seed)
    total = collections.Counter()
    for by_outcome in counts.values():
        total.update(by_outcome)
    print(json.dumps(counts, indent=1))
    print(f"{options.flips} flips: " + ", ".join(f"{total[k]} {k}" for k in OUTCOMES))
    return EXIT_COMPARISON if total["missed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
