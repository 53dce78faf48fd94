"""``python -m mvo_jax VERB``."""

import sys

from mvo_jax.cli.huge_pages import restart_with_huge_pages
from mvo_jax.cli.main import main

_COMPUTES = ("train", "eval", "compare", "predict")

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in _COMPUTES:
        restart_with_huge_pages()
    sys.exit(main())
