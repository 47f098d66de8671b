"""Two processes of four devices each, connected by gloo: one device's numbers, and its files.

What needs two processes runs in processes of its own, which are this file as a script; they find
each other by the variables that SLURM would set.
"""

import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import jax
import numpy as np
import pytest

from diffjax.checkpoints.store import Checkpoints
from diffjax.distributed import processes
from diffjax.distributed.processes import ProcessAddress
from diffjax.errors import UserError
from diffjax.experiment import diffusion as experiment
from diffjax.experiment.restore import restore_params
from diffjax.training import loop

ROOT = Path(__file__).resolve().parents[2]
PROCESSES, DEVICES = 2, 4
SHARDING = runpy.run_path(str(ROOT / "tests/distributed/test_sharding.py"))
tiny, small, steps, assert_close = (
    SHARDING[name] for name in ("tiny", "small", "steps", "assert_close")
)
FSDP = SHARDING["FSDP"] | {"fsdp": 8}  # across the processes
HEARTBEAT_WITHIN = 60.0  # seconds until JAX may notice that a process is gone
SECONDS = 900  # that anything here may take on a busy machine
COUNT = 10  # samples, which eight devices can't share evenly


def drawn(config, folder):
    """COUNT samples of a run's last checkpoint, by all devices: uint8."""
    setup = small(config)
    _, params = restore_params(setup, folder)
    return setup.generator(params, start=0, count=COUNT).images


def together(folder):
    """Two steps by pmap, two by fsdp, samples, and a stop that one process alone is asked for."""
    processes.initialize(ProcessAddress(cluster="slurm"))
    said = []
    experiment.pictures.final = lambda *args, **options: None

    def train(count, **parallel):
        config = tiny(**parallel)
        config.train.steps = count
        setup = small(config)
        loop.train(setup, folder / "run", log=said.append)
        return drawn(config, folder / "run").tolist()

    by_pmap = train(2)
    by_fsdp = train(4, **FSDP)
    return {
        "process": jax.process_index(),
        "devices": [jax.local_device_count(), jax.device_count()],
        "said": said,
        "samples": {"pmap": by_pmap, "fsdp": by_fsdp},
        "stopped": stopped(folder / "stopped"),
        "refused": refused(folder),
    }


def stopped(folder):
    """The step at which each process stops when the second one is asked to after its third."""
    take = processes.StopVotes.poll
    asked = []

    def poll(votes, signal_, **options):
        asked.append(signal_)
        if len(asked) == 3 and not processes.is_primary():
            os.kill(os.getpid(), signal.SIGTERM)
        return take(votes, signal_, **options)

    processes.StopVotes.poll = poll
    config = tiny()
    config.train.steps = 10**6
    try:
        loop.train(small(config), folder, log=lambda text: None)
    except loop.Stopped as error:
        return [error.signal, error.step]
    finally:
        processes.StopVotes.poll = take


def refused(folder):
    """What each process is told when they are not started alike, and when one can't begin."""
    said = []
    config = tiny()
    config.train.learning_rate = 1e-4 * (1 + jax.process_index())
    for setup, place in ((small(config), folder / "new"), (small(tiny()), folder / "file")):
        if processes.is_primary():
            (folder / "file").touch()
        processes.run_on_primary(lambda: "the file is there")
        try:
            loop.train(setup, place, log=lambda text: None)
        except UserError as error:
            said.append(str(error))
    return said


if __name__ == "__main__":
    from diffjax.commands.process_setup import use_compilation_cache
    from diffjax.main import main
    from diffjax.training.gc_pause import gc_disabled

    what, place, *flags = sys.argv[1:]
    if what == "main":  # the command line, around a network that compiles in no time
        network = "--config.model.name=tests.distributed.test_sharding:Small"
        sys.exit(main([*flags, network, f"--workdir={place}"]))
    use_compilation_cache()
    try:
        with gc_disabled():
            print(json.dumps(together(Path(place))))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # a tidy end would wait for the other process
    sys.exit(0)


def as_slurm_would(number, port):
    """What a process of two on one machine finds in its environment."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={DEVICES}"
    return {
        **os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "JAX_COORDINATOR_PORT": port,
        "SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_LOCALID": str(number),
        "SLURM_PROCID": str(number), "SLURM_NTASKS": str(PROCESSES),
        "SLURM_STEP_NUM_TASKS": str(PROCESSES),
    }  # fmt: skip


def started(what, folder, *flags):
    """The two processes; they print to files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, __file__, what, str(folder), *flags]
    found = []
    for i in range(PROCESSES):
        with (folder / f"out{i}").open("w") as out, (folder / f"err{i}").open("w") as errors:
            environment = as_slurm_would(i, port)
            found.append(subprocess.Popen(command, env=environment, stdout=out, stderr=errors))
    return found


def ended(process, number, folder, *, within):
    """The exit code, and what was printed to stdout and to stderr."""
    try:
        process.wait(within)
    finally:
        process.kill()
    return process.wait(), (folder / f"out{number}").read_text(), errors_of(number, folder)


def errors_of(number, folder):
    return (folder / f"err{number}").read_text()


@pytest.fixture(scope="module")
def reports(tmp_path_factory, own_caches):
    """What the two processes say, and the folder that they wrote to."""
    folder = tmp_path_factory.mktemp("together")
    both = started("all", folder)
    ends = [ended(process, i, folder, within=SECONDS) for i, process in enumerate(both)]
    for code, _, errors in ends:
        assert code == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for _, out, _ in ends], folder


def test_two_processes_are_one_run(reports):
    (one, two), folder = reports
    assert [one["process"], two["process"]] == [0, 1]
    assert one["devices"] == two["devices"] == [DEVICES, PROCESSES * DEVICES]
    said = "\n".join(one["said"])
    assert re.search(r"8 x cpu \(pmap\), 2 processes, steps 0 to 2", said)
    assert re.search(r"8 x cpu \(fsdp\), 2 processes, steps 2 to 4", said)
    rows = [json.loads(row) for row in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    # The first process alone writes events, a file each time that it trains.
    assert len(list((folder / "run/tensorboard").iterdir())) == 2


def test_they_make_the_numbers_of_one_device_which_goes_on_with_them(reports, monkeypatch):
    _, folder = reports
    config = tiny()
    config.train.steps = 6
    _, states, _ = steps(config)
    task = small(config)
    like = task.to_stored(task.state_shapes())
    run = folder / "run"
    for step in (2, 4):
        found = Checkpoints(run, read_only=True).restore(like, step=step)
        assert_close(task.from_stored(found.state), states[step - 1])
    monkeypatch.setattr(experiment.pictures, "final", lambda *args, **options: None)
    loop.train(task, run, log=lambda text: None)
    last = Checkpoints(run, read_only=True).restore(like)
    assert_close(task.from_stored(last.state), states[-1])


def test_samples_are_those_of_one_device(reports):
    (one, two), folder = reports
    assert one["samples"] == two["samples"]
    for strategy, step in (("pmap", 2), ("fsdp", 4)):
        config = tiny()
        config.sample.checkpoint = str(step)
        alone = drawn(config, folder / "run").astype(int)
        images = np.asarray(one["samples"][strategy])
        assert images.shape == (COUNT, 8, 8, 1)
        # Sums in another order may round a level up or down.
        assert np.abs(images - alone).max() <= 1
        assert len(np.unique(images.reshape(COUNT, -1), axis=0)) == COUNT


def test_a_signal_to_one_process_stops_all_at_one_step(reports):
    (one, two), folder = reports
    assert one["stopped"] == two["stopped"]
    number, step = one["stopped"]
    assert number == signal.SIGTERM and 3 < step < 10
    assert Checkpoints(folder / "stopped", read_only=True).steps() == [step]


def test_every_process_is_told_why_there_is_no_run(reports):
    (one, two), folder = reports
    assert one["refused"] == two["refused"]
    other, file = one["refused"]
    assert re.fullmatch(
        r"the config of process 1 differs from that of process 0: start all [^\n]*", other
    )
    assert "is a file" in file
    assert not (folder / "new").exists()


@pytest.mark.parametrize("victim", [1, 0])
def test_when_one_process_dies_the_other_ends_and_says_so(tmp_path, own_caches, victim):
    both = started(
        "main", tmp_path, "--cluster=slurm", f"--config={ROOT / 'experiments/digits.py'}",
        "--config.train.steps=1000000", "--config.train.log_every=1",
        "--config.train.batch_size=32", "--config.sample.count=10",
        "--config.train.checkpoint_every=20", "--config.train.eval_every=1000",
    )  # fmt: skip
    try:
        deadline = time.monotonic() + SECONDS
        while not (tmp_path / "checkpoints/20").is_dir():
            assert all(process.poll() is None for process in both), errors_of(0, tmp_path)
            assert time.monotonic() < deadline, errors_of(0, tmp_path)
            time.sleep(0.1)
        both[victim].kill()
        left = 1 - victim
        code, _, errors = ended(both[left], left, tmp_path, within=SECONDS)
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert code != 0
    # Ours, where a collective failed first; JAX's, where it was a heartbeat; gloo's, where one
    # device had failed and another went on to the step's next collective.
    assert re.search(
        "another process of this run is gone|most likely indicates that another task died"
        "|distributed collective mismatch",
        errors,
    ), errors


def test_the_places_that_can_be():
    for place, said in (
        (ProcessAddress(cluster="pbs"), "--cluster=pbs: expected one of slurm, cloud_tpu"),
        (
            ProcessAddress(cluster="slurm", process=0),
            "--cluster=slurm determines the processes",
        ),
        (ProcessAddress(processes=2, process=0), "need --coordinator=host:port"),
        (ProcessAddress("", "here", 2, 0), "--coordinator=here: expected host:port"),
        (ProcessAddress("", "here:0", 2, 0), "--coordinator=here:0: expected host:port"),
        (ProcessAddress("", "here:99999", 2, 0), "expected host:port"),
        (ProcessAddress("", "here:80", 0, 0), "--processes=0: expected the number"),
        (
            ProcessAddress("", "here:80", 2, 2),
            r"--process=2: expected a process number in \[0, 2\)",
        ),
        (ProcessAddress("", "here:80", 2), "--process=-1: expected"),
    ):
        with pytest.raises(UserError, match=said):
            processes.initialize(place)


@pytest.fixture
def asked(monkeypatch):
    """What JAX is asked to join."""
    found = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **who: found.append(who))
    return found


def test_who_is_told_to_jax(asked, monkeypatch):
    processes.initialize(ProcessAddress("", "10.0.0.1:8476", 4, 3))
    processes.initialize(ProcessAddress(cluster="gke_tpu"))
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    processes.initialize(ProcessAddress(cluster="slurm"))
    monkeypatch.setenv("SLURM_NTASKS", "16")
    processes.initialize(ProcessAddress(cluster="slurm"))
    by_flags, by_gke, a_task_a_node, a_task_a_gpu = asked
    assert by_flags["coordinator_address"] == "10.0.0.1:8476"
    assert (by_flags["num_processes"], by_flags["process_id"]) == (4, 3)
    assert by_gke["cluster_detection_method"] == "gketpu"
    assert list(a_task_a_node["local_device_ids"]) == list(range(8))
    assert a_task_a_gpu["local_device_ids"] is None
    assert all(who["heartbeat_timeout_seconds"] < HEARTBEAT_WITHIN for who in asked)


def test_one_of_many_that_was_not_told_so_is_refused(asked, monkeypatch):
    processes.initialize(processes.SINGLE_PROCESS)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    processes.initialize(processes.SINGLE_PROCESS)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UserError, match=r"one of 4 tasks of a SLURM step: add --cluster=slurm"):
        processes.initialize(processes.SINGLE_PROCESS)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    with pytest.raises(UserError, match="one of the 2 hosts of a TPU slice: add --cluster"):
        processes.initialize(processes.SINGLE_PROCESS)
    assert not asked


def test_processes_of_unequal_devices_are_refused(monkeypatch):
    class Device:
        def __init__(self, process_index, id):
            self.process_index, self.id = process_index, id

    monkeypatch.setattr(jax, "devices", lambda: [Device(1, 5), Device(0, 1), Device(0, 0)])
    with pytest.raises(UserError, match="2, 1 devices: expected the same number"):
        processes.devices()
    monkeypatch.setattr(
        jax, "devices", lambda: [Device(1, 0), Device(0, 9), Device(1, 1), Device(0, 8)]
    )
    order = [(device.process_index, device.id) for device in processes.devices()]
    assert order == [(0, 8), (0, 9), (1, 0), (1, 1)]


def test_a_process_alone_asks_nobody():
    assert processes.is_primary() and not processes.is_multiprocess()
    assert processes.run_on_primary(lambda: "done") == "done"
    assert processes.any_process(True) and not processes.any_process(False)
    processes.check_same("the config", "anything")
    assert processes.StopVotes().poll(None) is None
    assert processes.StopVotes().poll(signal.SIGINT) == signal.SIGINT
