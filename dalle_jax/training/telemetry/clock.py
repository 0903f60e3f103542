"""Wall time by kind: at every moment exactly one kind runs, so that the kinds sum to the whole."""

import contextlib
import enum
import os
import threading
import time
from collections.abc import Generator
from pathlib import Path

import jax.monitoring

COMPILE_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
"""What JAX tells its listeners: seconds of tracing, of lowering, and of XLA (or of reading its cache)."""


class Kind(enum.StrEnum):
    """What a run spends its time on."""

    START = "start"  # from the start of the process to the first batch: imports, data, restoring or making the state
    COMPILE = "compile"  # wherever it happens: the step, the state, evaluation
    INPUT = "input"  # waiting for a batch
    STEP = "step"  # the rest of the loop: devices at work, and the host that feeds them
    CHECKPOINT = "checkpoint"  # while saving holds the loop up; what goes on in the background is not counted
    EVALUATE = "evaluate"
    PREVIEW = "preview"
    OTHER = "other"  # writing rows, ending
    LOST = "lost"  # work that a restart threw away: what came after the checkpoint that it went on from
    DOWN = "down"  # between the last sign of life of a start and the beginning of the next


class Clock:
    """Counts one start of a run. Compilations are taken out of whatever kind they happen in.

    Use it as a context manager, in the thread that trains. `totals` may be called from any.
    """

    def __init__(self, began: float | None = None):
        """Args:
        began: Unix time from which to count, in the past; None: now.
        """
        self._lock = threading.Lock()
        self._thread = threading.get_ident()
        self._spent: dict[str, float] = dict.fromkeys(Kind, 0.0)
        self._kind = Kind.START
        already = 0.0 if began is None else max(0.0, time.time() - began)
        self.began = time.time() - already
        """Unix time."""
        self._since = time.perf_counter() - already
        self._compiled: list[tuple[float, float]] = []  # when compilations ended, and their seconds
        self._lap = dict(self._spent)

    def __enter__(self) -> "Clock":
        jax.monitoring.register_event_duration_secs_listener(self._on_event)
        return self

    def __exit__(self, *exception: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_event)

    @property
    def kind(self) -> Kind:
        """What runs now."""
        return self._kind

    def enter(self, kind: Kind) -> Kind:
        """Time from now on is of this kind; returns what it was of."""
        with self._lock:
            self._settle()
            before, self._kind = self._kind, kind
            return before

    @contextlib.contextmanager
    def measure(self, kind: Kind) -> Generator[None, None, None]:
        """Counts the block's time as of a kind, and then goes back to the kind before."""
        before = self.enter(kind)
        try:
            yield
        finally:
            self.enter(before)

    def totals(self) -> dict[str, float]:
        """Seconds by kind since the clock began; their sum is the time since then."""
        with self._lock:
            self._settle()
            return dict(self._spent)

    def lap(self) -> dict[str, float]:
        """Seconds by kind since the last lap."""
        now = self.totals()
        lap = {kind: now[kind] - self._lap[kind] for kind in now}
        self._lap = now
        return lap

    def _settle(self) -> None:
        now = time.perf_counter()
        self._spent[self._kind] += now - self._since
        self._since = now

    def _on_event(self, event: str, duration_secs: float, **attributes: object) -> None:
        """Moves a compilation's seconds to its kind; of those inside another one only once."""
        del attributes
        if event not in COMPILE_EVENTS or threading.get_ident() != self._thread or self._kind is Kind.COMPILE:
            return
        now = time.perf_counter()
        inside = sum(inner for end, inner in self._compiled if end > now - duration_secs)
        apart = [(end, inner) for end, inner in self._compiled if end <= now - duration_secs]
        self._compiled = [*apart[-1000:], (now, duration_secs)]
        with self._lock:
            self._settle()
            moved = min(max(0.0, duration_secs - inside), self._spent[self._kind])
            self._spent[self._kind] -= moved
            self._spent[Kind.COMPILE] += moved


def process_began() -> float:
    """Unix time at which this process began, so that its imports count too; now, where the system does not say."""
    now = time.time()
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return now
    return now - max(0.0, age) if ticks else now
