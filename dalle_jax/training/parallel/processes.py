"""Several processes as one run: how they find each other, talk, and leave.

`initialize` is called by every script before anything touches a device; alone it does nothing. The other functions do
the obvious thing where there is one process.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from dalle_jax.errors import PREEMPTED, PREEMPTED_VARIABLE, UserError

T = TypeVar("T")

COORDINATOR, NUM_PROCESSES, PROCESS_ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""Environment variables: `host:port` of process 0, how many there are, and which this is. All three, or none."""

HEARTBEAT = "DALLE_JAX_HEARTBEAT_SECONDS"
"""Environment variable: after so many seconds of silence a process counts as dead, and the others end (with 134)."""

HEARTBEAT_SECONDS = 100

JOIN = "DALLE_JAX_JOIN_SECONDS"
"""Environment variable: how long a process waits for the others to come up before it ends."""

JOIN_SECONDS = 1800
"""Slices may be made, and images be fetched, many minutes apart; JAX's own five would end those that came first."""


def initialize(preemptible: bool = False) -> None:
    """Joins the processes of this run, where there are several; call it once, before anything touches a device.

    They are named by the environment (`COORDINATOR`, `NUM_PROCESSES`, `PROCESS_ID`; `launch.local` sets them), or found
    by JAX: TPU pods and multi-slice pods on GCE and GKE, Slurm, Open MPI, and Kubernetes with `jax[k8s]`.

    Args:
      preemptible: JAX takes SIGTERM, for a loop that asks `Checkpoints.reached_preemption`. Otherwise it ends the
        process, as it does alone.

    Raises:
      UserError: only some of the variables are set, or they hold no numbers.
    """
    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", preemptible)
    patience = {
        "heartbeat_timeout_seconds": _number(HEARTBEAT, os.environ.get(HEARTBEAT, str(HEARTBEAT_SECONDS))),
        "initialization_timeout": _number(JOIN, os.environ.get(JOIN, str(JOIN_SECONDS))),
    }
    named = _named_processes(os.environ)
    if named is not None:
        address, count, index = named
        if count > 1:
            jax.distributed.initialize(address, count, index, cluster_detection_method="deactivate", **patience)
    elif in_cluster(os.environ):
        try:
            jax.distributed.initialize(**patience)
        except ValueError as error:
            # A machine with a TPU of its own and no cluster around it.
            if "coordinator_address should be defined" not in str(error):
                raise


def _named_processes(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    values = [environment.get(name) for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID)]
    if values[1] is None and values[2] is None:
        return None  # JAX itself reads the address, and may find the rest
    if None in values:
        missing = (COORDINATOR, NUM_PROCESSES, PROCESS_ID)[values.index(None)]
        raise UserError(f"the environment names processes, but {missing} is not set: set it, or unset the others")
    address, count, index = str(values[0]), _number(NUM_PROCESSES, values[1]), _number(PROCESS_ID, values[2])
    if not 0 <= index < count:
        raise UserError(f"{PROCESS_ID}={index} is none of the {count} processes: they count from 0")
    return address, count, index


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether something around this process started it as one of several, and JAX can find the others."""
    if environment.get("JAX_PLATFORMS", "") != "cpu" and any(Path(p).exists() for p in ("/dev/accel0", "/dev/vfio/0")):
        return True
    if "TPU_WORKER_HOSTNAMES" in environment or "TPU_PROCESS_ADDRESSES" in environment:
        return True
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return True
    slurm = "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1
    return slurm or int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1


def _number(name: str, value: str | None) -> int:
    try:
        return int(value or "")
    except ValueError:
        raise UserError(f"the environment variable {name} must be a whole number, not '{value}'") from None


def is_primary() -> bool:
    """Whether this is the one process that writes files and talks to the person."""
    return jax.process_index() == 0


def leave(code: int) -> None:
    """Ends a process of several that has failed; returns where it is alone or has come to its end in order.

    A process that ends in order waits for the others. One that fails must not: they may be in the middle of a step
    that needs it, and find out by its silence.
    """
    in_order = ("0", str(PREEMPTED), os.environ.get(PREEMPTED_VARIABLE))
    if jax.distributed.is_initialized() and str(code) not in in_order:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_as_one(run: Callable[[], None]) -> None:
    """Calls a script's main function, which ends with `SystemExit`, so that its failure ends all processes soon."""
    try:
        run()
    except SystemExit as end:
        leave(end.code if isinstance(end.code, int) else 1)
        raise
    except BaseException:
        if jax.distributed.is_initialized():
            traceback.print_exc()
        leave(1)
        raise


def preempted_code() -> int:
    """The exit code of a run that was asked to stop and has saved: 0, or what a supervisor asks for."""
    return _number(PREEMPTED_VARIABLE, os.environ.get(PREEMPTED_VARIABLE, "0"))


def gather(value: T) -> list[T]:
    """A JSON value from each process, in their order, on every process. All must call it."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    # Few sizes are few programs.
    padded = np.zeros(max(1 << int(sizes.max() - 1).bit_length(), 1024), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def from_primary(make: Callable[[], T]) -> T:
    """What process 0 makes, a JSON value, on every process. All must call it; only process 0 calls `make`.

    Raises:
      UserError: on every process, where `make` raises it.
    """
    if jax.process_count() == 1:
        return make()
    answer: dict[str, Any] = {}
    if is_primary():
        try:
            answer = {"value": make()}
        except UserError as error:
            answer = {"error": str(error)}
    answer = gather(answer)[0]
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


def to_host(tree: Any) -> Any:
    """Global arrays as NumPy arrays, whole on every process. All must call it, with the same arrays in one order."""

    def fetch(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(fetch, tree)
