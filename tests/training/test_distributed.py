"""Who is in a run of several processes, what they must agree on, and the slices of their mesh; without starting any."""

import dataclasses
import subprocess
import sys

import jax
import pytest

from dalle_jax.errors import PREEMPTED, PREEMPTED_VARIABLE, STALLED, UserError
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel import consistency, processes
from dalle_jax.training.parallel.mesh import _check_slices, make_mesh
from dalle_jax.training.parallel.preemption import Preempted

ADDRESS = {processes.COORDINATOR: "127.0.0.1:1"}


@pytest.fixture
def started(monkeypatch):
    """What `jax.distributed.initialize` would have been given."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: calls.append((args, kwargs)))
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    for name in (processes.COORDINATOR, processes.NUM_PROCESSES, processes.PROCESS_ID, processes.HEARTBEAT):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS is not set"),
        (ADDRESS | {"JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID is not set"),
        (ADDRESS | {"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "JAX_NUM_PROCESSES must be a whole number"),
        (ADDRESS | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "none of the 2 processes"),
        ({"DALLE_JAX_HEARTBEAT_SECONDS": "soon"}, "DALLE_JAX_HEARTBEAT_SECONDS must be a whole number, not 'soon'"),
        ({"DALLE_JAX_JOIN_SECONDS": "long"}, "DALLE_JAX_JOIN_SECONDS must be a whole number, not 'long'"),
    ],
)
def test_half_an_environment_is_refused(started, monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        processes.initialize()
    assert not started


def test_alone_nothing_is_started(started, monkeypatch):
    processes.initialize()
    for name, value in (ADDRESS | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}).items():
        monkeypatch.setenv(name, value)
    processes.initialize()
    assert not started


def test_named_processes_are_joined(started, monkeypatch):
    for name, value in (ADDRESS | {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DALLE_JAX_HEARTBEAT_SECONDS", "7")
    processes.initialize()
    ((args, kwargs),) = started
    assert args == ("127.0.0.1:1", 4, 3) and kwargs["heartbeat_timeout_seconds"] == 7
    assert kwargs["initialization_timeout"] == 1800
    monkeypatch.setenv("DALLE_JAX_JOIN_SECONDS", "60")
    processes.initialize()
    assert started[1][1]["initialization_timeout"] == 60
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")  # found by JAX
    processes.initialize()
    assert started[2] == ((), {"heartbeat_timeout_seconds": 7, "initialization_timeout": 60})


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, False),
        ({"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_NTASKS": "2"}, True),
        ({"SLURM_STEP_NODELIST": "a1", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "2"}, False),  # a shell within an allocation, not a step of it
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
    ],
)
def test_clusters_are_recognised(environment, found):
    assert processes.in_cluster({"JAX_PLATFORMS": "cpu"} | environment) is found


def test_exit_code_of_a_preempted_run(monkeypatch):
    assert Preempted().code == 0
    monkeypatch.setenv("DALLE_JAX_PREEMPTED_CODE", str(PREEMPTED))
    assert Preempted().code == PREEMPTED


# Agreement


@pytest.fixture
def three(monkeypatch):
    """Three processes, of which the last holds what a test says; this one is the first."""
    theirs = {}

    def gather(value):
        if isinstance(value, dict) and "host" in value:
            hashes = {
                name: consistency.hashlib.sha256(consistency.to_json(x).encode()).hexdigest()
                for name, x in theirs.items()
            }
            return [value, value, value | hashes | {"host": "third"}]
        return [value, value, next(x for x in theirs.values())]

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(consistency, "gather", gather)
    return theirs


def test_the_odd_one_is_named_with_what_differs(three):
    three["config"] = {"train": {"rate": 2, "steps": 5}, "seed": 0}
    with pytest.raises(UserError) as error:
        consistency.check_agreement({"code": "a", "config": {"train": {"rate": 1, "steps": 5}, "seed": 0}})
    assert "process 2 (third) has another config than process 0" in str(error.value)
    assert "train.rate (2 there, 1 here); give all" in str(error.value)


def test_equal_facts_pass(three):
    @dataclasses.dataclass(frozen=True)
    class Config:
        sizes: tuple[int, ...] = (1, 2)

    three["config"] = {"sizes": [1, 2]}
    consistency.check_agreement({"config": Config()})


def test_one_of_two_is_compared_with_the_first():
    assert consistency._odd_ones(["a", "b"]) == [1]
    assert consistency._odd_ones(["b", "a", "a", "b", "a"]) == [0, 3]


def test_facts_of_command_and_code():
    assert consistency.command_facts(["--workdir=W", "--prompt=a", "--prompt=b=c", "--dry_run"]) == {
        "--workdir": "W", "--prompt": "a, b=c", "--dry_run": "",
    }  # fmt: skip
    facts = consistency.code_facts()
    assert facts["jax"] == jax.__version__ and len(facts["source"]) == 12


# Slices


class Device:
    """As far as slices are concerned."""

    def __init__(self, platform, process_index, slice_index=None):
        self.platform, self.process_index = platform, process_index
        if slice_index is not None:
            self.slice_index = slice_index


@pytest.mark.parametrize(
    ("slices", "message"), [(0, "slices must be 1 or more"), (2, "is 2, but the devices are of 1 processes")]
)
def test_slices_that_are_not_there(slices, message):
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig(slices=slices))


def test_slices_of_a_pod_and_of_hosts():
    pod = [Device("tpu", process_index=i, slice_index=i // 2) for i in range(4)]
    assert not _check_slices(2, 2, pod)
    with pytest.raises(UserError, match="is 1, but the devices are of 2 slices: set --config.mesh.slices=2"):
        _check_slices(1, 4, pod)
    with pytest.raises(UserError, match="data of 1 does not divide over 2 slices"):
        _check_slices(2, 1, pod)
    hosts = [Device("gpu", process_index=i // 2, slice_index=i // 2) for i in range(4)]
    assert not _check_slices(1, 4, hosts), "a mesh need not know of hosts"
    assert _check_slices(2, 2, [Device("cpu", process_index=i // 2) for i in range(4)])
    assert _check_slices(1, 4, [Device("tpu", process_index=i) for i in range(4)]), "one slice, described without it"


# The watchdog

PROGRAM = """
import time
from dalle_jax.training.telemetry.watchdog import Watchdog
def hang():
    time.sleep(60)
with Watchdog("decoder", {seconds}) as dog:
    for _ in range({signs}):
        dog.sign()
        time.sleep({seconds} / 10)
    dog.sign(patiently=True)
    time.sleep(1.5 * {seconds})
    dog.sign()
    {then}
print("done")
"""


@pytest.mark.parametrize(
    ("seconds", "signs", "then", "code"),
    [(0.5, 0, "hang()", STALLED), (3.0, 12, "pass", 0), (0, 0, "time.sleep(1)", 0)],
)
def test_watchdog(seconds, signs, then, code):
    """Signs of life are far more frequent than they need be: a busy machine may be late by some seconds."""
    program = PROGRAM.format(seconds=seconds, signs=signs, then=then)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    if code:
        assert "error: decoder: no step for 0.5 s" in done.stderr
        assert "in hang" in done.stderr and "(most recent call first)" in done.stderr
        assert "done" not in done.stdout
    else:
        assert done.stdout == "done\n" and done.stderr == ""


def test_whoever_ends_in_order_waits_for_the_others(monkeypatch):
    gone = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr("os._exit", gone.append)
    monkeypatch.setenv(PREEMPTED_VARIABLE, "85")
    for code in (0, PREEMPTED, 85, 1, STALLED):
        processes.leave(code)
    assert gone == [1, STALLED]
