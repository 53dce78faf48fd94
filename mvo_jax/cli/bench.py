"""``python -m mvo_jax bench WHAT [options]``: measure speed and memory on this machine."""

import subprocess
import sys
from pathlib import Path

from mvo_jax.errors import EXIT_USER_ERROR, UserError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
WHAT = {
    "train": ("train_step.py", "training steps, beside PyTorch"),
    "inference": ("inference.py", "inference, beside PyTorch"),
    "layers": ("layers.py", "each convolution alone, beside PyTorch"),
    "data": ("data_step.py", "what gathering and augmentation add to a step"),
    "run": ("run_8000.py", "the whole schedule, timed by part"),
    "tpu": ("tpu_aot.py", "memory and traffic on TPUs, by compiler alone"),
}


def main(arguments: list[str]) -> None:
    """Run one benchmark with the rest of the command line, and end with its exit code.

    Raises:
        UserError: no such benchmark, or an installation without the folder benchmarks/.
        SystemExit: the benchmark failed (its own message is on stderr), or help was asked for.
    """
    what, *rest = arguments or [""]
    if what in ("--help", "-h"):
        lines = "\n".join(f"  {name:11}{text}" for name, (_, text) in WHAT.items())
        print(f"usage: python -m mvo_jax bench WHAT [options]\n\n{lines}\n")
        print("'bench WHAT --help' lists its options.")
        return
    if what not in WHAT:
        raise UserError(
            f"there is no benchmark {what!r}" if what else "bench needs to know what to measure",
            f"choose from {', '.join(WHAT)}; python -m mvo_jax bench --help",
        )
    script = FOLDER / WHAT[what][0]
    if not script.is_file():
        raise UserError(
            f"the benchmarks are not installed: there is no {script}",
            "clone the repository and run this command at its top",
        )
    code = subprocess.run([sys.executable, str(script), *rest], check=False).returncode
    if code:
        raise SystemExit(code if code > 0 else EXIT_USER_ERROR)
