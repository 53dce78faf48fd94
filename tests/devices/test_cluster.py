"""Which cluster the environment names, and when there is none."""

from typing import Any

import jax
import pytest
from jax._src.clusters import ClusterEnv

from mvo_jax.devices import distributed
from mvo_jax.devices.cluster import Cluster, find_cluster
from mvo_jax.errors import UserError

# Second of three tasks of a step on two nodes.
SLURM = {
    "SLURM_JOB_ID": "5000",
    "SLURM_NTASKS": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[007-008,11],other1",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
}
BY_HAND = {"JAX_COORDINATOR_ADDRESS": "host0:8476", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
FLAGS = {"coordinator_address": "host0:1", "num_processes": 2, "process_id": 0}


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({}, (1,)),
        ({"SLURM_STEP_NUM_NODES": "3"}, ()),  # alone on its node: all GPUs
        ({"CUDA_VISIBLE_DEVICES": "3"}, ()),  # bound by Slurm to one
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, (1,)),
    ],
    ids=str,
)
def test_slurm_tasks_share_the_gpus_of_a_node(changes, devices):
    assert find_cluster({**SLURM, **changes}) == Cluster("Slurm", 3, 1, None, devices)


@pytest.mark.parametrize(
    ("environment", "flags", "expected"),
    [
        (BY_HAND, {}, (2, 1, "host0:8476")),
        ({}, FLAGS, (2, 0, "host0:1")),
        (BY_HAND, {"process_id": 0}, (2, 0, "host0:8476")),
        (SLURM, {"coordinator_address": "fast0:99"}, (3, 1, "fast0:99")),
        (SLURM, {"mode": "on"}, (3, 1, None)),
        ({"TPU_WORKER_HOSTNAMES": "w0,w1"}, {}, (None, None, None)),
        ({"TPU_PROCESS_ADDRESSES": "w0:1,w1:1"}, {}, (None, None, None)),
        ({"JAX_COORDINATOR_ADDRESS": "w0:1"}, {"mode": "on"}, (None, None, "w0:1")),
    ],
    ids=str,
)
def test_flags_come_before_variables_and_these_before_what_jax_finds(environment, flags, expected):
    found = find_cluster(environment, **flags)
    assert found is not None
    assert (found.num_processes, found.process_id, found.coordinator_address) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "5000", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # batch script
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1"},  # srun --pty in a large allocation
        {"JAX_COORDINATOR_ADDRESS": "host0:8476"},  # set in an image, for whatever it runs
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"},  # an array of pods
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {**BY_HAND, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    ],
    ids=str,
)
def test_one_process_waits_for_nobody(environment):
    assert find_cluster(environment) is None
    assert find_cluster({**environment, **SLURM}, mode="off") is None


@pytest.mark.parametrize(
    ("environment", "flags", "words"),
    [
        ({}, {**FLAGS, "coordinator_address": "host0"}, "'host0'"),
        ({}, {**FLAGS, "coordinator_address": "host0:x"}, "'host0:x'"),
        ({}, {**FLAGS, "coordinator_address": "h:70000"}, "'h:70000'"),
        ({}, {"mode": "on", "num_processes": 1}, "names one process"),
        ({**BY_HAND, "JAX_NUM_PROCESSES": "two"}, {}, "JAX_NUM_PROCESSES is 'two'"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(environment, flags: dict[str, Any], words):
    with pytest.raises(UserError) as caught:
        find_cluster(environment, **flags)
    assert words in caught.value.cause
    assert caught.value.remedy
    assert "\n" not in caught.value.cause + caught.value.remedy


def test_jax_makes_the_coordinators_address_of_the_step(monkeypatch):
    # What is left to JAX, so that another version of it does not go unnoticed.
    found = find_cluster(SLURM)
    assert found is not None
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert ClusterEnv.auto_detect_unset_distributed_params(
        coordinator_address=found.coordinator_address,
        num_processes=found.num_processes,
        process_id=found.process_id,
        local_device_ids=found.local_device_ids,
        cluster_detection_method=None,
        initialization_timeout=300,
    ) == ("gpu007:62344", 3, 1, (1,))  # 61440 + 5000 % 4096


def test_processes_that_jax_knows_but_that_were_not_joined_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="not been joined"):
        distributed.exchange("")
