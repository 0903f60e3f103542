"""A run of several stages: how it fares as a whole, and the lines that say so."""

from collections.abc import Sequence

from etils import epath

from clip_jax.objectives import Objective
from dalle_jax.errors import UserError
from dalle_jax.run_record import stages_in
from dalle_jax.training.checkpoints.workdir import read_workdir
from dalle_jax.training.telemetry.attempts import duration
from launch.monitoring.health import DEAD_AFTER, Health, Verdict, read_health
from launch.run.startup import Starting, read_starting

BETWEEN = 10 * DEAD_AFTER
"""Seconds that a run may take from the end of a stage to the first sign of life of the next."""


def find(workdir: epath.Path, now: float) -> tuple[list[Health], list[str], Starting | None]:
    """The stages that have begun, in order, those that the config names and have not, and a start before any stage.

    Raises:
      UserError: the folder is not there, or is none of a run.
    """
    if (workdir / "starts").exists():
        one = read_health(workdir, now)
        return ([one] if one else []), [], None
    start = read_starting(workdir)
    if start is not None and not (workdir / "config.json").exists():
        return [], [], start
    config = read_workdir(workdir)
    if runs := sorted(path.parent for objective in Objective for path in workdir.glob(f"{objective.value}/*/starts")):
        raise UserError(f"{workdir} is of launch.efficiency: name one of its {len(runs)} runs ({runs[0]}, say)")
    found = {name: read_health(workdir / name, now) for name in stages_in(config)}
    stages = [health for health in found.values() if health is not None]
    # A decoder on a named codec does not wait for that of its config, which `--stages` may have left out.
    named = (config.get("decoder") or {}).get("codec_from")
    waiting = [name for name, health in found.items() if health is None and not (named and name == "codec")]
    return stages, waiting, start


def whole(stages: Sequence[Health], waiting: Sequence[str], start: Starting | None, now: float) -> tuple[Verdict, str]:
    """The verdict on a run: that of the stage that works, or worked last, unless a start is under way before it."""
    if start is not None and not start.ready and now - start.beat <= DEAD_AFTER:
        return Verdict.STARTING, f"reading data and captions for {duration(now - start.began)}; no stage works yet"
    if not stages:
        return _before_the_first(waiting, start, now)
    open_ones = [stage for stage in stages if stage.verdict is not Verdict.FINISHED]
    if open_ones:
        stage = open_ones[-1]
        left = f", {duration(stage.seconds_left)} left" if stage.seconds_left is not None else ""
        return stage.verdict, f"{stage.stage} at step {stage.step:,} of {stage.num_steps:,}{left}: {stage.reason}"
    if not waiting:
        return Verdict.FINISHED, f"all of {', '.join(stage.stage for stage in stages)} is trained"
    since = stages[-1].beat_age
    if since < BETWEEN:
        return Verdict.HEALTHY, f"{stages[-1].stage} is done and {waiting[0]} is about to begin"
    return Verdict.STOPPED, (
        f"{stages[-1].stage} was done {duration(since)} ago and {waiting[0]} has not begun: start again to go on"
    )


def _before_the_first(waiting: Sequence[str], start: Starting | None, now: float) -> tuple[Verdict, str]:
    """The verdict on a run of which no stage has begun."""
    if start is None:
        return Verdict.STOPPED, f"{', '.join(waiting)} not begun: it failed before its first stage; start again"
    if start.ready and now - start.beat <= BETWEEN:
        return Verdict.STARTING, f"{waiting[0] if waiting else 'the first stage'} is about to begin"
    since = duration(now - start.beat)
    return Verdict.STOPPED, f"no sign of life for {since} before its first stage: killed, or failed; start again"


def describe(stage: Health) -> list[str]:
    """A stage in a few lines."""
    done = 100 * stage.step / stage.num_steps if stage.num_steps else 100.0
    first = [f"{stage.stage}: {stage.verdict.value}", f"step {stage.step:,} of {stage.num_steps:,} ({done:.0f}%)"]
    if stage.steps_per_second:
        first.append(f"{stage.steps_per_second:.3g} steps/s")
    if stage.seconds_left:
        first.append(f"{duration(stage.seconds_left)} left")
    second = [] if stage.loss is None else [_trend(stage)]
    if stage.time_in_data is not None:
        second.append(f"waiting for data {100 * stage.time_in_data:.0f}%")
    second.append(f"MFU {stage.mfu:.3f}" if stage.mfu is not None else "MFU n/a")
    second.append(f"bad samples {stage.bad_samples}")
    age = f", {duration(stage.checkpoint_age)} ago" if stage.checkpoint_age is not None else ""
    saved = "no checkpoint yet" if stage.checkpoint is None else f"checkpoint of step {stage.checkpoint:,}{age}"
    third = [saved, f"sign of life {duration(stage.beat_age)} ago", f"{stage.starts} start{'s' * (stage.starts > 1)}"]
    wall = sum(stage.seconds.values())
    shares = sorted(stage.seconds.items(), key=lambda share: -share[1])
    time_by_kind = [f"{kind} {100 * spent / wall:.0f}%" for kind, spent in shares if wall and spent >= 0.005 * wall]
    lines = ["  ".join(first), "  ".join(second), "  ".join(third), *_memory(stage)]
    lines.append(f"{duration(wall)}: {', '.join(time_by_kind)}")
    if stage.warning:
        lines.append(f"warning: {stage.warning}")
    return [lines[0], *("    " + line for line in lines[1:])]


def _memory(stage: Health) -> list[str]:
    """What is held of a device, with the most that was, and of the host."""
    text = []
    if stage.memory_in_use is not None:
        peak = "" if stage.memory_peak is None else f" (peak {stage.memory_peak / 2**30:.1f})"
        text.append(f"{stage.memory_in_use / 2**30:.1f} GiB{peak} of a device")
    if stage.host_memory_in_use is not None:
        text.append(f"{stage.host_memory_in_use / 2**30:.1f} GiB of the host")
    return [f"memory {', '.join(text)}"] if text else []


def _trend(stage: Health) -> str:
    text = f"{stage.watched} {stage.loss:.4g}"
    if stage.loss_before is None or stage.loss_now is None:
        return text
    change = stage.loss_now / stage.loss_before - 1 if stage.loss_before else 0.0
    word = "level" if abs(change) < 0.005 else "falling" if change < 0 else "rising"
    return f"{text} ({word}: {change:+.1%} over the last tenth)"
