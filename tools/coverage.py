"""How often the intervals of evaluation/readers.py hold the truth, by simulation.

    python tools/coverage.py --repetitions 4000

Every repetition draws cases, some rows of a table and some seeds a row: the score of a case is its
class times the seed's separation, plus a part that all seeds share (difficult cases), a part of its
row, and one of its own. Printed is the share of 95 % intervals that hold the true mean AUC and the
true difference of two rows, in percent, with its standard error.
"""

import argparse
import itertools

import numpy as np
from scipy.special import ndtri

from mvo_jax.evaluation.readers import SeedVariance, difference, mean_auc, readers, seed_variances

ROWS, AUC, CASES = 4, 0.73, (100, 200)  # of a table; cases with MVO and without
SHARED, ROW = 0.6, 0.15  # of the variance of a score; the rest is the seed's own


def simulate(
    draws: np.random.Generator, rows: int, seeds: int, *, auc: float, sd: float, cases: tuple
) -> tuple[np.ndarray, np.ndarray]:
    """(label [N], score [rows, seeds, N]); every row has the same true mean AUC."""
    label = np.repeat([1, 0], cases)
    of_seed = np.clip(auc + sd * draws.standard_normal((rows, seeds, 1)), 0.51, 0.99)
    noise = (
        SHARED**0.5 * draws.standard_normal(label.size)
        + ROW**0.5 * draws.standard_normal((rows, 1, label.size))
        + (1 - SHARED - ROW) ** 0.5 * draws.standard_normal((rows, seeds, label.size))
    )
    return label, 2**0.5 * ndtri(of_seed) * label + noise


def coverage(repetitions: int, seeds: int, sd: float) -> list:
    """[held by the interval of the mean, of the difference, without pooling: both]."""
    draws = np.random.default_rng([ROWS, seeds, round(1000 * sd)])
    held = np.zeros(4)
    for _ in range(repetitions):
        label, score = simulate(draws, ROWS, seeds, auc=AUC, sd=sd, cases=CASES)
        table = {str(i): readers(label, list(row)) for i, row in enumerate(score)}
        own = {
            key: SeedVariance(max(row.seed_variance(), 0.0), row.count - 1)
            for key, row in table.items()
        }
        for place, seed in ((0, seed_variances(table)), (2, own)):
            one = mean_auc(table["0"], seed["0"])
            two = difference(table["0"], table["1"], seed["0"], seed["1"])
            held[place] += one.low <= AUC <= one.high
            held[place + 1] += two.low <= 0 <= two.high
    return list(held / repetitions)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=4000)
    repetitions = parser.parse_args().repetitions
    error = 100 * (0.95 * 0.05 / repetitions) ** 0.5
    print(
        f"{repetitions} repetitions, AUC {AUC}, {CASES[0]} cases with MVO and "
        f"{CASES[1]} without; standard error {error:.2f} points at 95 %\n"
        f"seeds  sd of AUC  mean  difference  (variance of {ROWS} rows pooled)"
        "  mean  difference  (each row its own)"
    )
    for seeds, sd in itertools.product((3, 5), (0.0, 0.02, 0.04)):
        found = coverage(repetitions, seeds, sd)
        pooled_mean, pooled, own_mean, own = (f"{100 * share:5.1f}" for share in found)
        print(
            f"{seeds:5}  {sd:9.2f}  {pooled_mean:>4}  {pooled:>10}  {'':29}"
            f"{own_mean:>4}  {own:>10}",
            flush=True,
        )


if __name__ == "__main__":
    main()
