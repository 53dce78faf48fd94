"""Whether this process is one of several, from its environment; JAX finds the rest."""

import dataclasses
from collections.abc import Mapping

from mvo_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of one run and the place of this one among them; JAX finds what is None."""

    found_by: str  # what names the processes, for messages
    num_processes: int | None = None
    process_id: int | None = None  # 0 to num_processes - 1
    coordinator_address: str | None = None  # HOST:PORT at which process 0 listens
    # Accelerators of this process on its machine; () for all that it sees, None also for those of
    # ``JAX_LOCAL_DEVICE_IDS``.
    local_device_ids: tuple[int, ...] | None = None


def find_cluster(
    environment: Mapping[str, str],
    *,
    mode: str = "auto",
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Cluster | None:
    """The cluster that this process is part of, or None for one process.

    Flags (the last three) come first, then ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and
    ``JAX_PROCESS_ID``, then what Slurm says of this step, then the hosts of a TPU node pool. One
    process is no cluster: a login node or an allocation without ``srun`` starts nothing and waits
    for nobody.

    Args:
        environment: normally ``os.environ``.
        mode: 'auto'; 'off' never finds one; 'on' must find one, and lets JAX ask where nothing here
            is known: a TPU VM's metadata, Open MPI 4, Kubernetes (with its Python package).

    Raises:
        UserError: a value is no number or address, or names one process where 'on' asks for more.
    """
    if mode == "off":
        return None
    given = {"num_processes": num_processes, "process_id": process_id}
    for name, flag in given.items():
        given[name] = _number(environment, f"JAX_{name.upper()}") if flag is None else flag
    given = {name: number for name, number in given.items() if number is not None}
    address = coordinator_address or environment.get("JAX_COORDINATOR_ADDRESS") or None
    found = _from_slurm(environment)
    if found is None and not given:
        # Set by Google Kubernetes Engine, also for a single host.
        hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
        if mode == "on" or "," in (hosts or ""):
            return Cluster("JAX", coordinator_address=address)
        if not coordinator_address:  # a variable may stand in an image, whatever it runs
            return None
    found = found or Cluster("flags or JAX_* variables")
    found = dataclasses.replace(found, coordinator_address=address, **given)
    if found.num_processes == 1 and not found.process_id:
        if mode == "on":
            cause = f"--distributed=on, but {found.found_by} names one process"
            raise UserError(cause, "start more, or leave --distributed away")
        return None
    host, _, port = (address or "found_by_jax:1").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(
            f"the coordinator's address is {address!r}",
            "write HOST:PORT with the host of process 0 and a free port, as in node001:8476",
        )
    return found


def _from_slurm(environment: Mapping[str, str]) -> Cluster | None:
    """A step of several tasks. SLURM_NTASKS, which JAX takes, also stands in a batch script."""
    count = _number(environment, "SLURM_STEP_NUM_TASKS") or 0
    if count < 2:
        return None
    # Several tasks a node take one GPU each where all of them see all; one task takes what it sees.
    seen = environment.get("CUDA_VISIBLE_DEVICES", "")
    share = count > (_number(environment, "SLURM_STEP_NUM_NODES") or 1)
    one = share and (not seen or "," in seen)
    return Cluster(
        "Slurm",
        count,
        _number(environment, "SLURM_PROCID"),
        local_device_ids=(_number(environment, "SLURM_LOCALID") or 0,) if one else (),
    )


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if not text:
        return None
    if not text.isdigit():
        raise UserError(f"{name} is {text!r}, which is no number", f"set {name} anew, or unset it")
    return int(text)
