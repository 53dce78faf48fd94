"""How far a bundle is from the run it was made of, over a whole split.

    python -m tools.bundle_parity --workdir runs/mvo --bundle bundle --split test

What ``eval`` computes for every case of the split beside what onnxruntime, and the exported JAX
program, make of the same clips: the largest difference of probabilities and of coarse maps. Ends
with exit code 1 where one is beyond the bound that the bundle was written with (relative to the
largest value where that is above 1).
"""

import argparse
import sys

import numpy as np

from mvo_jax.bundles.about import MODELS
from mvo_jax.bundles.bundle import load_bundle
from mvo_jax.data.splits import load_split
from mvo_jax.devices.environment import configure_in_time
from mvo_jax.errors import EXIT_COMPARISON
from mvo_jax.trained_run import load_run


def main(arguments: list[str] | None = None) -> int:
    """Compare and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--split", default="test")
    values = parser.parse_args(arguments)
    run = load_run(values.workdir)
    split = load_split(run.config.data, values.split)
    ours = run.predict_split(split)
    code = 0
    for form, file in MODELS.items():
        bundle = load_bundle(values.bundle, form=form)
        if file not in bundle.about.files:
            continue
        video = split.read(range(len(split)))["video"]
        theirs = bundle.predict(video)
        for name in ("probability", "coarse_mask"):
            expected = getattr(ours, name)
            if expected is None:
                continue
            apart = float(np.abs(theirs[name] - expected).max())
            largest = float(np.abs(expected).max())
            if not apart <= bundle.about.bounds[name] * max(1.0, largest):
                code = EXIT_COMPARISON
            print(f"{file}: {name} of {len(video)} cases: {apart:.1e} (largest {largest:.3g})")
    return code


if __name__ == "__main__":
    configure_in_time()
    sys.exit(main())
