"""Is it healthy, how long yet?

    python -m launch.status W            # of a run, or of one stage's folder; local or gs://
    python -m launch.status W --json

reads the folder alone: nothing of the run is touched, and it may be running, dead or done. The first line is the
answer: `starting`, `healthy`, `slow input`, `stalled`, `diverging`, `stopped` or `finished`, and why. The exit code is
3 for stalled, diverging and stopped, which need a person, and 0 for the others.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from dalle_jax.errors import UserError
from dalle_jax.storage import as_path
from launch.cli import start_command
from launch.monitoring.health import Verdict
from launch.monitoring.run_health import describe, find, whole

JSON = flags.DEFINE_bool("json", False, "print one JSON object")

NEEDS_A_PERSON = (Verdict.STALLED, Verdict.DIVERGING, Verdict.STOPPED)


def main(folders: Sequence[str]) -> int:
    """Looks, and says what it saw."""
    if len(folders) != 1:
        raise UserError("name one work directory: python -m launch.status W")
    now = time.time()
    stages, waiting, start = find(as_path(folders[0]), now)
    verdict, reason = whole(stages, waiting, start, now)
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


if __name__ == "__main__":
    start_command(main)
