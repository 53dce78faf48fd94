"""Contenders that take turns: the measuring machinery of the side-by-side benchmarks.

Each contender (a framework with one option, batch size and dtype) lives in its own process, so that
thread pools and allocators do not disturb each other. In every round each process does its work
while the others wait on a pipe, and a ratio compares neighbours in time.

A script that uses this module answers ``--worker CONFIG`` with ``work``.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

Config = dict[str, Any]
FULL_SIZE = {"frames": 30, "size": 64, "width": 0}
# Arguments that every process gets.
SHARED = ("system", "frames", "size", "width", "steps", "warmup", "settle", "huge_pages")


# What is known of a contender (versions, device, its compiled program), and a function that takes
# steps, waits for the last and returns a number of its result.
Contender = tuple[dict[str, Any], Callable[[int], float]]


def busy_seconds() -> float:
    """CPU seconds used so far by all processes of the machine; 0 where Linux does not say."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except FileNotFoundError:
        return 0.0
    user, nice, system, _idle, _wait, interrupt, soft, stolen = map(int, fields[1:9])
    ticks = user + nice + system + interrupt + soft + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


def work(config: Config, make: Callable[[Config], Contender]) -> None:
    """Body of a contender's process: answer requests, one JSON line each."""
    from benchmarks import networks

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not end up among the replies
    about, run = make(config)

    def reply(**message: Any) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    start = time.perf_counter()
    for _ in range(config["warmup"]):
        run(1)
    about |= {"warmup_s": round(time.perf_counter() - start, 1)}
    reply(about=about, matmul_gflops=networks.matmul_gflops(config))
    for _ in sys.stdin:
        # The last turn's memory is back with the system and the caches are another's: a training
        # that has the machine to itself meets neither.
        if config["settle"]:
            run(config["settle"])
        start, cpu_start, busy_start = time.perf_counter(), time.process_time(), busy_seconds()
        result = run(config["steps"])
        seconds = time.perf_counter() - start
        cpu_seconds = time.process_time() - cpu_start
        others = (busy_seconds() - busy_start - cpu_seconds) / (seconds * (os.cpu_count() or 1))
        reply(
            seconds=seconds / config["steps"],
            cpu_seconds=cpu_seconds / config["steps"],
            others=max(others, 0.0),
            result=result,
            peak_host_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        )


class Worker:
    """A contender's process, seen from outside."""

    def __init__(self, script: str, config: Config):
        from mvo_jax.cli.huge_pages import ask_for_huge_pages
        from mvo_jax.devices.environment import configure_xla

        self.name = f"{config['impl']}:{config['option']}"
        environment = dict(os.environ)
        if config["huge_pages"] == "all" or (
            config["huge_pages"] == "shipped" and config["impl"] == "jax"
        ):
            ask_for_huge_pages(environment)
        if config["impl"] == "jax":
            configure_xla(environment)
            # The other contenders share the accelerator's memory.
            environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        self.process = subprocess.Popen(
            [sys.executable, script, "--worker", json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        ready = self.receive()
        self.about: dict[str, Any] = ready["about"]
        self.about["glibc_tunables"] = environment.get("GLIBC_TUNABLES", "")
        self.matmul_gflops: float = ready["matmul_gflops"]

    def receive(self) -> dict[str, Any]:
        """Next reply of the process.

        Raises:
            RuntimeError: the process has ended; its own message is on stderr.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def run(self) -> dict[str, Any]:
        """Let the process take its steps of one round."""
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self.receive()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def summarise(seconds: list[float]) -> dict[str, float]:
    """Median, quartiles and extremes of a list of seconds."""
    low, median, high = (
        statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    )
    return {
        "median_s": median,
        "quartile1_s": low,
        "quartile3_s": high,
        "min_s": min(seconds),
        "max_s": max(seconds),
    }


def take_rounds(
    workers: list[Worker], rounds: int, quiet: float, patience_s: float
) -> list[list[dict[str, Any]]]:
    """Let the contenders run in turns.

    Args:
        workers: the contenders.
        rounds: rounds to return.
        quiet: share of the machine that other processes may use in a round; rounds are repeated
            until enough are as quiet as that, for ``patience_s`` at most.
        patience_s: see ``quiet``.

    Returns:
        The quietest ``rounds`` rounds in the order they were run, each a reply for each contender.
    """
    taken: list[list[dict[str, Any]]] = []
    start = time.monotonic()

    def noise(answers: list[dict[str, Any]]) -> float:
        return max(answer["others"] for answer in answers)

    while sum(noise(answers) <= quiet for answers in taken) < rounds:
        if len(taken) >= rounds and time.monotonic() - start > patience_s:
            break
        if quiet < 1:
            # Look before running: a round on a busy machine only makes it busier.
            busy = busy_seconds()
            time.sleep(1)
            waited = time.monotonic() - start
            if busy_seconds() - busy > quiet * (os.cpu_count() or 1) and waited < patience_s:
                continue
        # Every other round in reverse, so that nobody always follows the same neighbour.
        order = range(len(workers))[:: 1 if len(taken) % 2 == 0 else -1]
        answers = {index: workers[index].run() for index in order}
        taken.append([answers[index] for index in range(len(workers))])
    bound = sorted(map(noise, taken))[rounds - 1]
    return [answers for answers in taken if noise(answers) <= bound][:rounds]


def compare(
    script: str,
    configs: list[Config],
    *,
    rounds: int,
    quiet: float,
    patience_s: float,
    gflop: Callable[[Config], float],
) -> list[dict[str, Any]]:
    """Run the contenders of one batch size and dtype in turns; one row of results each.

    One that cannot start (out of memory, say) is left out.
    """
    workers: list[Worker] = []
    started: list[Config] = []
    try:
        for config in configs:
            try:
                workers.append(Worker(script, config))
            except RuntimeError as error:
                print(f"  left out: {error}", flush=True)
                continue
            started.append(config)
            print(f"  ready: {workers[-1].name} {workers[-1].about}", flush=True)
        if not workers:
            return []
        replies = zip(*take_rounds(workers, rounds, quiet, patience_s), strict=True)
    finally:
        for worker in workers:
            worker.close()
    ceiling = max(worker.matmul_gflops for worker in workers)
    rows = []
    for config, worker, answers in zip(started, workers, replies, strict=True):
        seconds = [answer["seconds"] for answer in answers]
        row = {**config, "name": worker.name, "about": worker.about, "seconds": seconds}
        row |= summarise(seconds) | {"final_result": answers[-1]["result"]}
        row["others"] = [answer["others"] for answer in answers]
        row["median_cpu_s"] = statistics.median(answer["cpu_seconds"] for answer in answers)
        row["peak_host_gb"] = max(answer["peak_host_gb"] for answer in answers)
        row["clips_per_s"] = config["batch"] / row["median_s"]
        row["matmul_ceiling_gflops"] = ceiling
        if all(config[name] == value for name, value in FULL_SIZE.items()):
            row["gflops"] = gflop(config) * row["clips_per_s"]
            row["utilisation"] = row["gflops"] / ceiling
        rows.append(row)
    torch_rows = [row for row in rows if row["impl"] == "torch"]
    if torch_rows:
        fastest = min(torch_rows, key=lambda row: row["median_s"])
        for row in rows:
            ratios = [a / b for a, b in zip(row["seconds"], fastest["seconds"], strict=True)]
            row["baseline"] = fastest["name"]
            row["ratios"] = ratios
            row["median_ratio"] = statistics.median(ratios)
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line for each contender, batch size and dtype."""
    print(
        f"{'batch':>5} {'dtype':9} {'contender':26} {'median s':>9} {'quartiles':>19} "
        f"{'clips/s':>8} {'/ torch':>8} {'GFLOP/s':>8} {'of peak':>8} {'others':>7}"
    )
    for row in rows:
        quartiles = f"{row['quartile1_s']:.4g} - {row['quartile3_s']:.4g}"
        ratio = f"{row['median_ratio']:.3f}" if "median_ratio" in row else "-"
        gflops = f"{row['gflops']:.0f}" if "gflops" in row else "-"
        used = f"{row['utilisation']:.0%}" if "utilisation" in row else "-"
        print(
            f"{row['batch']:>5} {row['dtype']:9} {row['name']:26} {row['median_s']:>9.4g} "
            f"{quartiles:>19} {row['clips_per_s']:>8.4g} {ratio:>8} {gflops:>8} {used:>8} "
            f"{statistics.median(row['others']):>7.0%}"
        )


def listed(text: str) -> list[str]:
    """Items of a comma-separated argument."""
    return [item for item in text.split(",") if item]


def listed_numbers(text: str) -> list[int]:
    """Whole numbers above 0 of a comma-separated argument."""
    try:
        numbers = [int(item) for item in listed(text)]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers above 0")
    return numbers


def _one_of(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        items = listed(text)
        if not items or set(items) - set(choices):
            raise argparse.ArgumentTypeError(f"{text!r}: choose from {','.join(choices)}")
        return items

    return parse


def add_contenders(parser: argparse.ArgumentParser) -> None:
    """The arguments that name who is measured; ``check`` looks at them."""
    has_torch = importlib.util.find_spec("torch") is not None
    parser.add_argument(
        "--impl",
        type=_one_of(("jax", "torch")),
        default=["jax", "torch"] if has_torch else ["jax"],
        help="jax,torch; torch by default where it is installed",
    )
    parser.add_argument(
        "--lowering", type=listed, default=["auto"], help="keys of lowerings.LOWERINGS, or auto"
    )


def base_parser(description: str | None, systems: Iterable[str]) -> argparse.ArgumentParser:
    """The arguments that all benchmarks share: what network on what clips, and a file."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--system", choices=systems, default="mvo_net")
    parser.add_argument("--frames", type=int, default=FULL_SIZE["frames"])
    parser.add_argument("--size", type=int, default=FULL_SIZE["size"])
    parser.add_argument("--width", type=int, default=0, help="another width than the published")
    parser.add_argument("--json", type=Path, help="write all figures here")
    return parser


def argument_parser(description: str | None, systems: Iterable[str]) -> argparse.ArgumentParser:
    """The arguments that all side-by-side benchmarks share."""
    parser = base_parser(description, systems)
    add_contenders(parser)
    parser.add_argument("--batch", type=listed_numbers, default=[2, 4])
    parser.add_argument(
        "--dtype",
        type=_one_of(("float32", "bfloat16")),
        default=["float32"],
        help="float32,bfloat16",
    )
    parser.add_argument(
        "--torch-mode",
        type=_one_of(("eager", "compile", "autotune")),
        default=["eager"],
        help="eager,compile,autotune",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps a round; more on a GPU")
    parser.add_argument(
        "--settle", type=int, default=0, help="steps that are not counted, before those of a round"
    )
    parser.add_argument(
        "--quiet",
        type=float,
        default=1.0,
        help="repeat rounds in which other processes used more than this share of the CPUs",
    )
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to do so at most")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument(
        "--huge-pages",
        choices=("shipped", "all", "none"),
        default="shipped",
        help="on a CPU: JAX as our commands start it and PyTorch as it comes, both, or neither",
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuse what would fail in every process.

    Raises:
        SystemExit: torch asked for but not installed, or an unknown lowering.
    """
    if "torch" in args.impl and importlib.util.find_spec("torch") is None:
        refuse("--impl names torch, which is not installed", "pip install torch, or --impl jax")
    check_lowerings(args.lowering)


def check_lowerings(names: Iterable[str]) -> None:
    """Refuse an unknown lowering.

    Raises:
        SystemExit: there is one.
    """
    from mvo_jax.models.ops.lowerings import LOWERINGS

    unknown = sorted(set(names) - {"auto", *LOWERINGS})
    if unknown:
        refuse(
            f"--lowering names {', '.join(unknown)}",
            f"choose from auto, {', '.join(LOWERINGS)}",
        )


def refuse(cause: str, remedy: str) -> NoReturn:
    """End the program as the commands do on a user's mistake.

    Raises:
        SystemExit: always.
    """
    from mvo_jax.errors import EXIT_USER_ERROR

    print(f"error: {cause}\n  what to do: {remedy}", file=sys.stderr)
    raise SystemExit(EXIT_USER_ERROR)


def run(
    script: str,
    args: argparse.Namespace,
    groups: list[tuple[str, list[Config]]],
    gflop: Callable[[Config], float],
) -> list[dict[str, Any]]:
    """Compare group after group and print one table last.

    Returns:
        All rows. The JSON file is written after every group, so that a run that is cut off leaves
        what it has measured.
    """
    rows: list[dict[str, Any]] = []
    for title, configs in groups:
        print(title, flush=True)
        rows += compare(
            script,
            configs,
            rounds=args.rounds,
            quiet=args.quiet,
            patience_s=args.patience,
            gflop=gflop,
        )
        if args.json:
            write_json(args.json, rows)
    print_table(rows)
    if not rows:
        raise SystemExit("error: no contender could start; see above")
    return rows


def write_json(path: Path, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write rows with what is known of the host."""
    from mvo_jax.files import replace_file

    host = {"python": platform.python_version(), "cpus": os.cpu_count()}
    content = json.dumps({"host": host, "rows": rows, **more}, indent=1) + "\n"
    replace_file(path, content)
