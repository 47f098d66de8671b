"""One run in several processes: how they find each other, and what they must agree on.

JAX's runtime is what connects them (`jax.distributed`): it tells who is there, carries the
collectives, and ends every process of a run when one of them is gone. Every process runs the same
program over the same workdir, which lies where all of them see it; the first one writes.
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

# Names of --cluster -> JAX's names for what tells a process its place.
CLUSTERS = {
    "slurm": "slurm",
    "cloud_tpu": "gcetpu",
    "gke_tpu": "gketpu",
    "kubernetes": "k8s",
    "open_mpi": "ompi",
}
CONNECT_TIMEOUT = 300  # seconds that a process waits for the others at the start
# Seconds without a sign of life after which a process counts as gone, and all others end.
HEARTBEAT_TIMEOUT = 30
# Seconds that a process waits for what the first one does alone: writing, training a classifier.
PRIMARY_TIMEOUT = 24 * 3600
MAX_TEXT_BYTES = 4096  # bytes of a text that one process tells the others


class ProcessAddress(NamedTuple):
    """Where a process stands among those of its run, as the command line says.

    Attributes:
      cluster: one of CLUSTERS, whose environment is asked; "" for none.
      coordinator: host:port of the first process, where there is no cluster to ask; "" for none.
      processes: how many there are.
      process: the number of this one, from 0.
    """

    cluster: str = ""
    coordinator: str = ""
    processes: int = 0
    process: int = -1


SINGLE_PROCESS = ProcessAddress()


def check(place: ProcessAddress) -> None:
    """Raises UserError for a place that is no place, before anything waits for others."""
    cluster, coordinator, processes, process = place
    if cluster and cluster not in CLUSTERS:
        raise UserError(f"--cluster={cluster}: expected one of {', '.join(CLUSTERS)}")
    if cluster and (coordinator or processes or process >= 0):
        raise UserError(
            f"--cluster={cluster} finds the processes by itself: leave out --coordinator, "
            "--processes and --process, or name these three alone"
        )
    if not coordinator and (processes or process >= 0):
        raise UserError(
            "--processes and --process need --coordinator=host:port, the first process's address"
        )
    if not coordinator:
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={coordinator}: expected host:port, such as 10.0.0.1:8476")
    if processes < 1:
        raise UserError(f"--processes={processes}: expected how many take part, at least 1")
    if not 0 <= process < processes:
        raise UserError(f"--process={process}: expected this one's number in [0, {processes})")


def initialize(place: ProcessAddress) -> None:
    """Joins the run's other processes; to be called before anything is computed.

    Raises:
      UserError: a place that is none, a cluster's environment that is not there, or a program that
        is one of several and was not told so.
    """
    check(place)
    if place == SINGLE_PROCESS:
        _refuse_to_be_one_of_many(os.environ)
        return
    if place.cluster:
        who: dict[str, Any] = {"cluster_detection_method": CLUSTERS[place.cluster]}
        if place.cluster == "slurm":
            who["local_device_ids"] = slurm_devices(os.environ)
    else:
        who = {
            "coordinator_address": place.coordinator,
            "num_processes": place.processes,
            "process_id": place.process,
            "cluster_detection_method": "deactivate",
        }
    # Its handler would keep SIGTERM from ending a process; trainings have `StopVotes`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **who,
            initialization_timeout=CONNECT_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        where = f"--cluster={place.cluster}" if place.cluster else f"--coordinator={place[1]}"
        raise UserError(
            f"{where}: the processes could not be connected ({said}): expected all of them to be "
            "started with the same command, each with its own number"
        ) from error


def _refuse_to_be_one_of_many(environment: Any) -> None:
    """Without a word of others each task of a step would train by itself, all in one workdir."""
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
    """The GPUs of a SLURM task that has its node to itself; None for JAX's rule, one GPU a task."""
    tasks, nodes = environment.get("SLURM_NTASKS"), environment.get("SLURM_STEP_NUM_NODES")
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    if tasks is None or tasks != nodes or not gpus.isdecimal():
        return None
    return range(int(gpus))


def is_multiprocess() -> bool:
    """Whether the run has more than one process."""
    # Who did not join any others need not wait for a backend to know.
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_primary() -> bool:
    """Whether this is the process that writes."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def devices() -> list[Any]:
    """All devices of the run, those of a process next to each other, in the processes' order.

    Raises:
      UserError: processes of different numbers of devices, which can't share a batch evenly.
    """
    found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    counts = np.bincount([device.process_index for device in found])
    if len(set(counts)) > 1:
        raise UserError(
            f"the processes have {', '.join(map(str, counts))} devices: expected as many each"
        )
    return found


_waits = itertools.count()


def barrier() -> None:
    """Until all processes are here: on the hosts, since devices wait for each other a short time.

    Gloo's collectives, a CPU's, end the run when one of them is half a minute late.
    """
    if is_multiprocess():
        from orbax.checkpoint import multihost  # not for whoever is alone: it takes a second

        everyone = set(range(jax.process_count()))
        name = f"diffjax_{next(_waits)}"
        multihost.sync_global_processes(name, timeout=PRIMARY_TIMEOUT, processes=everyone)


def run_on_primary(work: Callable[[], str | None]) -> str:
    """What `work` returns in the first process, in all of them; the others don't do it.

    Raises:
      UserError: in all processes, where the first one met it.
    """
    if not is_multiprocess():
        return work() or ""
    told = ""
    if is_primary():
        try:
            told = "+" + (work() or "")
        except UserError as error:
            barrier()
            _broadcast_text("-" + str(error))
            raise
    barrier()
    told = _broadcast_text(told)
    if told.startswith("-"):
        raise UserError(told[1:])
    return told[1:]


def _broadcast_text(text: str) -> str:
    """The first process's text, cut to what fits."""
    sent = np.zeros(MAX_TEXT_BYTES, np.uint8)
    given = text.encode()[:MAX_TEXT_BYTES]
    sent[: len(given)] = np.frombuffer(given, np.uint8)
    got = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    return bytes(got).rstrip(b"\0").decode(errors="ignore")


def check_same(what: str, text: str) -> None:
    """Raises UserError in every process where a text, a config say, is not the same in all."""
    if not is_multiprocess():
        return
    digest = hashlib.sha256(text.encode()).hexdigest()
    theirs = run_on_primary(lambda: digest)
    same = np.asarray(multihost_utils.process_allgather(np.asarray(theirs == digest)))
    if not same.all():
        others = ", ".join(map(str, np.flatnonzero(~same)))
        raise UserError(
            f"{what} of process {others} is not that of process 0: start all of them with the "
            "same command, on the same data"
        )


def any_process(flag: bool) -> bool:
    """Whether it is so in any process; all of them ask at the same point."""
    if not is_multiprocess():
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def on_host(x: Any) -> np.ndarray:
    """An array that lies anywhere, as a whole, in every process; all of them ask for it."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def gather_to_host(tree: Any) -> Any:
    """The first process's tree of whole NumPy arrays, one array at a time; None in the others."""
    leaves, structure = jax.tree.flatten(tree)
    found = []
    for leaf in leaves:
        whole = on_host(leaf)
        if is_primary():
            found.append(whole)
    return jax.tree.unflatten(structure, found) if is_primary() else None


def put(x: Any, sharding: NamedSharding) -> jax.Array:
    """An array where a sharding says; one of the host's is whole, and the same in all processes."""
    if isinstance(x, jax.Array) and (x.sharding == sharding or not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


class StopVotes:
    """A wish to stop that came to any process becomes a stop of all at the same step.

    The vote on a step travels with the steps and is read some steps later, so none waits for it.
    """

    def __init__(self, *, behind: int = 2) -> None:
        """Counts votes of `behind` steps ago."""
        self._behind = behind
        self._under_way: collections.deque[Any] = collections.deque()
        if is_multiprocess():
            mesh = Mesh(np.asarray(devices()), ("all",))
            self._spread = NamedSharding(mesh, PartitionSpec("all"))
            self._highest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def poll(self, signal: int | None, *, after: Any = None) -> int | None:
        """The signal to stop by now, the same in all processes.

        Args:
          signal: what came to this one.
          after: what the step returned.

        Raises:
          jax.errors.JaxRuntimeError: on CPUs, the step failed, as it does when a process is gone.
        """
        if not is_multiprocess():
            return signal
        if jax.default_backend() == "cpu":
            # Of a step that failed gloo still waits for messages, and aborts at those of a vote.
            jax.block_until_ready(after)
        mine = np.full(jax.local_device_count(), signal or 0, np.int32)
        cast = jax.make_array_from_process_local_data(self._spread, mine)
        self._under_way.append(self._highest(cast))
        if len(self._under_way) <= self._behind:
            return None
        return int(self._under_way.popleft()) or None
