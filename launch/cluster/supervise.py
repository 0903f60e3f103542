"""When to start a run again that has ended, and when to give up.

`python -m launch.cluster.supervise COMMAND...` tells how far a run has come, where a shell counts
(launch/cluster/restarts.sh).
"""

import dataclasses
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from dalle_jax import storage
from dalle_jax.errors import PREEMPTED, run_main
from dalle_jax.training.checkpoints.workdir import saved_steps
from launch.cluster.command_checks import option

FINAL = (0, 2, 130)
"""Exit codes after which a run is not started again: done, a mistake that it would repeat, Ctrl-C."""

LONGEST_WAIT = 60.0
"""Seconds between two starts."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """How patient a supervisor is."""

    restarts: int = 0
    """Starts in a row without progress after which it gives up; with progress it counts anew. 0: no restart."""
    backoff: float = 1.0
    """Seconds before a restart; twice as many for each start in a row without progress, up to `LONGEST_WAIT`."""


def supervise(
    run: Callable[[], tuple[int, str]],
    progress: Callable[[], Any],
    policy: Policy,
    stopped: threading.Event | None = None,
) -> int:
    """Runs until it is done, or until restarts no longer help. Says on stderr what it does.

    Args:
      run: starts the run and waits for its end; returns its exit code, and how it ended.
      progress: anything that differs where the run has come further; asked for after each end.
      policy: when to give up.
      stopped: set where a person or the cluster asked for the end: nothing is started again.

    Returns:
      The last exit code.
    """
    stopped = stopped or threading.Event()
    before, in_vain = _look(progress, None), 0
    while True:
        code, how = run()
        if code in FINAL or not policy.restarts or stopped.is_set():
            return code
        now = _look(progress, before)
        in_vain = 0 if now != before else in_vain + 1
        before = now
        if code == PREEMPTED:
            in_vain, how = 0, "asked to stop, it saved and left"
        if in_vain >= policy.restarts:
            _say(f"{how}: giving up, {in_vain} starts in a row brought no new checkpoint (now: {now or 'none'})")
            return code
        wait = min(policy.backoff * 2.0**in_vain, LONGEST_WAIT)
        _say(f"{how} (exit code {code}): starting again in {wait:g} s; saved so far: {now or 'nothing'}")
        if stopped.wait(wait):
            return code


def _look(progress: Callable[[], Any], before: Any) -> Any:
    """The progress; what it was before where it cannot be read: a store that fails for a moment ends no run."""
    try:
        return progress()
    except Exception as error:  # whatever the store's library raises
        _say(f"cannot see how far the run has come: {error}")
        return before


def progress_of(command: Sequence[str]) -> str:
    """How far the run of a command has come, read from its `--out` or `--workdir`.

    Returns:
      How many files the folder of results holds, where there is one: a work directory named beside it is what the
      command reads. Else the newest checkpoint of every stage under the work directory.
    """
    if out := option(command, "out"):
        files = len(storage.walk(storage.expanduser(out)))
        return f"{files} files" if files else ""
    if workdir := option(command, "workdir"):
        folder = epath.Path(workdir)
        found = sorted([*folder.glob("*/checkpoints"), *folder.glob("*/*/checkpoints")])
        newest = {str(path.parent.relative_to(folder)): max(saved_steps(path.parent), default=0) for path in found}
        return ", ".join(f"{stage} {step}" for stage, step in newest.items())
    return ""


def _say(text: str) -> None:
    print(f"supervisor: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Prints the progress of the command that follows."""
    print(f"dalle-jax saved: {progress_of(sys.argv[1:]) or 'nothing'}")


if __name__ == "__main__":
    run_main(main)
