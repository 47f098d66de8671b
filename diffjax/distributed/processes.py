"""One run in several processes: initialisation, and communication between hosts.

`jax.distributed` connects the processes and ends all of them when one dies. Every process runs the
same program with the same workdir, on a file system that all of them share; only the primary
process, number 0, writes.
"""

import collections
import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffjax.errors import UserError

# Names of --cluster -> JAX's names of cluster environments.
CLUSTERS = {
    "slurm": "slurm",
    "cloud_tpu": "gcetpu",
    "gke_tpu": "gketpu",
    "kubernetes": "k8s",
    "open_mpi": "ompi",
}
CONNECT_TIMEOUT = 300  # seconds that a process waits for the others at the start
# Seconds without a heartbeat after which a process counts as dead, and all others end.
HEARTBEAT_TIMEOUT = 30
# Seconds that a process waits for work of the primary one: writing, training a classifier.
PRIMARY_TIMEOUT = 24 * 3600
MAX_TEXT_BYTES = 4096  # of a text that the primary process broadcasts


class ProcessAddress(NamedTuple):
    """A process's address among those of its run, from the command line.

    Attributes:
      cluster: one of CLUSTERS, whose environment variables give the rest; "" for none.
      coordinator: host:port of the primary process, without a cluster; "" for none.
      processes: number of processes.
      process: the number of this one, from 0.
    """

    cluster: str = ""
    coordinator: str = ""
    processes: int = 0
    process: int = -1


SINGLE_PROCESS = ProcessAddress()


def check(place: ProcessAddress) -> None:
    """Raises UserError for invalid --cluster, --coordinator, --processes and --process."""
    cluster, coordinator, processes, process = place
    if cluster and cluster not in CLUSTERS:
        raise UserError(f"--cluster={cluster}: expected one of {', '.join(CLUSTERS)}")
    if cluster and (coordinator or processes or process >= 0):
        raise UserError(
            f"--cluster={cluster} determines the processes: leave out --coordinator, --processes "
            "and --process, or leave out --cluster"
        )
    if not coordinator and (processes or process >= 0):
        raise UserError(
            "--processes and --process need --coordinator=host:port, the address of process 0"
        )
    if not coordinator:
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={coordinator}: expected host:port, such as 10.0.0.1:8476")
    if processes < 1:
        raise UserError(f"--processes={processes}: expected the number of processes, at least 1")
    if not 0 <= process < processes:
        raise UserError(f"--process={process}: expected a process number in [0, {processes})")


def initialize(place: ProcessAddress) -> None:
    """Connects to the run's other processes; call it before any computation.

    Raises:
      UserError: inconsistent flags, a missing cluster environment, or one of several SLURM tasks or
        TPU hosts started without --cluster.
    """
    check(place)
    if place == SINGLE_PROCESS:
        _refuse_to_be_one_of_many(os.environ)
        return
    if place.cluster:
        options: dict[str, Any] = {"cluster_detection_method": CLUSTERS[place.cluster]}
        if place.cluster == "slurm":
            options["local_device_ids"] = slurm_devices(os.environ)
    else:
        options = {
            "coordinator_address": place.coordinator,
            "num_processes": place.processes,
            "process_id": place.process,
            "cluster_detection_method": "deactivate",
        }
    # The service would intercept SIGTERM; training runs use `StopVotes`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **options,
            initialization_timeout=CONNECT_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except Exception as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        flag = f"--cluster={place.cluster}" if place.cluster else f"--coordinator={place[1]}"
        raise UserError(
            f"{flag}: the processes could not be connected ({message}): start all of them with "
            "the same command, each with its own number"
        ) from error


def _refuse_to_be_one_of_many(environment: Any) -> None:
    """Raises UserError if unconnected tasks would each train by themselves in one workdir."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks.isdecimal() and int(tasks) > 1:
        raise UserError(
            f"this is one of {tasks} tasks of a SLURM step: add --cluster=slurm to run them as "
            "one, or start a single task"
        )
    workers = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if len(workers) > 1:
        raise UserError(
            f"this is one of the {len(workers)} hosts of a TPU slice: add --cluster=cloud_tpu or "
            "--cluster=gke_tpu, and start it on each"
        )


def slurm_devices(environment: Any) -> Sequence[int] | None:
    """The GPUs of a SLURM task alone on its node; None for JAX's default, one GPU per task."""
    tasks, nodes = environment.get("SLURM_NTASKS"), environment.get("SLURM_STEP_NUM_NODES")
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    if tasks is None or tasks != nodes or not gpus.isdecimal():
        return None
    return range(int(gpus))


def is_multiprocess() -> bool:
    """Whether the run has more than one process."""
    # Avoid initialising a backend in single-process runs.
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_primary() -> bool:
    """Whether this is the process that writes."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def devices() -> list[Any]:
    """All devices of the run, sorted by process.

    Raises:
      UserError: processes with different numbers of devices, which can't share a batch evenly.
    """
    by_process = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    counts = np.bincount([device.process_index for device in by_process])
    if len(set(counts)) > 1:
        raise UserError(
            f"the processes have {', '.join(map(str, counts))} devices: expected the same number"
        )
    return by_process


_waits = itertools.count()


def barrier() -> None:
    """Waits for all processes, on the hosts: device collectives have short timeouts.

    Gloo's, on CPUs, end the run if one process is half a minute late.
    """
    if is_multiprocess():
        from orbax.checkpoint import multihost  # slow to import, so only where it is used

        everyone = set(range(jax.process_count()))
        name = f"diffjax_{next(_waits)}"
        multihost.sync_global_processes(name, timeout=PRIMARY_TIMEOUT, processes=everyone)


def run_on_primary(work: Callable[[], str | None]) -> str:
    """Runs `work` in the primary process and returns its result in all of them.

    Raises:
      UserError: in all processes, if `work` raises it.
    """
    if not is_multiprocess():
        return work() or ""
    reply = ""
    if is_primary():
        try:
            reply = "+" + (work() or "")
        except UserError as error:
            barrier()
            _broadcast_text("-" + str(error))
            raise
    barrier()
    reply = _broadcast_text(reply)
    if reply.startswith("-"):
        raise UserError(reply[1:])
    return reply[1:]


def _broadcast_text(text: str) -> str:
    """The primary process's text, truncated to MAX_TEXT_BYTES."""
    sent = np.zeros(MAX_TEXT_BYTES, np.uint8)
    encoded = text.encode()[:MAX_TEXT_BYTES]
    sent[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    return bytes(received).rstrip(b"\0").decode(errors="ignore")


def check_same(what: str, text: str) -> None:
    """Raises UserError in every process if a text, such as a config, differs among them."""
    if not is_multiprocess():
        return
    digest = hashlib.sha256(text.encode()).hexdigest()
    theirs = run_on_primary(lambda: digest)
    same = np.asarray(multihost_utils.process_allgather(np.asarray(theirs == digest)))
    if not same.all():
        others = ", ".join(map(str, np.flatnonzero(~same)))
        raise UserError(
            f"{what} of process {others} differs from that of process 0: start all of them with "
            "the same command, on the same data"
        )


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; a collective, called by all of them."""
    if not is_multiprocess():
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def on_host(x: Any) -> np.ndarray:
    """The whole of an array with any sharding, in every process; a collective."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def gather_to_host(tree: Any) -> Any:
    """A tree of whole NumPy arrays in the primary process, None in others; one array at a time."""
    leaves, structure = jax.tree.flatten(tree)
    gathered = []
    for leaf in leaves:
        whole = on_host(leaf)
        if is_primary():
            gathered.append(whole)
    return jax.tree.unflatten(structure, gathered) if is_primary() else None


def put(x: Any, sharding: NamedSharding) -> jax.Array:
    """Places an array by a sharding; a host array is whole and the same in all processes."""
    if isinstance(x, jax.Array) and (x.sharding == sharding or not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


class StopVotes:
    """Makes all processes stop at the same step once any of them receives a signal.

    The vote on a step is read `behind` steps later, so that no step waits for it.
    """

    def __init__(self, *, behind: int = 2) -> None:
        """Prepares votes that are read `behind` steps later."""
        self._behind = behind
        self._under_way: collections.deque[Any] = collections.deque()
        if is_multiprocess():
            mesh = Mesh(np.asarray(devices()), ("all",))
            self._spread = NamedSharding(mesh, PartitionSpec("all"))
            self._highest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def poll(self, signal: int | None, *, after: Any = None) -> int | None:
        """The signal to stop at this step, the same in all processes, or None.

        Args:
          signal: the signal that this process received.
          after: the step's output.

        Raises:
          jax.errors.JaxRuntimeError: on CPUs, the step failed, for example as a process died.
        """
        if not is_multiprocess():
            return signal
        # Gloo aborts where two collectives meet, as after one of them failed: on CPUs, a vote
        # begins after its step, and the next step after the vote.
        in_order = jax.default_backend() == "cpu"
        if in_order:
            jax.block_until_ready(after)
        mine = np.full(jax.local_device_count(), signal or 0, np.int32)
        cast = jax.make_array_from_process_local_data(self._spread, mine)
        vote = self._highest(cast)
        if in_order:
            jax.block_until_ready(vote)
        self._under_way.append(vote)
        if len(self._under_way) <= self._behind:
            return None
        return int(self._under_way.popleft()) or None
