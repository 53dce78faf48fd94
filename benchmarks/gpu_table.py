"""The table of a folder that ``gpu_all.sh`` has filled: ``python benchmarks/gpu_table.py OUT``."""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, installed or not

from benchmarks import data_step, interleaved, run_8000


def rows_of(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """Rows of all files whose name matches, in the order of their names."""
    files = sorted(folder.glob(pattern))
    return [row for path in files for row in json.loads(path.read_text())["rows"]]


def real_against_fixed(
    run: dict[str, Any], training: list[dict[str, Any]]
) -> tuple[float, float] | None:
    """Milliseconds a step of the whole run, and of the fixed batch with all else the same."""
    for row in training:
        same = all(row.get(name) == run[name] for name in ("batch", "dtype", "chunk"))
        if row["impl"] == "jax" and same and row["about"]["lowering"] == run["lowering"]:
            return 1e3 * run["batch"] / run["clips_per_s"], 1e3 * row["median_s"]
    return None


def main(arguments: list[str]) -> int:
    """Print what is there; 1 where a part failed or nothing is there."""
    folder = Path(*arguments)
    runs, data = rows_of(folder, "run_8000.json"), rows_of(folder, "data.json")
    training, inference = rows_of(folder, "train_*.json"), rows_of(folder, "inference*.json")
    for title, rows, show in (
        ("Training steps", training, interleaved.print_table),
        ("Inference", inference, interleaved.print_table),
        ("Real data against a fixed batch", data, data_step.print_table),
    ):
        if rows:
            print(title)
            show(rows)
            print()
    for run in runs:
        run_8000.print_table(run)
        pair = real_against_fixed(run, training)
        if pair:
            real, fixed = pair
            print(
                f"  {real:.2f} ms a step on real data, {fixed:.2f} ms on a fixed batch: "
                f"{real / fixed:.3f}"
            )
        print()
    versions = {
        key: row["about"][key]
        for row in training + inference
        for key in ("device", "jax", "flax", "torch", "cudnn")
        if row["about"].get(key)
    }
    print("  ".join(f"{key} {value}" for key, value in versions.items()))
    parts = folder / "parts.txt"
    lines = parts.read_text().splitlines() if parts.is_file() else []
    print("\n".join(lines))
    complete = bool(lines) and all(": done" in line or "no time" in line for line in lines)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
