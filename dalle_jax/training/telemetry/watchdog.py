"""Ends a process that makes no step any more: a hang costs a cluster as much as work does, and says nothing."""

import faulthandler
import os
import sys
import threading
import time

from dalle_jax.errors import STALLED

PATIENCE = 10
"""Times the allowance, for what takes longer than a step: compiling, evaluating, reading and writing checkpoints."""


class Watchdog:
    """A thread that waits for signs of life, between `with` and its end.

    Without one for the allowance it prints every thread's stack to stderr and ends the process with code `STALLED`.
    The time that a machine sleeps does not count.
    """

    def __init__(self, name: str, seconds: float):
        """Args:
        name: of what is watched, for the message.
        seconds: the allowance; 0 turns the watchdog off.
        """
        self._name, self._seconds = name, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.sign(patiently=True)

    def sign(self, patiently: bool = False) -> None:
        """A sign of life; `patiently` where the next one may take `PATIENCE` times as long."""
        self._allowed = self._seconds * (PATIENCE if patiently else 1)
        self._deadline = time.monotonic() + self._allowed

    def __enter__(self) -> "Watchdog":
        if self._seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(self._seconds / 10, 1.0)):
            if time.monotonic() > self._deadline:
                # Not by a logger: whoever holds its lock may be what stands still.
                sys.stderr.write(
                    f"error: {self._name}: no step for {self._allowed:g} s (train.watchdog_seconds); ends with code "
                    f"{STALLED}; the stack of every thread:\n"
                )
                sys.stderr.flush()
                faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
                os._exit(STALLED)
