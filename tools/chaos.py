"""Kill a tiny run at random moments, many times, and compare what comes of it.

    python -m tools.chaos --kills 1200 --out /tmp/chaos

Starts the run of ``tools/tiny_run.py`` again and again in a forked process and ends it by SIGKILL,
or by SIGTERM, at a random moment: half of the kills uniform over the time of a start, half shortly
after a random event (a phase of the loop, a file operation of a save), because saves, seals and
removals take little time. Every run is killed until it is done, then its last and best state and
its metrics are compared, bit for bit, with those of a run that was never touched, and the next
begins.

What counts as a violation: a start that fails, other than by the kill; steps lost beyond one save
interval (SIGTERM: any step); a SIGTERM that is not answered within 10 s; a difference at the end.
``--out`` keeps the totals: repeated, the command goes on from them. Exit code 1 on any violation.
"""

import argparse
import collections
import importlib
import json
import multiprocessing
import os
import random
import select
import shutil
import signal
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from mvo_jax.devices.environment import configure_xla, remove_damaged
from mvo_jax.errors import EXIT_COMPARISON, EXIT_INTERRUPTED
from mvo_jax.files import replace_file

TERM_SHARE = 0.3
EXIT_WITHIN = 10.0  # seconds, what a scheduler is promised
DONE, FAILED = 0, 90


class Start:
    """A forked start of the run, seen through the events it writes to a pipe."""

    def __init__(self, folder: Path, cache: Path):
        self.began = time.perf_counter()
        read, write = os.pipe()
        self._log = folder.with_suffix(".log")
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            _child(folder, cache, write, self._log)  # does not return
        os.close(write)
        self._pipe = read
        self._rest = b""
        self.events: list[tuple[float, str]] = []
        self.first_step: int | None = None
        self.last_step = 0
        self.phase, self.saving = "fork", ""

    def listen(self, until: float, *, events: int | None = None) -> bool:
        """Take events in until a time, a number of events, or the end; True at the end."""
        while (left := until - time.perf_counter()) > 0:
            if events is not None and len(self.events) >= events:
                return False
            if not select.select([self._pipe], [], [], left)[0]:
                return False
            content = os.read(self._pipe, 4096)
            if not content:
                return True
            *lines, self._rest = (self._rest + content).split(b"\n")
            for line in lines:
                self._take(line.decode())
        return False

    def _take(self, line: str) -> None:
        kind, value = line.split(" ")
        if kind == "first":
            self.first_step = int(value)
        elif kind == "step":
            self.last_step = int(value)
        else:
            if kind == "saving":
                self.saving = "" if value == "-" else value
            else:
                self.phase = value
            self.events.append((time.perf_counter() - self.began, value))

    def where(self) -> str:
        """What it was doing when last heard of."""
        return f"save: {self.saving}" if self.saving else self.phase

    def end(self) -> int:
        """Reap it, taking in what it said last; its exit code, or minus its signal."""
        _, status = os.waitpid(self.pid, 0)
        self.listen(time.perf_counter() + 1.0)
        os.close(self._pipe)
        return os.waitstatus_to_exitcode(status)

    def words(self) -> str:
        """The end of what it wrote to stderr."""
        return self._log.read_text()[-2000:] if self._log.exists() else ""


def _child(folder: Path, cache: Path, pipe: int, log: Path) -> None:
    """In the forked process: one start, telling the parent what it is doing."""
    code = FAILED
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        remove_damaged(cache)

        from mvo_jax.errors import UserError
        from mvo_jax.runs import checkpoint
        from mvo_jax.runs.goodput import Clock
        from tools.tiny_run import start

        def tell(kind: str, value: object) -> None:
            os.write(pipe, f"{kind} {value}\n".encode())

        class TellingClock(Clock):
            """Tells every phase and step."""

            def enter(self, phase: str) -> None:
                super().enter(phase)
                tell("phase", phase)

            def __setattr__(self, name: str, value: Any) -> None:
                super().__setattr__(name, value)
                if name == "first_step" and value != 0:
                    tell("first", value)
                elif name == "step" and value != 0:
                    tell("step", value)

        def telling(name: str, function: Any) -> Any:
            def told(*arguments: Any) -> Any:
                tell("saving", name)
                result = function(*arguments)
                tell("saving", "-")
                return result

            return told

        checkpoint.Checkpoints._write = telling("write", checkpoint.Checkpoints._write)
        checkpoint.Checkpoints._remove = telling("prune", checkpoint.Checkpoints._remove)
        checkpoint._seal = telling("seal", checkpoint._seal)
        try:
            start(folder, TellingClock())
            code = DONE
        except UserError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
        except SystemExit as error:
            code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Totals:
    """Counts that survive the tool itself being stopped."""

    def __init__(self, path: Path):
        self._path = path
        self.counts: dict[str, Any] = {
            "kills": 0,
            "by_signal": {},
            "by_phase": {},
            "starts": 0,
            "runs_compared": 0,
            "largest_loss": 0,
            "slowest_term_seconds": 0.0,
            "violations": [],
        }
        if path.exists():
            self.counts.update(json.loads(path.read_text()))

    def add(self, name: str, key: str) -> None:
        """One more of a kind."""
        counts = collections.Counter(self.counts[name])
        counts[key] += 1
        self.counts[name] = dict(counts.most_common())

    def violation(self, what: str, words: str = "") -> None:
        """Note one, with the end of what the start wrote."""
        print(f"VIOLATION: {what}\n{words}", flush=True)
        self.counts["violations"].append(f"{what}: {words[-300:]}" if words else what)

    def save(self) -> None:
        """Write them."""
        replace_file(self._path, json.dumps(self.counts, indent=1) + "\n")


def _reference(folder: Path, cache: Path) -> tuple[dict[str, Any], float, int]:
    """(outcome, seconds, events) of the run that nobody touches; the second one has a cache."""
    seconds, events = 0.0, 0
    for name in ("reference", "reference-again"):
        shutil.rmtree(folder / name, ignore_errors=True)
        start = Start(folder / name, cache)
        start.listen(time.perf_counter() + 300.0)
        seconds, events = time.perf_counter() - start.began, len(start.events)
        if (code := start.end()) != DONE:
            raise SystemExit(f"the run by itself ends with {code}: {start.words()}")
    outcomes = [_outcome(folder / name) for name in ("reference", "reference-again")]
    if outcomes[0] != outcomes[1]:
        raise SystemExit("two runs that nobody touched differ")
    return outcomes[0], seconds, events


def _outcome(folder: Path) -> dict[str, Any]:
    """Read in a process of its own: reading starts JAX, and what has threads cannot be forked."""
    from tools.tiny_run import outcome

    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        try:
            return pool.submit(outcome, folder).result()
        except Exception:
            traceback.print_exc()
            return {"unreadable": str(folder)}


def _kill(start: Start, draws: random.Random, seconds: float, events: int, totals: Totals) -> int:
    """Let it run to a random moment and end it; its exit code, ``DONE`` if it was done before."""
    if draws.random() < 0.5:
        done = start.listen(start.began + draws.uniform(0, 1.05 * seconds))
    else:
        done = start.listen(start.began + 120.0, events=draws.randrange(events))
        done = done or start.listen(time.perf_counter() + draws.uniform(0, 0.004))
    if done:
        return start.end()
    number = signal.SIGTERM if draws.random() < TERM_SHARE else signal.SIGKILL
    where, asked = start.where(), time.perf_counter()
    os.kill(start.pid, number)
    start.listen(asked + 60.0)
    waited = time.perf_counter() - asked
    code = start.end()
    if code == DONE:
        return DONE  # it was on its way out
    totals.counts["kills"] += 1
    totals.add("by_signal", number.name)
    totals.add("by_phase", where)
    if number == signal.SIGTERM:
        totals.counts["slowest_term_seconds"] = round(
            max(waited, totals.counts["slowest_term_seconds"]), 2
        )
        if waited > EXIT_WITHIN:
            totals.violation(f"SIGTERM during {where} took {waited:.1f} s", start.words())
        # Before the handlers are there, the signal does what it always does.
        if code != EXIT_INTERRUPTED and not (code == -signal.SIGTERM and not start.events):
            totals.violation(f"SIGTERM during {where} ended with {code}", start.words())
    elif code != -signal.SIGKILL:
        totals.violation(f"SIGKILL during {where} ended with {code}", start.words())
    return code


def main(arguments: list[str]) -> int:
    """Kill until the number is reached; exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=1200)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and totals")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    cache = (options.out / "xla").resolve()
    cache.mkdir(exist_ok=True)
    configure_xla(os.environ)
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    # Imported once, before the forks; no backend is started in this process.
    importlib.import_module("tensorboardX.event_file_writer")
    from tools.tiny_run import SAVE_EVERY

    totals = Totals(options.out / "totals.json")
    counts = totals.counts
    reference, seconds, events = _reference(options.out, cache)
    print(f"a start that nobody touches: {seconds:.2f} s, {events} events", flush=True)
    folder, began, before = options.out / "run", time.perf_counter(), counts["kills"]
    shutil.rmtree(folder, ignore_errors=True)
    reached, killed_by_term, starts_of_run, before_words = 0, False, 0, ""
    while counts["kills"] < options.kills or starts_of_run:
        draws = random.Random(f"{options.seed} {counts['starts']}")
        start = Start(folder, cache)
        counts["starts"] += 1
        starts_of_run += 1
        if counts["kills"] < options.kills:
            code = _kill(start, draws, seconds, events, totals)
        else:  # the last run is brought to its end
            start.listen(time.perf_counter() + 120.0)
            code = start.end()
        if code not in (DONE, EXIT_INTERRUPTED, -signal.SIGKILL, -signal.SIGTERM):
            totals.violation(f"start {counts['starts']} failed with {code}", start.words())
            shutil.move(folder, options.out / f"failed-{counts['starts']}")
            reached, starts_of_run = 0, 0
            continue
        if start.phase not in ("fork", "start"):  # it has restored
            lost = reached - (start.first_step or 0)
            counts["largest_loss"] = max(lost, counts["largest_loss"])
            if lost > (0 if killed_by_term else SAVE_EVERY):
                totals.violation(f"{lost} steps lost after: {before_words}", start.words())
            reached = max(start.last_step, start.first_step or 0)
            # A start that was ended before it had restored could save nothing.
            killed_by_term = code == EXIT_INTERRUPTED
            before_words = start.words()[-300:]
        if code == DONE:
            if _outcome(folder) != reference:
                totals.violation(f"run {counts['runs_compared']} ended elsewhere", start.words())
                shutil.copytree(folder, options.out / f"differs-{counts['starts']}")
            counts["runs_compared"] += 1
            shutil.rmtree(folder)
            reached, killed_by_term, starts_of_run = 0, False, 0
        totals.save()
        if counts["starts"] % 50 == 0:
            pace = (time.perf_counter() - began) / max(counts["kills"] - before, 1)
            print(
                f"{counts['kills']} kills, {counts['runs_compared']} runs compared, "
                f"{len(counts['violations'])} violations, {pace:.2f} s a kill",
                flush=True,
            )
    print(json.dumps(counts, indent=1))
    return EXIT_COMPARISON if counts["violations"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
