"""What can go wrong with a run, each with its exit code and what it says, and how it goes on.

A fault that a run survives must end in the bytes of the run that nobody touched.
"""

import dataclasses
import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mvo_jax import run as assembly
from mvo_jax.errors import (
    EXIT_DAMAGED,
    EXIT_DISK_FULL,
    EXIT_HUNG,
    EXIT_INTERRUPTED,
    EXIT_LOCKED,
    EXIT_NON_FINITE,
    EXIT_OUT_OF_MEMORY,
    EXIT_USER_ERROR,
    UserError,
)
from mvo_jax.runs import checkpoint
from mvo_jax.runs import folder as run_folder
from mvo_jax.runs import signals as interruption
from mvo_jax.runs.checkpoint import SEAL, Checkpoints
from mvo_jax.runs.folder import RunFolder
from mvo_jax.runs.goodput import Clock
from mvo_jax.runs.lock import LOCK, OWNER, RunLock
from mvo_jax.training import dispatch, programs
from tools import tiny_run

ROOT = Path(__file__).resolve().parents[2]
# orbax abandons its other reads when one fails; they complain to a closed event loop later.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@dataclasses.dataclass
class Attempt:
    """How a start ended, and everything that a user would read."""

    code: int
    text: str

    def must(self, code: int, *words: str) -> None:
        assert self.code == code, self.text
        for text in words:
            assert text in self.text


@pytest.fixture(scope="module", autouse=True)
def _trace_once():
    """Every start is of the same network: tracing it again takes longer than its steps."""
    kept: dict[str, Any] = {}
    make_step, make_predictor = programs.parallel_step, assembly.Predictor

    def step(experiment: Any, *, streamed: bool) -> Any:
        key = f"{experiment.optimiser_settings} {experiment.train.batch_size}"
        if key not in kept:
            kept[key] = make_step(experiment, streamed=streamed)
        return kept[key]

    def predictor(experiment: Any, split: Any, **options: Any) -> Any:
        key = f"{split.video[0].sum()}"
        if key not in kept:
            kept[key] = make_predictor(experiment, split, **options)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "parallel_step", step)
        patch.setattr(assembly, "Predictor", predictor)
        # A signal must not end the process that runs the tests.
        patch.setattr(interruption, "_WHEN_SAFE", 600.0)
        patch.setattr(interruption, "GRACE_SECONDS", 600.0)
        yield


@pytest.fixture
def attempt(
    capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> Callable[..., Attempt]:
    """Starts the run of a folder; ``**changes`` as ``tiny_run.start`` takes them."""

    def attempt(folder: Path, config: Any = None, **options: Any) -> Attempt:
        capsys.readouterr()
        caplog.clear()
        code, words = 0, ""
        try:
            tiny_run.start(folder, Clock(), config, **options)
        except UserError as error:
            code, words = error.exit_code, str(error)
            assert error.remedy  # noqa: PT017
            assert len(error.cause.splitlines()) == 1  # noqa: PT017
        except SystemExit as error:
            code = int(error.code or 0)
        return Attempt(code, capsys.readouterr().err + caplog.text + words)

    return attempt


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody touched: checkpoints of steps 16 and 20."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    tiny_run.start(folder, Clock())
    return folder


@pytest.fixture(scope="module")
def reference(finished: Path) -> dict[str, Any]:
    return tiny_run.outcome(finished)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def newest(run: Path, kind: str = "latest") -> Path:
    steps = [p for p in (run / "checkpoints" / kind).iterdir() if p.name.isdecimal()]
    return max(steps, key=lambda path: int(path.name))


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if "/d/" in str(p)), key=lambda p: p.stat().st_size)


def cut(path: Path, end: int | None = None) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if end is None else end])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def change_meta(folder: Path, *, rehash: bool = False, **values: Any) -> None:
    """Change a checkpoint's metadata; with ``rehash`` as a program that writes such would."""
    path = folder / "meta" / "metadata"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    if rehash:
        (folder / SEAL).unlink()
        checkpoint._seal(folder)


# name: (damage, words); each is survived.
SURVIVED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "newest cut short": (lambda run: cut(largest_file(newest(run))), "falling back to the one of"),
    "newest with a flipped bit": (lambda run: flip(largest_file(newest(run))), "is not what was"),
    "newest lacks a file": (lambda run: largest_file(newest(run)).unlink(), "No such file"),
    "newest lacks its metadata": (
        lambda run: shutil.rmtree(newest(run) / "meta"),
        "meta/commit_success.txt: No such file",
    ),
    "newest with changed metadata": (
        lambda run: change_meta(newest(run), best=None),
        "meta/metadata is not what was saved",
    ),
    "newest gone": (lambda run: shutil.rmtree(newest(run)), "step 20/20"),
    "an empty folder named like a later step": (
        lambda run: newest(run).with_name("24").mkdir(),
        "cut short: steps [24]",
    ),
    "damaged seal": (lambda run: flip(newest(run) / SEAL), f"{SEAL} "),
    "a kill before the seal": (lambda run: (newest(run) / SEAL).unlink(), "cut short: steps [20]"),
    "checkpoint under another name": (
        lambda run: newest(run).rename(newest(run).with_name("24")),
        "it is latest/20 under another name",
    ),
    "a kill in the middle of a save": (
        lambda run: newest(run).rename(newest(run).with_name("20.orbax-checkpoint-tmp")),
        "step 20/20",
    ),
    "a kill in the middle of a removal": (
        lambda run: ((newest(run) / SEAL).unlink(), largest_file(newest(run)).unlink()),
        "step 20/20",
    ),
    "a line of the metrics cut short": (
        lambda run: (shutil.rmtree(newest(run)), cut(run / "metrics.jsonl", -20)),
        "step 20/20",
    ),
    "a line of the metrics that is no row": (
        lambda run: (run / "metrics.jsonl").open("a").write("3\n"),
        "goodput: ",
    ),
    "an owner that was killed": (
        lambda run: (run / OWNER).write_text('{"pid": 1, "host": "elsewhere", "now": 0}'),
        "goodput: ",
    ),
    "an owner's record of nonsense": (lambda run: (run / OWNER).write_bytes(b"\xff{"), "goodput: "),
}


@pytest.mark.parametrize("name", SURVIVED)
def test_a_fault_that_is_survived(attempt, reference, run, name):
    damage, words = SURVIVED[name]
    damage(run)
    attempt(run).must(0, words)
    assert tiny_run.outcome(run) == reference
    left = [p.name for p in (run / "checkpoints" / "latest").iterdir()]
    assert [name for name in left if "tmp" in name or "aside" in name] == []


def test_a_best_that_is_gone_is_missed(attempt, run):
    # It is older than the newest checkpoint, so nothing is left to find it again.
    shutil.rmtree(newest(run, "best"))
    attempt(run).must(0, "is missing; the best by auc of the validations to come")


def both_damaged(run: Path) -> None:
    for path in (run / "checkpoints" / "latest").iterdir():
        flip(largest_file(path))


def best_damaged(run: Path) -> None:
    flip(largest_file(newest(run, "best")))


def only_one_damaged(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "latest" / "16")
    cut(largest_file(newest(run)))


def touch_nothing(run: Path) -> None:
    """The start itself asks for what is refused."""


def case(damage: Callable[[Path], Any], words: str, code: int = EXIT_USER_ERROR, **options: Any):
    return damage, words, code, options


OTHER = tiny_run.tiny_config(**{"optimizer.learning_rate": 0.02})
CHANGED = "config.optimizer.learning_rate 0.01 -> 0.02"
# Each is refused, and nothing is touched.
REFUSED = {
    "all damaged": case(both_damaged, "so are 1 older ones", EXIT_DAMAGED),
    "the only one damaged": case(only_one_damaged, "restore that folder from a copy", EXIT_DAMAGED),
    "best damaged": case(best_damaged, "evaluate with --checkpoint=latest", EXIT_DAMAGED),
    "older format": case(
        lambda run: change_meta(newest(run), rehash=True, format=1),
        "has format 1, not 3\nuse the older revision",
    ),
    "newer format": case(
        lambda run: change_meta(newest(run), rehash=True, format=4),
        "has format 4, not 3\nuse the newer revision",
    ),
    "changed config": case(touch_nothing, CHANGED, config=OTHER),
    "changed config, config.json lost": case(
        lambda run: (run / "config.json").unlink(),
        f"the checkpoint is of another config ({CHANGED})",
        config=OTHER,
    ),
    "changed data": case(touch_nothing, "--allow_data_change", data_seed=7),
    "damaged config.json": case(lambda run: cut(run / "config.json"), "config.json is damaged"),
    "config.json of another kind": case(
        lambda run: (run / "config.json").write_text("[1]"),
        "config.json is damaged: it holds no config",
    ),
    "tensorboard is a file": case(
        lambda run: (shutil.rmtree(run / "tensorboard"), (run / "tensorboard").touch()),
        "run/tensorboard: File exists",
    ),
    "damaged provenance.json": case(
        lambda run: cut(run / "provenance.json"), "provenance.json is damaged"
    ),
}


def bytes_of(run: Path) -> dict[str, bytes]:
    names = (LOCK, OWNER, "config.json", "provenance.json")
    paths = [p for p in sorted(run.rglob("*")) if p.is_file() and p.name not in names]
    return {str(p.relative_to(run)): p.read_bytes() for p in paths}


@pytest.mark.parametrize("name", REFUSED)
def test_a_fault_that_is_refused(attempt, run, name):
    damage, words, code, options = REFUSED[name]
    damage(run)
    before = bytes_of(run)
    attempt(run, **options).must(code, words)
    assert bytes_of(run) == before


def test_going_on_under_another_config_or_on_other_data_is_told_and_kept(attempt, run):
    shutil.rmtree(newest(run))
    attempt(run, OTHER, allow_config_change=True).must(0, "going on under another config")
    assert RunFolder(run).config()["optimizer"]["learning_rate"] == 0.02
    starts = json.loads((run / "provenance.json").read_text())
    assert starts[-1]["config_changes"] == [CHANGED]
    shutil.rmtree(newest(run))
    allowed = {"allow_config_change": True, "allow_data_change": True}  # step 16 is of the first
    ended = attempt(run, OTHER, data_seed=7, **allowed)
    ended.must(0, "going on under another content of the data: train ")


@pytest.mark.parametrize(
    ("context", "words"),
    [
        (lambda: jax.enable_x64(True), "jax_enable_x64 False -> True"),
        (lambda: jax.default_prng_impl("rbg"), "jax_default_prng_impl 'threefry2x32' -> 'rbg'"),
        (lambda: jax.threefry_partitionable(False), "jax_threefry_partitionable True -> False"),
        (
            lambda: jax.default_matmul_precision("highest"),
            "jax_default_matmul_precision 'default' -> 'highest'",
        ),
    ],
)
def test_another_setting_of_jax_is_refused_unless_allowed(attempt, run, context, words):
    before = bytes_of(run)
    with context():
        why = f"the checkpoint is of another setting of JAX ({words})"
        attempt(run).must(EXIT_USER_ERROR, why, "go on with --allow_settings_change")
        assert bytes_of(run) == before
        ended = attempt(run, allow_settings_change=True)
    ended.must(0, f"going on under another setting of JAX: {words}")
    assert json.loads((run / "provenance.json").read_text())[-1]["settings_changes"] == [words]


def test_what_only_rounds_is_told_and_kept(attempt, run, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    attempt(run).must(0, "going on where results round otherwise: xla_flags ")
    kept = json.loads((run / "provenance.json").read_text())[-1]
    assert kept["rounding_changes"][0].startswith("xla_flags ")
    assert kept["settings"]["jax_enable_x64"] is False


def test_what_does_not_change_the_result_may_change(attempt, reference, run):
    shutil.rmtree(newest(run))
    free = {
        "train.save_every": 3,
        "train.keep_latest": 5,
        "train.watchdog_seconds": 99.0,
        "data.dir": "elsewhere",
    }
    assert attempt(run, tiny_run.tiny_config(**free)).code == 0
    assert tiny_run.outcome(run) == reference
    assert RunFolder(run).config()["data"]["dir"] == "elsewhere"


def test_a_second_process_is_refused_and_the_first_not_disturbed(attempt, run):
    with RunLock(run):
        ended = attempt(run)
    ended.must(EXIT_LOCKED, f"is in use by process {os.getpid()} on ")
    assert attempt(run).code == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_without_locks_is_refused(attempt, run, monkeypatch, number):
    def no_locks(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_locks)
    why = f"has no locks ({os.strerror(number)})"
    attempt(run).must(EXIT_USER_ERROR, why, "choose a --workdir on another file system")


def at_step(wanted: int, monkeypatch: pytest.MonkeyPatch, do: Callable[[Any], Any]) -> None:
    """Have ``do(metrics)`` happen in the dispatch of a step; its result replaces the metrics."""
    original = dispatch.make_run_steps

    def make(*arguments: Any, **options: Any) -> Any:
        run_steps = original(*arguments, **options)

        def wrapped(state: Any, indices: Any) -> Any:
            step = int(state.step) + 1
            state, metrics = run_steps(state, indices)
            return state, (step == wanted and do(metrics)) or metrics

        return wrapped

    monkeypatch.setattr(dispatch, "make_run_steps", make)


def no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_in_words(*_: Any, **__: Any) -> Any:
    # How tensorstore says it.
    raise ValueError(
        "RESOURCE_EXHAUSTED: Error writing file [OS error 28: No space left on device]"
    )


def half_a_row(self: Any, content: bytes) -> None:
    self._file.write(content[: len(content) // 2])
    no_space()


def limit(size: int) -> None:
    """What a file of this process may grow to; -1: whatever it may."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size if size > 0 else most, most))


SAVER = checkpoint.ocp.Checkpointer
DISK_FULL: dict[str, tuple[Any, str, Any, str]] = {
    "save": (SAVER, "save", no_space, "latest/12"),
    "save, in tensorstore's words": (SAVER, "save", no_space_in_words, "latest/12"),
    "seal": (checkpoint, "_seal", no_space, "latest/12"),
    "log": (run_folder.MetricsWriter, "_write_all", half_a_row, "metrics.jsonl"),
    "sync of the log": (run_folder.os, "fsync", no_space, "metrics.jsonl"),
}


@pytest.mark.parametrize("where", DISK_FULL)
def test_a_full_disk_leaves_what_was_saved(attempt, reference, tmp_path, monkeypatch, where):
    owner, name, fails, words = DISK_FULL[where]
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        # When checkpoints of steps 4 and 8 are there.
        at_step(9, patch, lambda _: patch.setattr(owner, name, fails))
        ended = attempt(run)
    ended.must(EXIT_DISK_FULL, "no space left while writing", words)
    assert Checkpoints(run, create=False).read("latest").meta["step"] in (8, 12)
    assert attempt(run).code == 0
    assert tiny_run.outcome(run) == reference


def test_what_the_system_does_not_let_grow(attempt, reference, tmp_path, monkeypatch):
    """The one way to have orbax and tensorstore meet a full disk without mounting one."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(9, patch, lambda _: limit(16384))
        try:
            ended = attempt(run)
        finally:
            limit(-1)
    kept = "(ulimit -f); what was written before is kept"
    ended.must(EXIT_DISK_FULL, "a file may not grow so large while writing", kept)
    assert "Traceback" not in ended.text
    assert [path.name for path in run.rglob("*tmp*")] == []
    assert Checkpoints(run, create=False).steps("latest") == [4, 8]
    assert attempt(run).code == 0
    assert tiny_run.outcome(run) == reference


def test_an_owner_that_cannot_record_its_end_was_not_killed(run, monkeypatch):
    with monkeypatch.context() as patch, RunLock(run):
        patch.setattr(Path, "write_text", no_space)
    assert not (run / OWNER).exists()
    with RunLock(run) as lock:
        assert lock.account() == []


def test_a_full_disk_at_the_start(attempt, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("mvo_jax.files.os.replace", no_space)
        ended = attempt(tmp_path / "run")
    assert ended.code == EXIT_DISK_FULL
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("which", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stops_the_run(attempt, reference, run, monkeypatch, which, value):
    shutil.rmtree(newest(run))

    with monkeypatch.context() as patch:
        at_step(18, patch, lambda found: {**found, which: np.full_like(found[which], value)})
        ended = attempt(run)
    ended.must(EXIT_NON_FINITE, "step 18: loss")
    found = json.loads((run / "non_finite.json").read_text())
    assert (found["step"], found["last_checkpoint"]) == (18, 16)
    assert (len(found["cases"]), found["metrics"][which]) == (4, str(value))
    assert attempt(run).code == 0
    assert tiny_run.outcome(run) == reference


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1234 bytes")


@pytest.mark.parametrize(
    ("memory", "remedy"),
    [(10**6, "fits: set config.train.batch_size="), (1, "lower config.train.batch_size")],
)
def test_a_batch_that_does_not_fit(attempt, tmp_path, monkeypatch, memory, remedy):
    sizes = {1: 400_000, 2: 600_000}  # by compiled program: 200 kB of it for each case
    monkeypatch.setattr(programs, "compile_step", lambda experiment, split, size: size)
    monkeypatch.setattr(programs, "program_bytes", sizes.__getitem__)
    monkeypatch.setattr(programs, "device_bytes", lambda device: memory)
    at_step(1, monkeypatch, out_of_memory)
    words = "out of memory: a batch of 4 does not fit"
    attempt(tmp_path / "run").must(EXIT_OUT_OF_MEMORY, words, remedy)


def test_an_evaluation_that_does_not_fit(attempt, reference, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(assembly, "validation_metrics", out_of_memory)
        ended = attempt(tmp_path / "run")
    ended.must(EXIT_OUT_OF_MEMORY, "lower config.eval.batch_size")
    assert attempt(tmp_path / "run").code == 0
    assert tiny_run.outcome(tmp_path / "run") == reference


DUBIOUS = "fatal: detected dubious ownership in repository at '/code'"


@pytest.mark.parametrize(
    ("git", "words"),
    [
        (None, "unknown: git cannot be run (No such file or directory)"),
        (f'echo "{DUBIOUS}" >&2; exit 128', f"unknown: {DUBIOUS}"),
        ("exit 3", "unknown: git ended with 3"),
        ("echo v1-3-gabc", "v1-3-gabc"),
        ("exec sleep 5", "unknown: git gave no answer in 0.2 s"),
    ],
    ids=str,
)
def test_why_the_revision_is_not_known_is_said(monkeypatch, tmp_path, git, words):
    if git is not None:
        (tmp_path / "git").write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{git}\n")
        (tmp_path / "git").chmod(0o755)
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(run_folder, "SOURCE", tmp_path)
    monkeypatch.setattr(run_folder, "_GIT_SECONDS", 0.2 if "sleep" in (git or "") else 30)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_folder.git_revision() == words
    monkeypatch.setattr(run_folder, "SOURCE", tmp_path / "installed")
    assert run_folder.git_revision() == "not a git checkout"


@pytest.mark.parametrize(
    ("number", "at"),
    [*((signal.SIGTERM, at) for at in (1, 6, 8, 20)), (signal.SIGUSR1, 6), (signal.SIGHUP, 6)],
    ids=str,
)
def test_a_signal_saves_and_leaves(attempt, reference, tmp_path, monkeypatch, number, at):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(at, patch, lambda _: os.kill(os.getpid(), number))
        # The thread that hears of it must have run before the loop looks.
        wait_for_the_thread(patch)
        ended = attempt(run)
    ended.must(EXIT_INTERRUPTED, f"{number.name}: saving, then leaving")
    assert Checkpoints(run, create=False).latest_step() == at
    assert RunFolder(run).starts()[-1]["ended"] == "interrupted"
    attempt(run).must(0, "goodput of all 2 starts")
    assert tiny_run.outcome(run) == reference


def hang_up(before: Any) -> Any:
    """What a run is asked for after two SIGHUPs where ``before`` was the handler."""
    previous = signal.signal(signal.SIGHUP, before)
    try:
        with interruption.Interruption() as asked:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
                time.sleep(0.1)
            return asked.requested
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_terminal_that_closes_may_say_so_twice_and_nohup_is_kept(monkeypatch):
    monkeypatch.setattr(interruption.Interruption, "_leave", lambda *_: pytest.fail("left"))
    assert hang_up(signal.SIG_DFL) == signal.SIGHUP
    assert hang_up(signal.SIG_IGN) is None


def wait_for_the_thread(patch: pytest.MonkeyPatch) -> None:
    """Look twice as a busy machine would need: the signal is a moment older than the flag."""
    original = Clock.enter

    def enter(self: Any, phase: str) -> None:
        original(self, phase)
        if phase == "step":
            time.sleep(0.05)

    patch.setattr(Clock, "enter", enter)


WATCHED = """
import sys, time
from pathlib import Path
from mvo_jax.runs.goodput import Clock
from mvo_jax.runs.watchdog import Watchdog

def run_steps():
    time.sleep(60)

clock = Clock()
with Watchdog(clock, Path(sys.argv[1]), seconds=0.5, leave=True, record=lambda row: None):
    clock.enter("step")
    clock.step = 6
    run_steps()
"""
SIGNALLED = """
import os, signal, sys, threading, time
from mvo_jax.runs.signals import Interruption

with Interruption() as interruption:
    interruption.safe = {safe}
    interruption.before_leaving = lambda: print("finished what was under way", flush=True)
    for number in {numbers}:
        os.kill(os.getpid(), number)
        time.sleep({pause})
    time.sleep(60)
"""


def in_a_process(script: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_a_step_that_hangs_is_named_and_left(tmp_path):
    ended = in_a_process(WATCHED, tmp_path)
    assert ended.returncode == EXIT_HUNG, ended.stderr
    assert re.search(r"watchdog: step 7 has not finished for \d s \(phase: step\)", ended.stderr)
    assert "run_steps" in (tmp_path / "hung.txt").read_text()


@pytest.mark.parametrize(
    ("safe", "numbers", "words", "finishes"),
    [
        (False, [15, 10], "interrupted (a second signal)", False),
        (True, [15], "interrupted (nothing to save since the last checkpoint)", True),
        (
            False,
            [10],
            "no step ended within 8 s; what came after the last checkpoint is lost",
            True,
        ),
    ],
    ids=["twice", "in a compilation", "in a step that takes too long"],
)
def test_a_process_that_does_not_listen_leaves_in_time(safe, numbers, words, finishes):
    since = time.monotonic()
    ended = in_a_process(SIGNALLED.format(safe=safe, numbers=numbers, pause=0.3))
    assert ended.returncode == EXIT_INTERRUPTED, ended.stderr
    assert words in ended.stderr
    assert ("finished what was under way" in ended.stdout) == finishes
    # Ten are promised from the signal on; the start of the interpreter comes on top.
    assert time.monotonic() - since < 20
