"""SIGTERM: what clusters send before they take a machine away."""

import signal
import threading
from types import FrameType

import jax

from dalle_jax.training.parallel.processes import preempted_code


class Preempted(SystemExit):
    """The run was asked to stop and has saved: ends the process with code 0 (`preempted_code`) unless it is caught."""

    def __init__(self):
        super().__init__(preempted_code())


class StopSignal:
    """Remembers a SIGTERM, so that the loop can stop between two steps.

    Where `jax.distributed` runs, its own handler takes the signal and brings all processes to stop at one step (see
    `Checkpoints.reached_preemption`); this one is then left out.
    """

    def __init__(self):
        self.received = False
        self._previous = None

    def __enter__(self) -> "StopSignal":
        if not jax.distributed.is_initialized() and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.received = True
