"""`python train.py ...`: see mvo_jax/cli/train.py."""

import sys

from mvo_jax.cli.huge_pages import restart_with_huge_pages
from mvo_jax.cli.main import run

if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(run("train", sys.argv[1:]))
