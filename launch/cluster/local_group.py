"""The processes of one run on this machine: started together, heard together, ended together."""

import contextlib
import ctypes
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

from dalle_jax.errors import UserError
from dalle_jax.training.parallel.processes import COORDINATOR, NUM_PROCESSES, PROCESS_ID

GRACE = 15.0
"""Seconds that the others have after one has failed, to say why they fail too."""

_SET_PARENT_DEATH_SIGNAL = 1  # of Linux's prctl
_libc = ctypes.CDLL(None)
_printing = threading.Lock()


class Group:
    """A command, running as several processes that know of each other. Ends them where it is left."""

    def __init__(
        self,
        command: Sequence[str],
        count: int = 1,
        devices: int | None = None,
        environment: Mapping[str, str] | None = None,
        listen: Callable[[int, str], None] | None = None,
    ):
        """Starts the command `count` times.

        Args:
          command: program and arguments; `python` is the interpreter that runs this.
          count: number of processes; each line of their output begins with its number, where there are several.
          devices: CPU devices of each; None: one where there are several processes, else what the environment says.
          environment: variables of the command, besides this process's.
          listen: gets the number of a process and a line of its output; None: they are printed.

        Raises:
          UserError: there is no such program.
        """
        program = sys.executable if command[0] in ("python", "python3") else command[0]
        self.command = [program, *command[1:]]
        self.first_failed: tuple[int, int] | None = None
        """Index and exit code (negative: a signal) of the process that failed first."""
        self._threads: list[threading.Thread] = []
        self.processes: list[subprocess.Popen] = []
        about = _about(count, devices)
        for index in range(count):
            mine = {**os.environ, **about, **(environment or {})} | ({PROCESS_ID: str(index)} if count > 1 else {})
            self.processes.append(self._start(mine, captured=count > 1 or listen is not None))
        for index, process in enumerate(self.processes):
            for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                if source is not None:
                    tell = functools.partial(_print, sink) if listen is None else listen
                    self._threads.append(threading.Thread(target=_read, args=(source, tell, index), daemon=True))
        for thread in self._threads:
            thread.start()

    def _start(self, environment: Mapping[str, str], captured: bool) -> subprocess.Popen:
        pipe = subprocess.PIPE if captured else None
        try:
            # In a group of its own each, so that Ctrl-C reaches them once: through this process.
            return subprocess.Popen(
                self.command, env=environment, stdout=pipe, stderr=pipe, process_group=0, preexec_fn=_end_with_parent
            )
        except OSError as error:
            self.end()
            raise UserError(f"cannot start '{self.command[0]}': {error.strerror}") from error

    def poll(self) -> bool:
        """Whether any still runs; notes the first that failed."""
        codes = [process.poll() for process in self.processes]
        if self.first_failed is None:
            self.first_failed = next(((i, code) for i, code in enumerate(codes) if code), None)
        return None in codes

    def wait(self, grace: float = GRACE, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Waits for all, and ends those that outlive a failure of another by `grace` seconds.

        Args:
          grace: seconds.
          meanwhile: called again and again.

        Returns:
          0 where all did; else the exit code of the first that failed, 128 + n where signal n ended it.
        """
        deadline = None
        while self.poll():
            if self.first_failed is not None:
                deadline = time.monotonic() + grace if deadline is None else deadline
                if time.monotonic() > deadline:
                    self.end()
            meanwhile()
            time.sleep(0.01)
        for thread in self._threads:
            thread.join(timeout=5.0)
        return 0 if self.first_failed is None else exit_code(self.first_failed[1])

    def signal(self, number: int) -> None:
        """Sends a signal to all that run."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def end(self) -> None:
        """Kills all; a stopped process too, and workers that a process left behind."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def describe(self) -> str:
        """How it ended, for a person."""
        if self.first_failed is None:
            return "all processes ended with 0"
        index, code = self.first_failed
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return f"process {index} {how}" if len(self.processes) > 1 else f"the process {how}"


@contextlib.contextmanager
def forwarded(group: Group) -> Iterator[list[int]]:
    """Passes SIGINT and SIGTERM on to a group; the second one ends it. Gives the list of those that came."""
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        received.append(number)
        group.signal(number if len(received) == 1 else signal.SIGKILL)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        group.end()


def exit_code(code: int) -> int:
    """As a shell has it."""
    return 128 - code if code < 0 else code


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _about(count: int, devices: int | None) -> dict[str, str]:
    """What each process is told of the machine, and of the others."""
    variables = {}
    if devices is not None or count > 1:
        variables = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices or 1)}
    if count > 1:
        variables |= {COORDINATOR: f"127.0.0.1:{free_port()}", NUM_PROCESSES: str(count)}
    return variables


def _end_with_parent() -> None:
    """Runs in the child: none outlives a launcher that was killed, where the system is Linux."""
    if hasattr(_libc, "prctl"):
        _libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _read(source: IO[bytes], tell: Callable[[int, str], None], index: int) -> None:
    for line in source:
        tell(index, line.decode(errors="replace").rstrip("\n"))


def _print(sink: IO[str], index: int, line: str) -> None:
    with _printing:
        print(f"[{index}] {line}", file=sink, flush=True)
