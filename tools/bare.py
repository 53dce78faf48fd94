"""The commands on a bare machine: what a container without anything leaves of them.

python -m tools.bare --out OUT

No git, no HOME, no PATH, the locale C, closed stdin, a temporary folder that cannot be written; the
code is read-only to the process, and under root its uid has no entry in passwd and ``/tmp`` holds
50 MB where the system allows to mount one. Each command must work, or say one line and its remedy
with an exit code that is not 0.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
UNKNOWN_UID = 54321
_MOUNT = '/usr/bin/mount -t tmpfs -o size=50m,mode=1777 none /tmp && exec "$@"'
TINY = (
    "data.frames=8 data.image_size=32 data.size=tiny data.preset=easy "
    "model.width=8 model.stage_sizes=(1,) model.in_channels=1 model.num_heads=2 model.mask_size=32 "
    "train.batch_size=8 train.total_steps=2 train.eval_every=1"
)


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    name: str
    code: int
    output: str

    @property
    def fault(self) -> str:
        """What is wrong with that; empty where nothing is."""
        if "Traceback" in self.output:
            return "a traceback"
        if self.code and not re.search("^error: .+\n  what to do: .+", self.output, re.MULTILINE):
            return f"ended with {self.code} and without a reason"
        return ""


def bare(words: Sequence[object], *, out: Path, variables: dict[str, str]) -> Ended:
    """Run ``python WORDS`` from the top of the code in the bare environment."""
    command = [sys.executable, *map(str, words)]
    if os.geteuid() == 0:
        who = ["--reuid", str(UNKNOWN_UID), "--regid", str(UNKNOWN_UID), "--clear-groups"]
        command = ["/usr/bin/setpriv", *who, *command]
        mount = ["/usr/bin/unshare", "-m", "/bin/sh", "-c", _MOUNT, "sh"]
        hidden = out.is_relative_to("/tmp")  # it would lie under the mount
        if (
            not hidden
            and not subprocess.run(
                [*mount, "/bin/true"], capture_output=True, check=False
            ).returncode
        ):
            command = [*mount, *command]
    ended = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *command],
        cwd=ROOT,
        env={"LANG": "C", "PATH": "", "TMPDIR": "/nowhere", "JAX_PLATFORMS": "cpu", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return Ended(
        " ".join(map(str, words[:3])).replace(str(out), "OUT"), ended.returncode, ended.stdout
    )


def images(folder: Path) -> Path:
    """Four cases of noise with a moving disc, as .npz."""
    folder.mkdir(parents=True)
    row, column = np.mgrid[:96, :96]
    for case in range(4):
        frames = [
            100 + 100 * (np.hypot(row - 48, column - 48) < 14 + 4 * np.cos(phase / 2) + case)
            for phase in range(12)
        ]
        mask = np.zeros((96, 96), np.uint8)
        mask[44:50, 44:50] = 1 + case % 2
        np.savez(
            folder / f"case{case}.npz", cine=np.array(frames, np.uint8), lge_mask=mask, pixel_mm=1.4
        )
    return folder


def trial(out: Path) -> list[Ended]:
    """Every verb that a user of images needs, in the order of their work."""
    shutil.rmtree(out, ignore_errors=True)
    source = images(out / "images")
    subprocess.run(["chmod", "-R", "a+rwX", str(out)], check=True)
    flags = [f"--config.{setting}" for setting in TINY.split()]
    run = out / "run"
    commands: list[list[object]] = [
        ["-m", "mvo_jax", "--help"],
        ["train.py", "--help"],
        [
            "train.py",
            "--config=mvo",
            *flags,
            f"--config.data.dir={out / 'data'}",
            f"--workdir={run}",
        ],
        ["eval.py", f"--workdir={run}"],
        ["-m", "mvo_jax", "prepare", source, f"--out={out / 'cohort'}", "--jobs=1"],
        ["-m", "mvo_jax", "inspect", source, f"--out={out / 'page.html'}"],
        ["-m", "mvo_jax", "predict", f"--workdir={run}", source, f"--out={out / 'predicted'}"],
        # A folder that may not be written: the code's own.
        ["train.py", "--config=mvo", *flags, "--workdir=runs/bare"],
    ]
    variables = {"XDG_CACHE_HOME": str(out / "cache")} if os.environ.get("BARE_CACHE") else {}
    return [bare(words, out=out, variables=variables) for words in commands]


def main() -> int:
    """Print a line a command; 1 where one is wrong."""
    parser = argparse.ArgumentParser(description="The commands on a bare machine.")
    parser.add_argument("--out", type=Path, required=True)
    found = trial(parser.parse_args().out.resolve())
    for ended in found:
        last = (ended.output.strip().splitlines() or [""])[-1]
        print(f"{ended.code:4}  {ended.name:40}  {ended.fault or last}")
        if ended.fault:
            print(ended.output)
    return int(any(ended.fault for ended in found))


if __name__ == "__main__":
    sys.exit(main())
