"""How a stage fares, judged from its folder alone: what its starts, rows and checkpoints say."""

import dataclasses
import enum
import math
import statistics
from collections.abc import Sequence
from typing import Any

from etils import epath

from dalle_jax.training.checkpoints.workdir import saved_steps
from dalle_jax.training.telemetry.attempts import FAILED, FINISHED, STOPPED, Attempt, account, duration, read_attempts
from dalle_jax.training.telemetry.clock import Kind
from dalle_jax.training.telemetry.writers import SLOW_INPUT, read_rows

DEAD_AFTER = 60.0
"""Seconds without a sign of life after which a process is taken for dead; it gives one every ten."""

PATIENCE = {
    Kind.START: 1800.0,
    Kind.COMPILE: 1800.0,
    Kind.INPUT: 300.0,
    Kind.STEP: 300.0,
    Kind.CHECKPOINT: 900.0,
    Kind.EVALUATE: 1800.0,
    Kind.PREVIEW: 900.0,
    Kind.OTHER: 300.0,
}
"""Seconds of one kind of work on end, or thirty steps' time where that is more, after which a run has stalled."""

WINDOWS = 10
"""Parts of equal length that the rows are cut into to tell a trend from noise."""


class Verdict(enum.Enum):
    """What a person wants to know first."""

    STARTING = "starting"
    HEALTHY = "healthy"
    SLOW_INPUT = "slow input"
    STALLED = "stalled"
    DIVERGING = "diverging"
    STOPPED = "stopped"
    FINISHED = "finished"


@dataclasses.dataclass(frozen=True)
class Health:
    """A stage at one moment."""

    stage: str
    verdict: Verdict
    reason: str
    step: int
    num_steps: int
    steps_per_second: float | None
    """Over the last rows, everything between the steps included."""
    seconds_left: float | None
    watched: str
    """The metric whose trend is told: `loss`, or of a codec `reconstruction`, which no warmed-up penalty is part of."""
    loss: float | None
    """Of the last row."""
    loss_now: float | None
    """Mean over the last tenth of the rows."""
    loss_before: float | None
    """Mean over the tenth before it; None where there are too few rows to tell a trend."""
    time_in_data: float | None
    mfu: float | None
    memory_in_use: float | None
    """Bytes of the fullest device of process 0; None: it does not say, as a CPU."""
    memory_peak: float | None
    host_memory_in_use: float | None
    """Bytes of process 0."""
    bad_samples: int
    checkpoint: int | None
    """Newest on disk."""
    checkpoint_age: float | None
    beat_age: float
    seconds: dict[str, float]
    starts: int
    warning: str
    """What a person should look at though training goes on; empty: nothing."""


def read_health(stage_dir: epath.PathLike, now: float) -> Health | None:
    """How a stage fares at Unix time `now`; None where it has not begun."""
    stage_dir = epath.Path(stage_dir)
    starts = read_attempts(stage_dir)
    if not starts:
        return None
    start, logged = starts[-1], read_rows(stage_dir / "metrics.jsonl")
    rows = [row for row in logged if "loss" in row]
    steps = saved_steps(stage_dir)
    saved_at = {save.step: save.time for earlier in starts for save in earlier.saves}
    recent = [row for row in rows if row["step"] > start.first_step][-20:]
    speed = _speed(recent) or start.steps_per_second
    watched = "reconstruction" if rows and "reconstruction" in rows[-1] else "loss"
    losses = [row.get(watched) for row in rows]
    shares = [row["time_in_data"] for row in recent[-10:] if "time_in_data" in row]
    share = statistics.fmean(shares) if shares else None
    windows = _window_means(losses)
    verdict, reason = judge(start, losses, share, speed, steps[-1] if steps else None, now)
    left = (start.num_steps - start.step) / speed if speed and verdict is not Verdict.STOPPED else None
    return Health(
        stage=start.stage,
        verdict=verdict,
        reason=reason,
        step=start.step,
        num_steps=start.num_steps,
        steps_per_second=speed,
        seconds_left=0.0 if verdict is Verdict.FINISHED else left,
        watched=watched,
        loss=losses[-1] if losses else None,
        loss_now=windows[-1] if windows else None,
        loss_before=windows[-2] if len(windows) == WINDOWS else None,
        time_in_data=share,
        mfu=recent[-1].get("mfu") if recent else None,
        memory_in_use=recent[-1].get("memory_in_use") if recent else None,
        memory_peak=recent[-1].get("memory_peak") if recent else None,
        host_memory_in_use=recent[-1].get("host_memory_in_use") if recent else None,
        bad_samples=int(rows[-1].get("bad_samples", 0)) if rows else 0,
        checkpoint=steps[-1] if steps else None,
        checkpoint_age=now - saved_at[steps[-1]] if steps and steps[-1] in saved_at else None,
        beat_age=max(0.0, now - start.beat),
        seconds={str(kind): spent for kind, spent in account(starts).items()},
        starts=len(starts),
        warning=_warning(logged),
    )


def _warning(rows: Sequence[dict[str, Any]]) -> str:
    """The alarm of a codec whose tokens have lost their meaning, as of the last evaluation."""
    alarms = [row for row in rows if "eval/usage_collapsed" in row]
    if not alarms or not alarms[-1]["eval/usage_collapsed"]:
        return ""
    usage = alarms[-1].get("eval/codebook_usage", 0.0)
    return f"the codec uses {usage:.1%} of its codes: a decoder will not learn from such tokens; see docs/monitoring.md"


def judge(
    start: Attempt,
    losses: Sequence[float | None],
    time_in_data: float | None,
    steps_per_second: float | None,
    saved: int | None,
    now: float,
) -> tuple[Verdict, str]:
    """The verdict on a start, and the reason in words.

    Args:
      start: the last one of its stage.
      losses: of all rows; None: was not finite.
      time_in_data: share of the last rows' time.
      steps_per_second: of the last rows.
      saved: step of the newest checkpoint.
      now: Unix time.
    """
    again = f"start again to go on from step {saved}" if saved else "start again"
    if start.state == FINISHED:
        return Verdict.FINISHED, f"all {start.num_steps:,} steps are done"
    if start.state in (STOPPED, FAILED):
        return Verdict.STOPPED, f"{start.reason}; {again}"
    silent, still, doing = now - start.beat, now - start.moved, Kind(start.doing)
    if silent > DEAD_AFTER:
        return Verdict.STOPPED, f"no sign of life for {duration(silent)}: killed, or its machine is gone; {again}"
    patience = max(PATIENCE.get(doing, 300.0), 30 / steps_per_second if steps_per_second else 0.0)
    if still > patience:
        return Verdict.STALLED, f"in '{doing}' for {duration(still)} after step {start.step:,}, and the process lives"
    trouble = diverging(losses)
    if trouble:
        return Verdict.DIVERGING, trouble
    if time_in_data is not None and time_in_data >= SLOW_INPUT:
        return Verdict.SLOW_INPUT, (
            f"{100 * time_in_data:.0f}% of the time for steps is spent waiting for data: more --config.data.workers, "
            "smaller images, or a faster disk"
        )
    if start.step == start.first_step:
        return Verdict.HEALTHY, f"beginning: in '{doing}' for {duration(still)}"
    return Verdict.HEALTHY, "steps are made and the loss is finite"


def diverging(losses: Sequence[float | None]) -> str:
    """What is wrong with a loss curve; empty: nothing that can be told.

    A loss diverges where its last window is above the lowest one by more than half of all that it had fallen, and by
    more than six times the spread between neighbouring rows.
    """
    if losses and losses[-1] is None:
        return "the last loss is not finite"
    means, values = _window_means(losses), [loss for loss in losses if loss is not None]
    if len(means) < WINDOWS:
        return ""
    lowest, last = min(means[:-1]), means[-1]
    jumps = [abs(b - a) for a, b in zip(values, values[1:], strict=False)]
    noise = statistics.median(jumps) / math.sqrt(max(1, len(values) // WINDOWS))
    if last - lowest > max((means[0] - lowest) / 2, 6 * noise) and last > means[-2]:
        return f"the loss rose to {last:.4g} from {lowest:.4g}"
    return ""


def _window_means(losses: Sequence[float | None]) -> list[float]:
    """Means of `WINDOWS` parts; fewer and shorter ones where there are few rows."""
    values = [loss for loss in losses if loss is not None]
    size = max(1, len(values) // WINDOWS)
    values = values[len(values) % size :]
    return [statistics.fmean(values[i : i + size]) for i in range(0, len(values), size)][-WINDOWS:]


def _speed(rows: Sequence[dict[str, Any]]) -> float | None:
    """Steps a second between the first and the last of some rows, evaluation and checkpoints included."""
    timed = [row for row in rows if "wall_seconds" in row]
    if len(timed) < 2:
        return None
    seconds = timed[-1]["wall_seconds"] - timed[0]["wall_seconds"]
    return (timed[-1]["step"] - timed[0]["step"]) / seconds if seconds > 0 else None
