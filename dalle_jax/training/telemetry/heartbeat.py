"""The record of an attempt, rewritten every few seconds while it trains: for `launch.status`, and the next attempt."""

import dataclasses
import logging
import threading
import time
from types import TracebackType
from typing import Any

import jax
from etils import epath

from dalle_jax.config import write_json
from dalle_jax.errors import UserError
from dalle_jax.training.config import TrainConfig
from dalle_jax.training.parallel.preemption import Preempted
from dalle_jax.training.task import Task
from dalle_jax.training.telemetry.attempts import (
    FAILED,
    FINISHED,
    STOPPED,
    Attempt,
    Save,
    account,
    in_words,
    read_attempts,
    summary,
)
from dalle_jax.training.telemetry.chips import peak_flops
from dalle_jax.training.telemetry.clock import Clock

_log = logging.getLogger(__name__)

BEAT_EVERY = 10.0
"""Seconds between two heartbeats."""

MAX_SAVES = 20
"""Checkpoints on record, where more are kept on disk."""


class Heartbeat:
    """Writes `starts/NNNN.json` of a stage's folder every few seconds, and `summary.json` at the end.

    A thread of its own writes, so that an attempt that compiles for minutes, or hangs, still says so; only a process
    that is dead or halted says nothing. Process 0 alone writes, and knows of earlier attempts; others know their own.
    """

    def __init__(self, stage_dir: epath.PathLike, task: Task, config: TrainConfig, clock: Clock, devices: list[Any]):
        self._directory, self._clock = epath.Path(stage_dir), clock
        self._earlier: list[Attempt] = []
        self._path: epath.Path | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        kinds = [device.device_kind for device in devices]
        self._attempt = Attempt(
            number=1,
            stage=task.name,
            began=clock.began,
            beat=clock.began,
            moved=time.time(),
            doing=clock.kind,
            first_step=0,
            step=0,
            num_steps=config.num_steps,
            batch_size=config.batch_size,
            seconds=clock.totals(),
            step_flops=task.step_flops(config.batch_size),
            peak_flops=peak_flops(kinds),
            device_kind=kinds[0],
            devices=len(devices),
            processes=jax.process_count(),
        )

    def open(self, step: int) -> None:
        """Begins the record; `step` is where this attempt goes on from, as far as is known. May be called again."""
        self._change(first_step=step, step=step, moved=time.time())
        if self._path is not None or jax.process_index() != 0:
            return
        self._earlier = read_attempts(self._directory)
        number = max((attempt.number for attempt in self._earlier), default=0) + 1
        self._change(number=number)
        self._path = self._directory / "starts" / f"{number:04d}.json"
        self._write()
        self._thread.start()

    def moved_to(self, step: int) -> None:
        """Update number `step` is done, or handed to the devices."""
        self._change(step=step, moved=time.time())

    def saved(self, step: int, on_disk: list[int]) -> None:
        """The checkpoint of `step` is under way; `on_disk` are the steps that can be gone back to."""
        seconds = self._clock.totals()
        with self._lock:
            kept = [save for save in self._attempt.saves if save.step in on_disk and save.step != step]
            self._attempt = dataclasses.replace(
                self._attempt, saves=(*kept, Save(step, time.time(), seconds))[-MAX_SAVES:], moved=time.time()
            )

    def times(self) -> dict[str, float]:
        """Seconds by kind of the whole run until now, earlier attempts included."""
        return account([*self._earlier, self.now()])

    def now(self) -> Attempt:
        """The record at this moment."""
        with self._lock:
            seconds, doing = self._clock.totals(), self._clock.kind
            if doing != self._attempt.doing:
                self._attempt = dataclasses.replace(self._attempt, doing=doing, moved=time.time())
            beat = self._attempt.began + sum(seconds.values())
            self._attempt = dataclasses.replace(self._attempt, seconds=seconds, beat=beat)
            return self._attempt

    def __enter__(self) -> "Heartbeat":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._path is None:
            return
        self._ended.set()
        self._thread.join(timeout=60)
        state, reason = _ending(error, done=self._attempt.step >= self._attempt.num_steps)
        self._change(state=state, reason=reason)
        try:
            self._write()
            write_json(self._directory / "summary.json", summary(self.all()))
        except Exception:
            if error is None:
                raise  # else the run ended for another reason, which goes before this one
        if state != FAILED:
            _log.info(in_words(self.all()))

    def all(self) -> list[Attempt]:
        """Earlier attempts, and this one."""
        return [*self._earlier, self.now()]

    def _change(self, **fields: Any) -> None:
        with self._lock:
            self._attempt = dataclasses.replace(self._attempt, **fields)

    def _write(self) -> None:
        assert self._path is not None
        write_json(self._path, dataclasses.asdict(self.now()))

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_EVERY):
            try:
                self._write()
            except Exception:  # of a disk an `OSError`, of a bucket whatever its library raises
                continue  # a run does not end for want of a heartbeat; what else it writes will say what is wrong


def _ending(error: BaseException | None, done: bool) -> tuple[str, str]:
    """The state that an attempt ends in, and why; `done`: whether it has made the last step."""
    if error is None or (isinstance(error, Preempted) and done):
        return FINISHED, ""
    if isinstance(error, Preempted):
        return STOPPED, "asked to stop"
    if isinstance(error, KeyboardInterrupt):
        return STOPPED, "interrupted at the keyboard"
    message = " ".join(str(error).split())[:500]
    return FAILED, message if isinstance(error, UserError) else f"{type(error).__name__}: {message}"
