"""Where the wall time of a run goes: the share spent in steps, and what took the rest."""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Time belongs to exactly one of them, so that the shares add up to one.
PHASES: tuple[str, ...] = ("start", "compile", "input", "step", "validation", "save", "log")
KIND = "goodput"  # of its rows in metrics.jsonl


def process_age() -> float:
    """Seconds since this process began: imports belong to what a start costs."""
    try:
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):  # not Linux
        return 0.0


class Clock:
    """Adds up wall time by phase, from ``before`` seconds. One thread enters phases, any reads."""

    def __init__(self, *, before: float = 0.0):
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._seconds["start"] = before
        self.phase = "start"
        self.since = time.perf_counter()
        self.first_step = self.step = 0

    def enter(self, phase: str) -> None:
        """Leave the phase under way and enter another."""
        now = time.perf_counter()
        self._seconds[self.phase] += now - self.since
        self.phase, self.since = phase, now

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Enter a phase and go back to the one before."""
        before = self.phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def seconds(self) -> dict[str, float]:
        """Seconds by phase until now."""
        seconds = dict(self._seconds)
        seconds[self.phase] += time.perf_counter() - self.since
        return seconds

    def row(self) -> dict[str, Any]:
        """What is kept of a start: steps it ran, and its seconds as a whole and by phase."""
        seconds = self.seconds()
        return {
            "first_step": self.first_step,
            "last_step": self.step,
            "seconds": round(sum(seconds.values()), 3),
            **{f"{phase}_seconds": round(value, 3) for phase, value in seconds.items()},
        }


def total(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up the starts of a run.

    Steps that a later start did again were lost: their time, at the mean time of a step of that
    start, is no good time.

    Args:
        rows: ``Clock.row()`` of every start, in order.

    Returns:
        'starts', 'seconds', 'goodput' (share of the time in steps that were kept), 'lost' (share in
        steps done again) and the share of every other phase.
    """
    seconds, lost = sum(row["seconds"] for row in rows), 0.0
    for row, after in itertools.pairwise(rows):
        done = row["last_step"] - row["first_step"]
        again = min(max(row["last_step"] - after["first_step"], 0), done)
        lost += row["step_seconds"] * again / done if done else 0.0
    whole = max(seconds, 1e-9)
    spent = {phase: sum(row[f"{phase}_seconds"] for row in rows) for phase in PHASES}
    return {
        "starts": len(rows),
        "seconds": seconds,
        "goodput": (spent.pop("step") - lost) / whole,
        "lost": lost / whole,
        **{phase: value / whole for phase, value in spent.items()},
    }


def describe(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line on the last start and, where there were several, one on all."""
    lines = [_line("goodput", total(rows[-1:]))]
    if len(rows) > 1:
        lines.append(_line(f"goodput of all {len(rows)} starts", total(rows)))
    return "\n".join(lines)


def _line(title: str, shares: Mapping[str, Any]) -> str:
    parts = [phase for phase in (*PHASES, "lost") if phase != "step" and shares[phase] >= 5e-4]
    rest = ", ".join(f"{part} {100 * shares[part]:.1f} %" for part in parts)
    return f"{title}: {100 * shares['goodput']:.1f} % of {shares['seconds']:.0f} s in steps; {rest}"
