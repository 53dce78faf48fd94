"""The four variants of the paper's Table 2, several seeds each, as one Markdown table.

python -m benchmarks.table2 --out runs/table2 --seeds 0,1,2

Trains ``configs/ablations.py:NAME-quick`` (reduced network, simulated cohort, preset ``paper``) and
scores the 1000 cases of ``test_large``. Finished runs are kept, so an interrupted command goes on.
The paired DeLong test compares each variant's probability, averaged over its seeds, with that of
the full method.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from mvo_jax.evaluation.predictions import Predictions, read_predictions
from mvo_jax.evaluation.statistics import delong_interval, paired_delong_test
from mvo_jax.files import replace_file

VARIANTS = ("backbone", "bert", "cgmr", "full")
PAPER_AUC = {"backbone": 64.45, "bert": 65.45, "cgmr": 67.97, "full": 72.70}
SPLIT = "test_large"


def run(variant: str, seed: int, out: Path, overrides: list[str]) -> Path:
    """Train and score one run unless it is finished; returns its folder."""
    folder = out / f"{variant}-seed{seed}"
    if not (folder / f"metrics_{SPLIT}.json").exists():
        config = f"configs/ablations.py:{variant}-quick"
        train = ["train.py", "--config", config, f"--config.seed={seed}", *overrides]
        for command in (train, ["eval.py", "--split", SPLIT]):
            subprocess.run([sys.executable, *command, "--workdir", str(folder)], check=True)
    return folder


def mean_predictions(folders: list[Path]) -> Predictions:
    """Probability of each case averaged over runs."""
    runs = [read_predictions(f / f"predictions_{SPLIT}.csv", split=SPLIT)[0] for f in folders]
    first = runs[0]
    return Predictions(
        split=SPLIT,
        case_id=first.case_id,
        patient_id=first.patient_id,
        label=first.label,
        probability=np.mean([r.probability for r in runs], axis=0),
    )


def table(folders: dict[str, list[Path]]) -> str:
    """Markdown: AUC of each seed, their mean and spread, the mean prediction, and its test."""
    averaged = {variant: mean_predictions(paths) for variant, paths in folders.items()}
    full = averaged["full"]
    lines = [
        "| variant | AUC by seed | mean (sd) | mean prediction, 95 % | full minus it, p | paper |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for variant, paths in folders.items():
        aucs = [
            100 * json.loads((p / f"metrics_{SPLIT}.json").read_text())["metrics"]["auc"]["value"]
            for p in paths
        ]
        mean = averaged[variant]
        interval = delong_interval(mean.label, mean.probability)
        low, high = 100 * interval.low, 100 * interval.high
        test = paired_delong_test(mean.label, full.probability, mean.probability)
        verdict = "-" if variant == "full" else f"{100 * test.difference:+.1f}, p = {test.p:.3f}"
        lines.append(
            f"| {variant} | {', '.join(f'{a:.1f}' for a in aucs)} | {np.mean(aucs):.1f} "
            f"({np.std(aucs, ddof=1):.1f}) | {100 * interval.value:.1f} ({low:.1f} to {high:.1f}) "
            f"| {verdict} | {PAPER_AUC[variant]:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, then print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/table2"))
    parser.add_argument("--seeds", default="0,1,2")
    arguments, overrides = parser.parse_known_args()
    seeds = [int(s) for s in arguments.seeds.split(",")]
    # Seed by seed, so that an interrupted table has every variant.
    folders: dict[str, list[Path]] = {variant: [] for variant in VARIANTS}
    for seed in seeds:
        for variant in VARIANTS:
            folders[variant].append(run(variant, seed, arguments.out, overrides))
    text = table(folders)
    replace_file(arguments.out / "table2.md", text)
    print(text)


if __name__ == "__main__":
    main()
