"""Flip single bits of a checkpoint, one at a time, and count how many are noticed.

    python -m tools.bitrot --flips 1000

Makes the checkpoints of a tiny run (or takes those of ``--workdir``, on a copy). Half of the flips
hit a random byte of all, half a random byte of a random file, so that the small files are hit as
well. Each is undone before the next. A flip is *detected* if reading the checkpoint is refused;
*harmless* if it is read and every array and the metadata are those that were saved; *missed*
otherwise. ``--without_seal`` takes the seal away first, as a kill right after orbax had finished
would, so that only the hashes inside of the checkpoint are left. Exit code 1 if one is missed, or,
with the seal, if one is not detected.
"""

import argparse
import collections
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from mvo_jax.errors import EXIT_COMPARISON, UserError
from mvo_jax.runs.checkpoint import SEAL, Checkpoints


def flip(path: Path, byte: int, bit: int) -> None:
    """Turn one bit of a file over."""
    with path.open("r+b") as file:
        file.seek(byte)
        (value,) = file.read(1)
        file.seek(byte)
        file.write(bytes([value ^ 1 << bit]))


def trial(folder: Path, kind: str, expected: dict) -> str:
    """Read a checkpoint as a run would: 'detected', 'harmless' or 'missed'."""
    checkpoints = Checkpoints(folder, create=False)
    try:
        restored = checkpoints.read(kind)
    except UserError:
        return "detected"
    finally:
        checkpoints.finish()
    # `read` has compared the arrays with the hashes in the metadata.
    return "harmless" if restored.meta == expected else "missed"


def rot(folder: Path, kind: str, flips: int, *, seal: bool, seed: int) -> dict[str, dict[str, int]]:
    """Flip bits of the newest checkpoint of a run, which is left as it was.

    Args:
        folder: of a run; every other checkpoint of ``kind`` is removed.
        kind: 'latest' or 'best'.
        flips: how many, one at a time.
        seal: leave the seal in place.
        seed: of the draws.

    Returns:
        Counts of 'detected', 'harmless' and 'missed' by what was hit.
    """
    checkpoints = Checkpoints(folder, create=False)
    step = checkpoints.steps(kind)[-1]
    expected = checkpoints.read(kind).meta
    root = folder / "checkpoints" / kind
    for other in checkpoints.steps(kind)[:-1]:  # nothing to fall back to
        shutil.rmtree(root / str(other))
    checkpoints.finish()
    path = root / str(step)
    if not seal:
        (path / SEAL).unlink()
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.stat().st_size)
    sizes = [file.stat().st_size for file in files]
    draws = random.Random(seed)
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for number in range(flips):
        file = draws.choices(files, sizes if number % 2 else None)[0]
        byte, bit = draws.randrange(file.stat().st_size), draws.randrange(8)
        flip(file, byte, bit)
        parts = file.relative_to(path).parts
        hit = "array bytes" if "d" in parts else "/".join(parts)
        counts[hit][trial(folder, kind, expected)] += 1
        flip(file, byte, bit)
    if trial(folder, kind, expected) != "harmless":
        raise SystemExit("the checkpoint was not left as it was")
    return {hit: dict(counter) for hit, counter in sorted(counts.items())}


def main(arguments: list[str]) -> int:
    """Print the counts; exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--workdir", type=Path, help="run whose checkpoints to copy and damage")
    parser.add_argument("--which", choices=["latest", "best"], default="latest")
    parser.add_argument("--without_seal", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        if options.workdir:
            shutil.copytree(options.workdir / "checkpoints", folder / "checkpoints")
        else:
            from mvo_jax.runs.goodput import Clock
            from tools.tiny_run import start, tiny_config

            changes = {"train.total_steps": 4, "train.eval_every": 4, "optimizer.warmup_steps": 1}
            start(folder, Clock(), tiny_config(**changes))
        counts = rot(
            folder, options.which, options.flips, seal=not options.without_seal, seed=options.seed
        )
    total = collections.Counter()
    for by_outcome in counts.values():
        total.update(by_outcome)
    print(json.dumps(counts, indent=1))
    print(f"{options.flips} flips: " + ", ".join(f"{total[k]} {k}" for k in KINDS))
    bad = total["missed"] + (0 if options.without_seal else total["harmless"])
    return EXIT_COMPARISON if bad else 0


KINDS = ("detected", "harmless", "missed")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
