"""``python -m mvo_jax VERB``."""

import sys

from mvo_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
