"""From the metrics of single steps, still on the devices, to rows: without making the devices wait."""

import math
from collections.abc import Callable, Mapping

import jax

from dalle_jax.errors import UserError
from dalle_jax.training.task import Metrics
from dalle_jax.training.telemetry.clock import Clock

MAX_IN_FLIGHT = 2
"""Steps that the host may be ahead of the devices."""

CHECK_EVERY = 100
"""Steps between two looks at whether all is finite, where no rows are written."""

AS_OF_LAST_STEP = ("learning_rate", "param_norm")
"""Metrics of a row that are the last step's; the others are means over the steps since the last row."""

FATAL = ("loss", "grad_norm", "param_norm")
"""Metrics of which none may be infinite or NaN."""


class NotFinite(UserError):
    """A loss, gradient or parameter was infinite or NaN."""


class Reporter:
    """Collects the metrics of steps and writes a row every so many.

    A row is fetched while the devices already compute the step after it.
    """

    def __init__(
        self,
        log_every: int,
        num_steps: int,
        clock: Clock,
        write: Callable[[int, Mapping[str, float], int, Mapping[str, float]], None],
        newest: Callable[[], str],
        progress: Mapping[str, list[dict[str, float]]],
    ):
        """Args:
        log_every: steps a row; 0: no rows (steps are still checked, every `CHECK_EVERY`).
        num_steps: length of the run, whose last step gets a row in any case.
        clock: of the loop.
        write: called with the step, its metrics, and the steps and seconds by kind since the last row.
        newest: says which checkpoint is the newest, for the message of a run that fails.
        progress: of `progress()` when the run was interrupted.
        """
        self._every, self._num_steps, self._writes_rows = log_every or CHECK_EVERY, num_steps, log_every > 0
        self._clock, self._write, self._newest = clock, write, newest
        self._on_device: list[tuple[int, Metrics]] = []
        self._window: list[dict[str, float]] = [dict(row) for row in progress.get("window", [])]
        self._steps = 0
        self._due = False

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of the update that brought the count to `step`.

        Raises:
          NotFinite: a step before this one was not finite (see `flush`).
        """
        if self._due:
            self.flush()
        self._on_device.append((step, metrics))
        self._steps += 1
        if len(self._on_device) > MAX_IN_FLIGHT:
            jax.block_until_ready(self._on_device[-1 - MAX_IN_FLIGHT][1]["loss"])
        if step % self._every == 0 or step == self._num_steps:
            self._due = True
            for _, values in self._on_device:
                jax.tree.map(lambda value: value.copy_to_host_async(), values)

    def flush(self) -> None:
        """Waits for all steps so far, checks them, and writes the row that is due.

        Raises:
          NotFinite: a loss, gradient or parameter was not finite; names the first such step and its metrics.
        """
        fetched = jax.device_get(self._on_device)
        self._on_device = []
        for step, metrics in fetched:
            row = {name: float(value) for name, value in metrics.items()}
            self._check_finite(step, row)
            self._window.append(row)
        if self._due:
            self._due = False
            seconds = self._clock.lap()
            if self._writes_rows:
                self._write(fetched[-1][0], self._row(), self._steps, seconds)
            self._window, self._steps = [], 0

    def progress(self) -> dict[str, list[dict[str, float]]]:
        """What a resumed run needs to write the row that is begun as if nothing had happened; call `flush` before."""
        return {"window": self._window}

    def _row(self) -> dict[str, float]:
        row = {name: math.fsum(step[name] for step in self._window) / len(self._window) for name in self._window[0]}
        return row | {name: self._window[-1][name] for name in AS_OF_LAST_STEP}

    def _check_finite(self, step: int, row: Mapping[str, float]) -> None:
        if all(math.isfinite(row[name]) for name in FATAL if name in row):
            return
        faults = ", ".join(f"{name} is {value}" for name, value in row.items() if not math.isfinite(value))
        raise NotFinite(
            f"training stopped at step {step}: {faults}; {self._newest()}; "
            "try a lower learning rate, a longer warm-up or a smaller clip_norm"
        )
