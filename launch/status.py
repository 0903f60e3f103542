"""Is it healthy, how long yet?

    python -m launch.status W            # of a run, or of one stage's folder; local or gs://
    python -m launch.status W --json

reads the folder alone: nothing of the run is touched, and it may be running, dead or done. The first line is the
answer: `healthy`, `slow input`, `stalled`, `diverging`, `stopped` or `finished`, and why. The exit code is 0 for
healthy, slow input and finished, and 3 for what needs a person.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath

from dalle_jax.errors import UserError
from dalle_jax.training.starts import duration
from dalle_jax.training.workdir import read_workdir
from launch.flags import start_command
from launch.health import DEAD_AFTER, Health, Verdict, look

JSON = flags.DEFINE_bool("json", False, "print one JSON object")

NEEDS_A_PERSON = (Verdict.STALLED, Verdict.DIVERGING, Verdict.STOPPED)

STAGES = ("codec", "decoder", "clip")
"""Sections of a config that are trained, in order."""

BETWEEN = 10 * DEAD_AFTER
"""Seconds that a run may take from the end of a stage to the first sign of life of the next."""


def main(folders: Sequence[str]) -> int:
    if len(folders) != 1:
        raise UserError("name one work directory: python -m launch.status W")
    workdir, now = epath.Path(folders[0]), time.time()
    stages, waiting = find(workdir, now)
    verdict, reason = whole(stages, waiting, now)
    if JSON.value:
        report: dict[str, Any] = {"verdict": verdict.value, "reason": reason, "waiting": waiting}
        report["stages"] = [dataclasses.asdict(stage) | {"verdict": stage.verdict.value} for stage in stages]
        print(json.dumps(report))
    else:
        print(f"{verdict.value}: {reason}")
        for stage in stages:
            print("\n".join(describe(stage)))
        if waiting:
            print(f"{', '.join(waiting)}: not begun")
    return 3 if verdict in NEEDS_A_PERSON else 0


def find(workdir: epath.Path, now: float) -> tuple[list[Health], list[str]]:
    """The stages that have begun, in order, and those that the config names and have not.

    Raises:
      UserError: the folder is not there, or is none of a run.
    """
    if (workdir / "starts").exists():
        found = look(workdir, now)
        return ([found] if found else []), []
    config = read_workdir(workdir)
    wanted = [name for name in STAGES if config.get(name)]
    looked = {name: look(workdir / name, now) for name in wanted}
    stages = [health for health in looked.values() if health is not None]
    return stages, [name for name, health in looked.items() if health is None]


def whole(stages: Sequence[Health], waiting: Sequence[str], now: float) -> tuple[Verdict, str]:
    """The verdict on a run: that of the stage that works, or worked last."""
    if not stages:
        return Verdict.STOPPED, f"{', '.join(waiting)} not begun: it is starting, or failed before its first stage"
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
    lines = ["  ".join(first), "  ".join(second), "  ".join(third), f"{duration(wall)}: {', '.join(time_by_kind)}"]
    if stage.warning:
        lines.append(f"warning: {stage.warning}")
    return [lines[0], *("    " + line for line in lines[1:])]


def _trend(stage: Health) -> str:
    text = f"{stage.watched} {stage.loss:.4g}"
    if stage.loss_before is None or stage.loss_now is None:
        return text
    change = stage.loss_now / stage.loss_before - 1 if stage.loss_before else 0.0
    word = "level" if abs(change) < 0.005 else "falling" if change < 0 else "rising"
    return f"{text} ({word}: {change:+.1%} over the last tenth)"


if __name__ == "__main__":
    start_command(main)
