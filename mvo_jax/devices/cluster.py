"""Which cluster a process was started in, read from its environment; nothing is started here."""

import dataclasses
import importlib.util
import re
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from mvo_jax.errors import UserError

# Ports of JAX's own formula for Slurm, so that jobs on one machine do not meet.
_FIRST_PORT, _PORTS = 61440, 4096
_METADATA = (
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
    "worker-network-endpoints"
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of one run and the place of this one among them.

    Attributes:
        found_by: what told us, for messages.
        num_processes: how many; None where JAX asks the cluster itself.
        process_id: 0 to num_processes - 1; None where JAX asks the cluster itself.
        coordinator_address: HOST:PORT at which process 0 listens; None as above.
        local_device_ids: accelerators of this process on its machine; None for all that it sees.
    """

    found_by: str
    num_processes: int | None = None
    process_id: int | None = None
    coordinator_address: str | None = None
    local_device_ids: tuple[int, ...] | None = None


def find_cluster(
    environment: Mapping[str, str],
    *,
    mode: str = "auto",
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    tpu_workers: Callable[[Mapping[str, str]], int] | None = None,
) -> Cluster | None:
    """Find the cluster that this process is part of.

    Flags come first, then ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and
    ``JAX_PROCESS_ID``, then what Slurm or Open MPI say of this step, then the workers of a TPU.
    One process is no cluster: a login node, an allocation without ``srun`` or a single TPU VM
    starts nothing and waits for nobody.

    Args:
        environment: normally ``os.environ``.
        mode: 'auto'; 'off' never finds one; 'on' must find one, and lets JAX ask where nothing here
            is known (as in a Kubernetes job with the package ``kubernetes``).
        coordinator_address: HOST:PORT, before all others.
        num_processes: before all others.
        process_id: before all others.
        tpu_workers: counts the hosts of a TPU; asks the environment and the metadata server unless
            given.

    Returns:
        The cluster, or None for one process.

    Raises:
        UserError: a value is missing, is no number or contradicts another.
    """
    if mode == "off":
        return None
    count = _first(num_processes, _number(environment, "JAX_NUM_PROCESSES"))
    index = _first(process_id, _number(environment, "JAX_PROCESS_ID"))
    if count is not None and index is None:  # set by an indexed Kubernetes job
        index = _number(environment, "JOB_COMPLETION_INDEX")
    address = coordinator_address or environment.get("JAX_COORDINATOR_ADDRESS") or None
    found = _from_slurm(environment) or _from_open_mpi(environment)
    if found is None and count is None and index is None:
        workers = tpu_workers or count_tpu_workers
        if workers(environment) > 1:
            return Cluster("the TPU's metadata", coordinator_address=address)
        if mode == "on":
            return Cluster("JAX", coordinator_address=address)
        if not coordinator_address:  # a variable may stand in an image, whatever it runs
            return None
    found = found or Cluster("flags or JAX_* variables")
    return _checked(
        dataclasses.replace(
            found,
            num_processes=_first(count, found.num_processes),
            process_id=_first(index, found.process_id),
            coordinator_address=address or found.coordinator_address,
        ),
        required=mode == "on",
    )


def _checked(cluster: Cluster, *, required: bool) -> Cluster | None:
    count, index, address = cluster.num_processes, cluster.process_id, cluster.coordinator_address
    if count == 1 and not index:
        if required:
            raise UserError(
                f"--distributed=on, but {cluster.found_by} names one process",
                "start more, or leave --distributed away",
            )
        return None
    missing = [
        f"--{name}"
        for name in ("coordinator_address", "num_processes", "process_id")
        if getattr(cluster, name) is None
    ]
    if missing or count is None or index is None or address is None:
        raise UserError(
            f"{cluster.found_by}: {' and '.join(missing)} not known",
            "give it as a flag, or as JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID",
        )
    if not 0 <= index < count:
        raise UserError(
            f"process {index} of {count} does not exist",
            f"number the processes from 0 to {count - 1} (--process_id, --num_processes)",
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(
            f"the coordinator's address is {address!r}",
            "write HOST:PORT with the host of process 0 and a free port, as in node001:8476",
        )
    return cluster


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if not text:
        return None
    if not text.isdigit():
        raise UserError(f"{name} is {text!r}, which is no number", f"set {name} anew, or unset it")
    return int(text)


def _port(environment: Mapping[str, str], job: int) -> str:
    return environment.get("JAX_COORDINATOR_PORT") or str(_FIRST_PORT + job % _PORTS)


def _from_slurm(environment: Mapping[str, str]) -> Cluster | None:
    """A step of several tasks. The allocation's SLURM_NTASKS also stands in its batch script."""
    count = _number(environment, "SLURM_STEP_NUM_TASKS")
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    # 'node[003-005,9],other' starts at node003.
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    if count is None or count < 2 or first is None:
        return None
    host = first[1] + (first[2] or "")
    job = _number(environment, "SLURM_JOB_ID") or 0
    return Cluster(
        "Slurm",
        count,
        _number(environment, "SLURM_PROCID"),
        f"{host}:{_port(environment, job)}",
        _devices_of_task(
            environment,
            tasks_here=_tasks_here(environment),
            task=_number(environment, "SLURM_LOCALID") or 0,
        ),
    )


def _tasks_here(environment: Mapping[str, str]) -> int:
    """Tasks of the step on this node: SLURM_STEP_TASKS_PER_NODE is like '8(x3),4'."""
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        if found := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip()):
            counts += [int(found[1])] * int(found[2] or 1)
    node = _number(environment, "SLURM_NODEID") or 0
    return counts[node] if node < len(counts) else 1


def _devices_of_task(
    environment: Mapping[str, str], *, tasks_here: int, task: int
) -> tuple[int, ...] | None:
    """One GPU a task where several tasks share a node and all see its GPUs; else what it sees."""
    seen = environment.get("CUDA_VISIBLE_DEVICES", "")
    if tasks_here == 1 or (seen and "," not in seen):
        return None
    return (task,)


def _from_open_mpi(environment: Mapping[str, str]) -> Cluster | None:
    count = _number(environment, "OMPI_COMM_WORLD_SIZE")
    if count is None or count < 2:
        return None
    # Open MPI 4 names the machine of mpirun: '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911'.
    address = None
    uri = re.match(r"(\d+)\.\d+;tcp://([^,:]+)", environment.get("OMPI_MCA_orte_hnp_uri", ""))
    if uri:
        # Its job numbers are multiples of 4096.
        address = f"{uri[2]}:{_port(environment, int(uri[1]) // 4096)}"
    return Cluster(
        "Open MPI",
        count,
        _number(environment, "OMPI_COMM_WORLD_RANK"),
        address,
        _devices_of_task(
            environment,
            tasks_here=_number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE") or 1,
            task=_number(environment, "OMPI_COMM_WORLD_LOCAL_RANK") or 0,
        ),
    )


def count_tpu_workers(environment: Mapping[str, str]) -> int:
    """Hosts of the TPU that this machine is part of; 0 where there is none."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms:
        return 0
    slices = _number(environment, "MEGASCALE_NUM_SLICES") or 1
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):  # Google Kubernetes Engine
        if environment.get(name):
            return slices * len(environment[name].split(","))
    chips = any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    if not chips or importlib.util.find_spec("libtpu") is None:
        return 0
    if environment.get("TPU_SKIP_MDS_QUERY"):
        return slices
    request = urllib.request.Request(_METADATA, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=3) as answer:
            return slices * len(answer.read().decode().split(","))
    except OSError:  # no metadata server: not a VM of that cloud
        return 0
