"""Which cluster the environment names, and when there is none."""

from typing import Any

import pytest

from mvo_jax.devices.cluster import Cluster, count_tpu_workers, find_cluster
from mvo_jax.errors import UserError

# Second of three tasks of a step, two of them on the first node.
SLURM = {
    "SLURM_JOB_ID": "5000",
    "SLURM_NTASKS": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "gpu[007-008,11],other1",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
BY_HAND = {
    "JAX_COORDINATOR_ADDRESS": "host0:8476",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}


def find(environment: dict[str, str], *, workers: int = 0, **flags: Any) -> Cluster | None:
    return find_cluster(environment, tpu_workers=lambda _: workers, **flags)


def test_slurm_names_the_step():
    # 61440 + 5000 % 4096, as JAX would choose.
    assert find(SLURM) == Cluster("Slurm", 3, 1, "gpu007:62344", (1,))


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({"SLURM_NODEID": "1", "SLURM_LOCALID": "0"}, None),  # alone on its node: all GPUs
        ({"CUDA_VISIBLE_DEVICES": "3"}, None),  # bound by Slurm to one
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, (1,)),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x3)"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_NODEID": "1"}, (1,)),
    ],
    ids=str,
)
def test_slurm_tasks_share_the_gpus_of_a_node(changes, devices):
    found = find({**SLURM, **changes})
    assert found is not None
    assert found.local_device_ids == devices


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("node1", "node1"), ("node1,node2", "node1"), ("rack1-n[3-5]", "rack1-n3"), ("a[09]", "a09")],
)
def test_the_first_node_is_the_coordinator(nodes, host):
    found = find({**SLURM, "SLURM_STEP_NODELIST": nodes, "JAX_COORDINATOR_PORT": "777"})
    assert found is not None
    assert found.coordinator_address == f"{host}:777"


def test_open_mpi():
    assert find(OPEN_MPI) == Cluster("Open MPI", 4, 3, "10.96.0.1:62624", (1,))
    newer = {k: v for k, v in OPEN_MPI.items() if "hnp" not in k}
    with pytest.raises(UserError, match="Open MPI: --coordinator_address not known"):
        find(newer)
    found = find(newer, coordinator_address="host0:1234")
    assert found is not None
    assert found.coordinator_address == "host0:1234"


def test_variables_and_flags():
    expected = Cluster("flags or JAX_* variables", 2, 1, "host0:8476")
    assert find(BY_HAND) == expected
    assert find({}, coordinator_address="host0:8476", num_processes=2, process_id=1) == expected
    found = find(BY_HAND, process_id=0)
    assert found is not None
    assert found.process_id == 0
    # A pod of an indexed job knows its place from Kubernetes.
    pod = {**BY_HAND, "JOB_COMPLETION_INDEX": "0"}
    del pod["JAX_PROCESS_ID"]
    found = find(pod)
    assert found is not None
    assert found.process_id == 0
    # Flags over Slurm.
    found = find(SLURM, coordinator_address="fast0:99")
    assert found is not None
    assert (found.num_processes, found.coordinator_address) == (3, "fast0:99")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "5000", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # batch script
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1"},  # srun --pty in a large allocation
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"JAX_COORDINATOR_ADDRESS": "host0:8476"},  # set in an image, for whatever it runs
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"},  # an array of pods
        {**BY_HAND, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    ],
    ids=str,
)
def test_one_process_waits_for_nobody(environment):
    assert find(environment) is None


def test_off_and_on():
    assert find(SLURM, mode="off") is None
    assert find(SLURM, mode="on") == find(SLURM)
    assert find({}, mode="on") == Cluster("JAX")
    with pytest.raises(UserError, match="names one process"):
        find({}, mode="on", num_processes=1)


def test_tpu():
    assert find({}, workers=4) == Cluster("the TPU's metadata")
    assert find({"JAX_COORDINATOR_ADDRESS": "w0:1"}, workers=4) == Cluster(
        "the TPU's metadata", coordinator_address="w0:1"
    )
    assert find({}, workers=1) is None


@pytest.mark.parametrize(
    ("environment", "workers"),
    [
        ({"TPU_WORKER_HOSTNAMES": "w0,w1,w2,w3"}, 4),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, 1),
        ({"TPU_PROCESS_ADDRESSES": "w0:1,w1:1", "MEGASCALE_NUM_SLICES": "3"}, 6),
        ({"TPU_WORKER_HOSTNAMES": "w0,w1", "JAX_PLATFORMS": "cpu"}, 0),
        ({}, 0),
    ],
    ids=str,
)
def test_hosts_of_a_tpu(environment, workers):
    assert count_tpu_workers(environment) == workers


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"coordinator_address": "host0:1"}, "--num_processes and --process_id not known"),
        ({"num_processes": 2}, "--coordinator_address and --process_id not known"),
        ({"process_id": 0}, "--num_processes not known"),
        ({"coordinator_address": "host0", "num_processes": 2, "process_id": 0}, "'host0'"),
        ({"coordinator_address": "host0:x", "num_processes": 2, "process_id": 0}, "'host0:x'"),
        ({"coordinator_address": "h:70000", "num_processes": 2, "process_id": 0}, "'h:70000'"),
        ({"coordinator_address": "h:1", "num_processes": 2, "process_id": 2}, "process 2 of 2"),
    ],
    ids=str,
)
def test_flags_that_say_too_little(flags, words):
    with pytest.raises(UserError) as caught:
        find({}, **flags)
    assert words in caught.value.cause
    assert caught.value.remedy
    assert "\n" not in caught.value.cause + caught.value.remedy


def test_a_variable_that_is_no_number():
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES is 'two'"):
        find({**BY_HAND, "JAX_NUM_PROCESSES": "two"})
