"""The four variants of the paper's Table 2, several seeds each, as one table.

python -m benchmarks.table2 --out runs/table2 --seeds 0,1,2

The same as ``python -m mvo_jax compare --config configs/ablations.py --quick`` with these systems
and ``--split test_large``: reduced network, simulated cohort ``paper``, 1000 test cases. Flags are
passed on.
"""

import sys

from mvo_jax.cli.main import run

TABLE_2 = (
    "--config=configs/ablations.py",
    "--systems=backbone,bert,cgmr,full",
    "--quick",
    "--split=test_large",
    "--seeds=0,1,2",
    "--out=runs/table2",
)

if __name__ == "__main__":
    sys.exit(run("compare", [*TABLE_2, *sys.argv[1:]]))
