"""Runs a script as several processes on this machine, as a pod or a cluster would, and starts it again where it dies.

    python -m launch.local --processes=2 --devices=4 -- python -m launch.train --config=configs/X.py --workdir=W
    python -m launch.local --restart -- python -m launch.train --config=configs/X.py --workdir=W

The first runs two processes of four CPU devices each, which talk over the loopback. Each line of output begins with the
number of its process. Ctrl-C and SIGTERM are passed on; the second one kills. Where one process fails the others are
ended, and its exit code is this one's.

`--restart` supervises: all processes are started again after any of them dies, and training goes on from the newest
whole checkpoint. It gives up after so many starts in a row without a new one (`--restart=N`; 3 if no number is given).
On a machine with GPUs or TPUs leave `--processes` and `--devices` out: one process then has all devices, and on each
host of a cluster this supervises the host's part. docs/many-processes.md lists the exit codes.
"""

import threading
from collections.abc import Sequence

from absl import flags

from dalle_jax.errors import PREEMPTED, PREEMPTED_VARIABLE, UserError
from dalle_jax.training.parallel.processes import HEARTBEAT, preempted_code
from launch.cli import start_command
from launch.cluster.local_group import Group, forwarded
from launch.cluster.supervise import Policy, progress_of, supervise

USUAL_RESTARTS = 3


class _RestartParser(flags.ArgumentParser):
    """`--restart`, `--restart=N`, `--norestart`."""

    def flag_type(self) -> str:
        return "whole number"

    def parse(self, argument: str | int | bool) -> int:
        if argument in (True, "true"):
            return USUAL_RESTARTS
        if argument in (False, "false"):
            return 0
        if not str(argument).isdigit():
            raise ValueError("give a whole number, or --restart alone")
        return int(argument)


class _RestartFlag(flags.Flag):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.boolean = True  # may stand without a value


PROCESSES = flags.DEFINE_integer("processes", 1, "how many processes", lower_bound=1, upper_bound=256)
DEVICES = flags.DEFINE_integer("devices", None, "CPU devices of each process", lower_bound=1, upper_bound=1024)
RESTART = flags.DEFINE_flag(
    _RestartFlag(
        _RestartParser(), None, "restart", 0, "start again after a death; =N: until N starts in a row gain nothing"
    )
)
BACKOFF = flags.DEFINE_float("backoff", 1.0, "seconds before a restart; doubled while there is no progress", 0.0)
HEARTBEAT_SECONDS = flags.DEFINE_integer(
    "heartbeat", None, "seconds of silence after which a process counts as dead; default: 100", lower_bound=1
)


def main(command: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    if not command:
        raise UserError("no command given: python -m launch.local --processes=2 -- python -m launch.train ...")
    environment = {HEARTBEAT: str(HEARTBEAT_SECONDS.value)} if HEARTBEAT_SECONDS.value else {}
    if RESTART.value:
        environment[PREEMPTED_VARIABLE] = str(PREEMPTED)
    stopped = threading.Event()

    def run() -> tuple[int, str]:
        group = Group(command, PROCESSES.value, DEVICES.value, environment)
        with forwarded(group) as received:
            code = group.wait()
        if received:
            stopped.set()
        return code, group.describe()

    code = supervise(run, lambda: progress_of(command), Policy(RESTART.value, BACKOFF.value), stopped)
    # Whoever asked this process to stop has set what it wants to hear then.
    return preempted_code() if code == PREEMPTED and stopped.is_set() else code


if __name__ == "__main__":
    start_command(main)
