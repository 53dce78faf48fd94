"""Wall time and peak memory of ``python -m mvo_jax prepare``.

Writes simulated cases as NIfTI or DICOM (one slice a case: cine of 256x256 pixels, LGE mask),
prepares them in a process of its own and watches that process and its workers.

    python -m benchmarks.prepare --cases 680 --jobs 2
    python -m benchmarks.prepare --cases 200,2000 --image_size 96 --frames 12

Resident memory is sampled from /proc, so Linux only. Memory that processes share (Python, numpy)
counts once in each of them.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mvo_jax.data.phantom.case import CaseKey, simulate_case
from tests.data.importers import writers

HEARTS = 20  # simulated once each; every case lies elsewhere in its image, with noise of its own
HEART_PIXELS, PIXEL_MM = 90, 1.35  # simulated fields of view are about 120 mm
WRITERS = {"nifti": writers.write_nifti, "dicom": writers.write_dicom}
SECONDS_BETWEEN_SAMPLES = 0.02


def write_cases(
    folder: Path, cases: int, *, form: str, image_size: int, frames: int, masks: bool
) -> None:
    """Write cases, int16 ``[frames, image_size, image_size]`` each."""
    heart = min(HEART_PIXELS, image_size)
    hearts = [
        simulate_case(CaseKey("paper", 0, i, 0, 1, i % 2 == 0), frames=frames, image_size=heart)
        for i in range(min(HEARTS, cases))
    ]
    for i in tqdm(range(cases), desc="Writing", disable=not sys.stderr.isatty()):
        draws = np.random.default_rng(i)
        one, room = hearts[i % len(hearts)], image_size - heart
        top, left = (int(n) for n in room // 2 + draws.integers(-room // 4, room // 4 + 1, 2))
        cine = draws.integers(0, 40, (frames, image_size, image_size)).astype(np.int16)
        mask = np.zeros((image_size, image_size), np.uint8)
        where = np.s_[top : top + heart, left : left + heart]
        cine[:, *where] += 4 * one.video[..., 0].astype(np.int16)
        mask[where] = one.lge_mask
        pixel_mm = PIXEL_MM * HEART_PIXELS / heart
        WRITERS[form](folder, f"case{i:05d}", cine, mask if masks else None, pixel_mm=pixel_mm)


def processes_below(parent: int) -> list[int]:
    """A process and all its descendants."""
    found = [parent]
    for process in found:
        try:
            tasks = list(Path(f"/proc/{process}/task").iterdir())
            for task in tasks:
                found += [int(n) for n in (task / "children").read_text().split()]
        except OSError:  # it has just ended
            continue
    return found


def resident_mb(process: int) -> float:
    """Resident memory of a process in 10^6 bytes; 0 where it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Watch(threading.Thread):
    """Highest resident memory of a process, of its largest descendant, and of all together."""

    def __init__(self, process: int):
        super().__init__(daemon=True)
        self._process = process
        self.main = self.worker = self.together = 0.0
        self.workers = 0
        self.ended = threading.Event()

    def run(self) -> None:
        """Sample until ``ended`` is set."""
        while not self.ended.wait(SECONDS_BETWEEN_SAMPLES):
            main, *workers = (resident_mb(p) for p in processes_below(self._process))
            self.main = max(self.main, main)
            self.worker = max(self.worker, *workers, 0.0)
            self.together = max(self.together, main + sum(workers))
            self.workers = max(self.workers, len(workers))


def measure(source: Path, out: Path, arguments: list[str]) -> dict[str, Any]:
    """Prepare ``source`` and return what it took."""
    before, load = resource.getrusage(resource.RUSAGE_CHILDREN), os.getloadavg()[0]
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "mvo_jax", "prepare", str(source), "--out", str(out), *arguments]
    )
    watch = Watch(process.pid)
    watch.start()
    status = process.wait()
    wall = time.monotonic() - started
    watch.ended.set()
    watch.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if status:
        raise SystemExit(f"prepare ended with status {status}")
    return {
        "wall_s": round(wall, 1),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "peak_main_mb": round(watch.main),
        "peak_worker_mb": round(watch.worker),
        "peak_together_mb": round(watch.together),
        "workers": watch.workers,
    }


def main() -> None:
    """Measure each number of cases and print a line of JSON for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", default="680", help="numbers of cases, with commas")
    parser.add_argument("--format", default="nifti", choices=WRITERS)
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=30, help="frames of the source")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--no_masks",
        action="store_true",
        help="no LGE masks: unlabelled cases, and every crop is placed by the locator",
    )
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one if left out")
    parser.add_argument("--json", type=Path, help="also write the results here")
    values = parser.parse_args()
    results = []
    for cases in (int(n) for n in values.cases.split(",")):
        folder = Path(tempfile.mkdtemp(prefix="prepare-", dir=values.folder))
        try:
            write_cases(
                folder / "source",
                cases,
                form=values.format,
                image_size=values.image_size,
                frames=values.frames,
                masks=not values.no_masks,
            )
            arguments = [f"--format={values.format}", f"--jobs={values.jobs}"]
            result = {
                "cases": cases,
                "format": values.format,
                "masks": not values.no_masks,
                "source": f"{values.frames} frames of {values.image_size}x{values.image_size}",
                "jobs": values.jobs,
                **measure(folder / "source", folder / "cohort", arguments),
            }
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        results.append(result)
        print(json.dumps(result), flush=True)
    if values.json is not None:
        values.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
