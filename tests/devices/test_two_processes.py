"""Two processes of two simulated devices each, over gloo, as on two hosts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvo_jax.devices import parallel
from mvo_jax.errors import EXIT_PEERS
from mvo_jax.runs.folder import RunFolder
from mvo_jax.training.setup import set_up
from tests.pair_process import CHANGES, predictions, run, streamed_losses
from tests.small_network import small

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """XLA's programs, kept between the pairs."""
    return tmp_path_factory.mktemp("xla")


def start_pair(folder: Path, cache: Path, **options: Any) -> list[subprocess.Popen]:
    address = f"localhost:{free_port()}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "NPROC": "16",
        "PYTHONPATH": str(ROOT),
    }
    defaults = {"talk": False, "run": "run", "kill_at": 0, "victim": 1}
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.pair_process",
                json.dumps(
                    {
                        "folder": str(folder),
                        "count": 2,
                        "index": index,
                        "address": address,
                        **defaults,
                        **options,
                    }
                ),
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]


def ended(pair: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """(exit status, what was printed) of each; none outlives the test."""
    try:
        outputs = [process.communicate(timeout=600)[0] for process in pair]
    finally:
        for process in pair:
            process.kill()
            process.wait()
    return [(process.returncode, output) for process, output in zip(pair, outputs, strict=True)]


def rows(folder: Path) -> list[dict[str, Any]]:
    history = RunFolder(folder).history()
    return [{k: v for k, v in row.items() if k != "clips_per_second"} for row in history]


def state_files(folder: Path) -> dict[str, str]:
    """The content hash that each checkpoint keeps of its arrays."""
    found = {}
    for path in sorted(folder.glob("checkpoints/*/*/meta/metadata")):
        found[str(path.relative_to(folder))] = json.loads(path.read_text())["sha256"]
    return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory, cache) -> tuple[Path, list[dict[str, Any]]]:
    """Folder and results of a pair that was not interrupted."""
    folder = tmp_path_factory.mktemp("pair")
    for code, output in ended(start_pair(folder, cache, talk=True)):
        assert code == 0, output
    return folder, [json.loads((folder / f"result_{i}.json").read_text()) for i in range(2)]


def test_processes_talk(pair):
    _, results = pair
    for index, result in enumerate(results):
        assert result["exchange"] == ["hello from 0", "hello from 1"]
        assert result["first_then_others"] == f"seen by {index}"
        assert result["failure of the first"] == "the disk is full"
        assert result["another config"] == (
            "process 1 has another config.seed than process 0: 1, not 0"
        )
        assert result["same config"] == result["shared"] == "nothing was wrong"
        assert result["not shared"].startswith("process 1 does not see")
        assert result["agree"] == [False, True, True, True, False]


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
    config = tiny_config(**CHANGES)
    return config, small(set_up(config, devices=parallel.devices(4)))


def test_evaluation_is_gathered_to_the_last_case_and_no_further(pair, four_devices):
    _, (first, second) = pair
    assert first["predictions"] == second["predictions"]
    ours, alone = first["predictions"], predictions(four_devices[1])
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
        results[0]["streamed losses"], streamed_losses(*four_devices), rtol=1e-6
    )


def test_a_run_of_two_processes_is_that_of_one(pair, tmp_path, monkeypatch):
    folder, _ = pair
    monkeypatch.setattr(parallel, "devices", lambda limit=0, found=parallel.devices: found(4))
    run(tmp_path, kill_at=0, victim=0)
    ours, alone = rows(folder / "run"), rows(tmp_path)
    assert [(row["step"], row["kind"]) for row in ours] == [
        (step, split) for step in (10, 20, 30) for split in ("train", "validation")
    ]
    for one, other in zip(ours, alone, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() & {"loss", "ce", "mask_mse", "auc"}:
            # float32 sums in another order through 30 updates of AdamW; seen: 5e-7.
            np.testing.assert_allclose(one[key], other[key], rtol=1e-5, err_msg=key)
    starts = json.loads((folder / "run" / "provenance.json").read_text())
    assert len(starts) == 1
    assert (starts[0]["processes"], len(starts[0]["devices"])) == (2, 4)


def test_a_killed_process_ends_the_other_and_the_pair_goes_on(pair, cache, tmp_path):
    folder, _ = pair
    # Before the save of step 20, and at once after going on from that of step 10.
    for victim, kill_at in ((1, 2), (0, 1)):
        processes = start_pair(tmp_path, cache, kill_at=kill_at, victim=victim)
        assert processes[victim].wait(timeout=600) == -signal.SIGKILL
        killed = time.monotonic()
        processes[1 - victim].wait(timeout=60)
        seconds = time.monotonic() - killed
        code, output = ended(processes)[1 - victim]
        assert code == EXIT_PEERS, output
        assert f"process {victim} is gone" in output
        assert "Traceback" not in output
        assert seconds < 20  # seen: 0.2; JAX's heartbeats would take a minute

    for code, output in ended(start_pair(tmp_path, cache)):
        assert code == 0, output
    assert rows(tmp_path / "run") == rows(folder / "run")
    assert state_files(tmp_path / "run") == state_files(folder / "run")
    assert len(state_files(folder / "run")) == 3  # two of the latest and the best
