"""A run under faults: starts it, strikes, watches how it ends and where it goes on."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dalle_jax.errors import PREEMPTED
from launch.cluster.local_group import Group
from launch.cluster.supervise import Policy, supervise
from launch.fault_injection.faults import Fault, Kind, Place
from launch.fault_injection.testbed import Listen, step_in

END_WITHIN = 240.0
"""Seconds from a fault to the end of all processes; heartbeats and the watchdog are shorter."""

CODES = {Kind.TERM: (PREEMPTED,), Kind.DISK: (2,), Kind.SHARD: (2,)}
"""Exit codes by which a run answers a fault as it says it does; a killed or stopped run ends as it can."""


@dataclasses.dataclass
class Record:
    """What became of a run after one fault. Steps are of the lines that it printed."""

    fault: Fault
    struck_at: int = 0
    struck_in_save: bool = False
    """Whether a checkpoint was being written then."""
    last_step: int = 0
    lost_a_save: bool = False
    """Whether a checkpoint was not whole when the run had ended."""
    ended: str = ""
    code: int = 0
    seconds: float = 0.0
    """From the fault to the end of all processes."""
    resumed_at: int | None = None
    faults: list[str] = dataclasses.field(default_factory=list)
    """What went wrong."""

    @property
    def name(self) -> str:
        """Of the fault, with the number of the process that it befell."""
        kind = self.fault.kind.value
        return f"{kind} {self.fault.process}" if "process" in kind else kind

    @property
    def lost(self) -> int | None:
        """Steps that were made again."""
        return None if self.resumed_at is None else self.last_step - self.resumed_at

    def may_lose(self, interval: int) -> int:
        """One save interval; one more where a checkpoint is lost with it."""
        return interval * (1 + (self.lost_a_save or self.fault.kind.spoils_a_checkpoint))

    def judge(self, interval: int) -> None:
        """Notes where the run did not do what it promises."""
        if self.lost is None:
            self.faults.append("the run did not go on")
        elif self.lost > self.may_lose(interval):
            self.faults.append(f"{self.lost} steps lost, {self.may_lose(interval)} allowed")
        codes = CODES.get(self.fault.kind)
        if codes is not None and self.code not in codes:
            self.faults.append(f"exit code {self.code}, not {codes[0]}")


class Storm:
    """Runs a training command to its end, through a list of faults."""

    def __init__(
        self,
        start: Callable[[Listen], Group],
        place: Place,
        faults: Sequence[Fault],
        log: Path,
        say: Callable[[str], None],
    ):
        """Args:
        start: begins the run, given what hears its output.
        place: where the run lives.
        faults: in order.
        log: file for all output.
        say: tells a person.
        """
        self._start, self._place, self._say = start, place, say
        self._left = list(faults)
        # Several faults in a row may leave no time for a checkpoint, and are no reason to give up.
        self._policy = Policy(restarts=len(faults) + 3, backoff=0.01)
        self._log = log
        self.records: list[Record] = []
        self._step: int | None = None
        self._first: int | None = None
        self._struck = 0.0

    def run(self) -> int:
        """Runs, under supervision, until the end or until a fault is not survived; returns the last exit code."""
        while True:
            code = supervise(self._attempt, lambda: self._place.saved, self._policy)
            record = self.records[-1] if self.records else None
            if code != 2 or record is None or record.code != 2 or record.fault.kind not in CODES:
                return code  # after a mistake that was mended, a person starts the run again

    def _attempt(self) -> tuple[int, str]:
        """One life of the run."""
        fault = self._left.pop(0) if self._left else None
        record, before = Record(fault) if fault else None, self.records[-1] if self.records else None
        self._step, self._first, self._struck = None, None, 0.0
        group = self._start(self._hear)
        try:
            code = group.wait(grace=5.0, meanwhile=lambda: self._watch(group, record))
        finally:
            group.end()
        if before is not None and before.resumed_at is None and self._first is not None:
            before.resumed_at = self._first - 1
        if record is not None:
            self._finish(record, group, code)
        return code, group.describe()

    def _hear(self, index: int, line: str) -> None:
        with self._log.open("a") as log:
            log.write(f"{time.time():.3f} [{index}] {line}\n")
        step = step_in(line)
        if step is not None:
            self._step = step
            self._first = step if self._first is None else self._first

    def _watch(self, group: Group, record: Record | None) -> None:
        """Strikes when it is time, and ends a run that outlives its fault for too long."""
        if record is None:
            return
        if self._struck:
            if time.monotonic() - self._struck > END_WITHIN and not record.faults:
                record.faults.append(f"still there {END_WITHIN:g} s after the fault")
                group.end()
        elif self._due(record.fault):
            record.struck_at, record.struck_in_save = self._step or 0, self._place.saving
            self._struck = time.monotonic()
            self._place.strike(record.fault, group)

    def _due(self, fault: Fault) -> bool:
        if self._step is None or self._first is None or self._step < self._first + fault.after:
            return False
        if fault.kind.spoils_a_checkpoint and (self._place.saving or len(self._place.saved) < 2):
            return False  # one checkpoint is lost at a time
        return not fault.during_save or self._place.saving

    def _finish(self, record: Record, group: Group, code: int) -> None:
        if not self._struck:
            record.faults.append("the run ended before it: more steps are needed")
        record.seconds = time.monotonic() - self._struck if self._struck else 0.0
        record.last_step, record.code, record.ended = self._step or 0, code, group.describe()
        record.lost_a_save = self._place.saving
        self._place.after(record.fault)
        self.records.append(record)
        where = f"{record.name} at step {record.struck_at}" + (" during a save" if record.struck_in_save else "")
        self._say(f"{len(self.records)}: {where}: {record.ended} after {record.seconds:.1f} s")


def table(records: Sequence[Record], interval: int) -> str:
    """A line a fault."""
    rows: list[Mapping[str, object]] = [
        {
            "fault": record.name,
            "step": record.struck_at,
            "in a save": "yes" if record.struck_in_save else "",
            "ended": f"{record.ended} in {record.seconds:.0f} s",
            "went on from": "-" if record.resumed_at is None else record.resumed_at,
            "lost": "-" if record.lost is None else record.lost,
            "allowed": record.may_lose(interval),
            "survived": "; ".join(record.faults) or "yes",
        }
        for record in records
    ]
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join(lines)


def too_few_in_saves(records: Sequence[Record]) -> list[str]:
    """Whether fewer faults struck while a checkpoint was written than were to."""
    wanted, found = sum(r.fault.during_save for r in records), sum(r.struck_in_save for r in records)
    print(f"{found} of {len(records)} faults struck while a checkpoint was written")
    return [f"{found} faults struck during a save, {wanted} were to: choose another --seed"] if found < wanted else []
