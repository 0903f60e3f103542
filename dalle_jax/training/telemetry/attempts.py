"""What the attempts at one stage left on record, and where its wall time went, restarts included.

Every attempt keeps one file, `starts/0001.json`, `starts/0002.json` and so on, which is written anew every few
seconds. The time of a whole run is a function of these files alone.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from dalle_jax.training.telemetry.chips import utilisation
from dalle_jax.training.telemetry.clock import Kind

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"
"""States of an attempt. One that was killed says `running` for ever: how old its last sign of life is tells."""


@dataclasses.dataclass(frozen=True)
class Save:
    """A checkpoint that an attempt began to write."""

    step: int
    time: float
    """Unix time."""
    seconds: Mapping[str, float]
    """By kind, from the beginning of the attempt to this save."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One process after another works on a stage; this is what one of them says. Times are Unix times in seconds."""

    number: int
    stage: str
    began: float
    beat: float
    """Last sign of life: when this was written."""
    moved: float
    """When the loop last got on: a step done, or another kind of work begun."""
    doing: str
    """The `Kind` of work at `beat`."""
    first_step: int
    """Updates made before this attempt."""
    step: int
    """Updates made by now, as far as the host has handed them to the devices."""
    num_steps: int
    batch_size: int
    seconds: Mapping[str, float]
    """By kind; they sum to `beat - began`."""
    saves: Sequence[Save] = ()
    """Of the checkpoints that are still on disk."""
    state: str = RUNNING
    reason: str = ""
    """Why it failed."""
    step_flops: float = 0.0
    """Useful operations of a step, by the task's formula; 0: not counted."""
    peak_flops: float | None = None
    """Operations a second of all devices together; None where they are not in the table of chips."""
    device_kind: str = ""
    devices: int = 0
    processes: int = 1

    @property
    def stepping(self) -> float:
        """Seconds in which it could have made steps: without start, compilation, checkpoints and evaluation."""
        return sum(self.seconds[kind] for kind in (Kind.STEP, Kind.INPUT, Kind.OTHER))

    @property
    def steps_per_second(self) -> float | None:
        """Of the steps of this attempt; None before the first."""
        made = self.step - self.first_step
        return made / self.stepping if made > 0 and self.stepping > 0 else None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation: see `utilisation`."""
        return utilisation(self.step_flops, self.steps_per_second, self.peak_flops)


def read_attempts(stage_dir: epath.PathLike) -> list[Attempt]:
    """The attempts at a stage, oldest first; a file that cannot be read as one is passed over."""
    directory = epath.Path(stage_dir) / "starts"
    if not directory.exists():
        return []
    names = sorted(path.name for path in directory.iterdir() if path.suffix == ".json")
    attempts = [_read(directory / name) for name in names]
    return [attempt for attempt in attempts if attempt is not None]


def _read(path: epath.Path) -> Attempt | None:
    known = {field.name for field in dataclasses.fields(Attempt)}
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        saves = tuple(Save(**save) for save in record.pop("saves"))
        return Attempt(**{name: value for name, value in record.items() if name in known}, saves=saves)
    except (json.JSONDecodeError, KeyError, TypeError, FileNotFoundError):
        return None


def broke_off(stage_dir: epath.PathLike) -> bool:
    """Whether the last attempt was cut short: killed behind its last checkpoint, it needs another that says so."""
    attempts = read_attempts(stage_dir)
    return bool(attempts) and attempts[-1].state != FINISHED


def account(attempts: Sequence[Attempt]) -> dict[str, float]:
    """Seconds by kind from the first beginning to the last sign of life; their sum is that time.

    What an attempt did after the checkpoint that a later one went on from is `lost`, whatever its kind; all of it where
    no step of it was kept. Time between two attempts is `down`, except after a finished one: nothing was to run then.
    """
    spent: dict[str, float] = dict.fromkeys(Kind, 0.0)
    for i, attempt in enumerate(attempts):
        later = attempts[i + 1 :]
        kept = _kept(attempt, min((other.first_step for other in later), default=None))
        for kind in Kind:
            spent[kind] += kept.get(kind, 0.0)
        spent[Kind.LOST] += max(0.0, sum(attempt.seconds.values()) - sum(kept.values()))
        if later and attempt.state != FINISHED:
            spent[Kind.DOWN] += max(0.0, later[0].began - attempt.beat)
    return spent


def _kept(attempt: Attempt, went_on_from: int | None) -> Mapping[str, float]:
    """Seconds by kind of what later attempts did not have to do again."""
    if went_on_from is None:
        return attempt.seconds
    if went_on_from <= attempt.first_step:
        return {}
    if went_on_from >= attempt.step:
        return attempt.seconds
    saves = [save for save in attempt.saves if save.step <= went_on_from]
    return max(saves, key=lambda save: save.step).seconds if saves else {}


def summary(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """A stage in figures, as its `summary.json` holds them."""
    last, seconds = attempts[-1], account(attempts)
    wall = sum(seconds.values())
    return {
        "stage": last.stage,
        "state": last.state,
        "reason": last.reason,
        "step": last.step,
        "num_steps": last.num_steps,
        "samples": last.step * last.batch_size,
        "starts": len(attempts),
        "wall_seconds": wall,
        "seconds": {kind.value: seconds[kind] for kind in Kind},
        "goodput": seconds[Kind.STEP] / wall if wall else 0.0,
        "mfu": last.mfu,
        "steps_per_second": last.steps_per_second,
        "device_kind": last.device_kind,
        "devices": last.devices,
        "formulas": {
            "wall_seconds": "sum of seconds, from the first beginning to the last sign of life",
            "goodput": "seconds.step / wall_seconds",
            "mfu": "useful FLOP of a step x steps_per_second / (devices x peak FLOP/s), of the last attempt",
            "steps_per_second": "steps / seconds of step, input and other, of the last attempt",
        },
    }


def in_words(attempts: Sequence[Attempt]) -> str:
    """One line: where the time of a stage went."""
    found = summary(attempts)
    wall, seconds = found["wall_seconds"] or 1.0, found["seconds"]
    shares = [(kind, seconds[kind]) for kind in Kind if seconds[kind] / wall >= 0.005]
    shares.sort(key=lambda share: -share[1])
    parts = ", ".join(f"{_NAMES.get(kind, kind)} {100 * spent / wall:.0f}%" for kind, spent in shares)
    restarts = f", {found['starts']} attempts" if found["starts"] > 1 else ""
    mfu = f"MFU {found['mfu']:.3f}" if found["mfu"] is not None else "MFU n/a"
    return (
        f"{found['stage']}: step {found['step']:,} of {found['num_steps']:,} after {duration(found['wall_seconds'])}"
        f"{restarts}: {parts}; goodput {found['goodput']:.2f}, {mfu}"
    )


_NAMES = {Kind.LOST: "lost to restarts", Kind.DOWN: "down"}


def duration(seconds: float) -> str:
    """`3d04h`, `2h05m`, `1m09s`, `12s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02d}h"
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
