"""Two processes of two simulated devices each, over gloo, as on two hosts."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest

from mvo_jax.devices import parallel
from mvo_jax.errors import EXIT_INTERRUPTED, EXIT_PEERS, EXIT_USER_ERROR
from mvo_jax.training.setup import set_up
from tests.pair_process import CHANGES, METRICS, predictions, rows, run, streamed_losses
from tests.small_network import small
from tools.tiny_run import array_hashes

pytestmark = pytest.mark.slow(
    reason="starts pairs of processes, which compile and wait for each other's heartbeat"
)

ROOT = Path(__file__).resolve().parents[2]


Ended = list[tuple[int, str, float]]  # of each: exit status, what it printed, when


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory) -> Callable[..., Ended]:
    """``pair_of(action, **options)``: what became of two processes of ``tests.pair_process``."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # XLA's programs, kept between the pairs.
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("xla")),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "NPROC": "16",
    }

    def pair_of(
        action: str,
        *,
        counts: Any = (2, 2),
        seconds: int = 30,
        second: Mapping[str, str] = MappingProxyType({}),  # variables of the second process
        **options: Any,
    ) -> Ended:
        with socket.create_server(("localhost", 0)) as server:
            address = f"localhost:{server.getsockname()[1]}"
        words = [address, str(seconds), action, json.dumps(options)]
        pair = [
            subprocess.Popen(
                [sys.executable, "-u", "-m", "tests.pair_process", *words, str(index), str(count)],
                cwd=ROOT,
                env={**environment, **(second if index else {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index, count in enumerate(counts)
        ]

        def ended(process: subprocess.Popen) -> tuple[int, str, float]:
            output = process.communicate(timeout=600)[0]
            return process.returncode, output, time.monotonic()

        try:
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                return list(pool.map(ended, pair))
        finally:
            for process in pair:
                process.kill()
                process.wait()

    return pair_of


def state_files(folder: Path) -> dict[str, Any]:
    """Hashes of the arrays of each checkpoint."""
    return {
        str(path.relative_to(folder)): array_hashes(ocp.StandardCheckpointer().restore(path))
        for path in sorted(folder.glob("checkpoints/*/*/arrays"))
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory, pair_of) -> tuple[Path, list[dict[str, Any]]]:
    """Folder and results of a pair that was not interrupted."""
    folder = tmp_path_factory.mktemp("pair")
    for code, output, _ in reversed(pair_of("everything", folder=str(folder))):
        assert code == 0, output
    return folder, [json.loads((folder / f"result_{i}.json").read_text()) for i in range(2)]


def test_processes_talk(pair):
    _, results = pair
    for index, result in enumerate(results):
        assert result["exchange"] == ["hello from 0", "hello from 1"]
        assert result["first_then_others"] == f"seen by {index}"
        assert result["failure of the first"] == "the disk is full"
        host = socket.gethostname()
        assert result["another config"] == (
            f"process 1 on {host} has another config.seed than process 0 on {host}: 1, not 0"
        )
        assert result["same config"] == result["shared"] == "nothing was wrong"
        assert result["not shared"].startswith("process 1 does not see")
        assert result["agree"] == [False, True, True, True, False]
        # Process 1 would have chosen another.
        assert result["lowering"] == results[0]["lowering"] != "conv2d"


def test_devices_of_both_share_a_batch(pair):
    _, results = pair
    for index, result in enumerate(results):
        assert result["devices"] == [0, 0, 1, 1]
        assert result["two devices"] == [0, 1]
        assert "3 devices of 2 processes" in result["three devices"]
        assert result["own rows"] == [[0, 1, 2, 3], [4, 5, 6, 7]][index]
        assert "batch of 6 cannot be shared by 4 devices" in result["batch of six"]


@pytest.fixture(scope="module")
def four_devices(tiny_config) -> Any:
    return small(set_up(tiny_config(**CHANGES), devices=parallel.devices(4)))


def test_evaluation_is_gathered_to_the_last_case_and_no_further(pair, four_devices):
    _, (first, second) = pair
    assert first["predictions"] == second["predictions"]
    ours, alone = first["predictions"], predictions(four_devices)
    assert len(ours["resident"]) == len(set(ours["resident"])) == 7
    assert ours["streamed"] == ours["resident"]
    for name, value in alone.items():
        # The same share of a batch on each device, so the same program: equal to the bit.
        assert ours[name] == value, name


def test_streamed_steps_of_own_rows_are_those_of_one_process(pair, four_devices):
    _, results = pair
    assert results[0]["streamed losses"] == results[1]["streamed losses"]
    # gloo sums in another order than one process does.
    np.testing.assert_allclose(
        results[0]["streamed losses"], streamed_losses(four_devices), rtol=1e-6
    )


def test_a_run_of_two_processes_is_that_of_one(pair, tmp_path):
    folder, _ = pair
    ours, alone = rows(folder / "run"), run(tmp_path, devices=4)
    assert [(row["step"], row["kind"]) for row in ours] == [
        (step, split) for step in (10, 20, 30) for split in ("train", "validation")
    ]
    for one, other in zip(ours, alone, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() & set(METRICS):
            # float32 sums in another order through 30 updates of AdamW; seen: 5e-7.
            np.testing.assert_allclose(one[key], other[key], rtol=1e-5, err_msg=key)
    starts = json.loads((folder / "run" / "provenance.json").read_text())
    assert len(starts) == 1
    assert (starts[0]["processes"], len(starts[0]["devices"])) == (2, 4)


LOST = {  # how a process ends whose peer is lost, and what it says
    EXIT_PEERS: "error: another process is gone",
    -signal.SIGABRT: "This most likely indicates that another task died",
}


def seconds_to_notice(ended: Ended, lost: int) -> float:
    """How long after the lost process the other one ended, and that it said why."""
    code, output, when = ended[1 - lost]
    print(f"without process {lost}: {code} after {when - ended[lost][2]:.1f} s\n{output}")
    assert LOST[code] in output
    return when - ended[lost][2]


def test_a_lost_or_stopped_process_ends_the_other_and_the_pair_goes_on(pair, pair_of, tmp_path):
    # Before the save of step 20, and then at once after going on from that of step 10.
    for victim, kill_at in ((1, 2), (0, 1)):
        options = {"kill_at": kill_at, "victim": victim, "number": signal.SIGKILL}
        ended = pair_of("run", folder=str(tmp_path), **options)
        assert ended[victim][0] == -signal.SIGKILL, ended[victim][1]
        assert seconds_to_notice(ended, victim) < 60
    # A signal to one of them saves and ends both, at one step.
    ended = pair_of("run", folder=str(tmp_path), kill_at=1, victim=1, number=signal.SIGTERM)
    assert [code for code, *_ in ended] == [EXIT_INTERRUPTED] * 2, ended
    assert rows(tmp_path)[-1]["step"] == 20
    for code, output, _ in pair_of("run", folder=str(tmp_path)):
        assert code == 0, f"{output}"
    folder, _ = pair
    assert rows(tmp_path) == rows(folder / "run")
    assert state_files(tmp_path) == state_files(folder / "run")
    assert len(state_files(folder / "run")) == 3  # two of the latest and the best


@pytest.mark.parametrize("only", [0, 1])
def test_a_mistake_in_one_process_ends_the_other(only, pair_of):
    ended = pair_of("fail", only=only, seconds=10)
    assert ended[only][0] == EXIT_USER_ERROR
    assert "error: there is no data" in ended[only][1]
    assert seconds_to_notice(ended, only) < 30


def test_a_mistake_that_all_find_is_said_by_all(pair_of):
    for code, output, _ in pair_of("fail", only=None):
        assert code == EXIT_USER_ERROR, output
        host = socket.gethostname()
        assert f"error: process 1 on {host} has another seed than process 0 on {host}" in output


# A variable of the second process, and what both then name: one of each kind.
# tests/devices/test_computation.py has all of them in one process.
DIFFERING = [
    ("JAX_ENABLE_X64", "1", "jax_enable_x64"),
    ("JAX_PLATFORMS", "cuda", "JAX_PLATFORMS"),
    ("PYTHONPATH", "OTHER_OPTAX", "versions.optax"),
]


@pytest.mark.parametrize(("name", "value", "words"), DIFFERING)
def test_one_setting_that_differs_is_refused_before_a_device_starts(
    name, value, words, pair_of, tmp_path
):
    if value == "OTHER_OPTAX":
        (tmp_path / "optax-0.0.1.dist-info").mkdir()
        (tmp_path / "optax-0.0.1.dist-info" / "METADATA").write_text("Name: optax\nVersion: 0.0.1")
        value = str(tmp_path)
    host = socket.gethostname()
    for code, output, _ in pair_of("fail", only=None, second={name: value}):
        assert code == EXIT_USER_ERROR, output
        assert f"process 1 on {host} has another {words} than process 0 on {host}" in output


def test_processes_that_disagree_on_their_number(pair_of):
    _, (code, output, _) = pair_of("fail", only=None, counts=(2, 3), seconds=10)
    assert code == EXIT_USER_ERROR, output
    assert "error: process 1 is one of 3, but process 0 one of 2" in output
