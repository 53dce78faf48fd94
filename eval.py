"""`python eval.py ...`: see mvo_jax/cli/eval.py."""

import sys

from mvo_jax.cli.main import run

if __name__ == "__main__":
    sys.exit(run("eval", sys.argv[1:]))
