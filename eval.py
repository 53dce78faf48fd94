"""`python eval.py ...`: see mvo_jax/cli/eval.py."""

import sys

from mvo_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main("eval"))
