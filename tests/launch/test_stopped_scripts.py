"""A script that is told to stop, or whose command was, ends there: nothing that comes after is begun."""

import functools
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dalle_jax.errors import PREEMPTED
from tests.launch.starters import ROOT, script

pytestmark = pytest.mark.entry

PYTHON = """#!/bin/bash
# Stands for the environment's interpreter: one of its modules waits for SIGTERM, the others are done at once.
echo "$*" >>"$FOLDER/calls"
[[ "$*" == *"$WAITS"* ]] || exit 0
trap 'exit "${DALLE_JAX_PREEMPTED_CODE:-$ENDS}"' TERM
echo $$ >"$FOLDER/pid.new" && mv "$FOLDER/pid.new" "$FOLDER/pid"
while :; do sleep 0.02; done
"""


class Started:
    """A script of launch/ that has come to the module which waits."""

    def __init__(self, name: str, folder: Path, waits: str, ends: int = 0):
        script(folder / "venv/bin/python", PYTHON)
        environment = os.environ | {"FOLDER": str(folder), "DALLE_JAX_VENV": str(folder / "venv"), "WAITS": waits}
        environment |= {"WORKDIR": str(folder / "W"), "ENDS": str(ends)}
        self._folder = folder
        # What a shell starts in the background ignores Ctrl-C, and hands that on to what it starts.
        heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        self.process = subprocess.Popen(["bash", f"launch/{name}"], cwd=ROOT, env=environment, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed)  # fmt: skip
        for _ in range(1000):
            if (folder / "pid").exists():
                break
            time.sleep(0.01)
        self.child = int((folder / "pid").read_text())

    def ended(self) -> tuple[int, list[str]]:
        """The exit code, and the modules that were run."""
        self.process.communicate(timeout=20)
        calls = [line.split() for line in (self._folder / "calls").read_text().splitlines()]
        return self.process.returncode, [call[1] for call in calls if call[0] == "-m" and call[1] != "pip"]


@pytest.mark.parametrize("to", ["script", "child", "both"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_quickstart_that_is_stopped_evaluates_nothing(tmp_path, to, number):
    if to == "child" and number == signal.SIGINT:
        pytest.skip("of a terminal, which sends it to both")
    started = Started("quickstart.sh", tmp_path, "launch.train")
    if to != "script":
        os.kill(started.child, number)
    if to != "child":
        started.process.send_signal(number)
    code, modules = started.ended()
    assert modules == ["launch.train"]
    assert code in (PREEMPTED, 128 + number), "not 0, which would say that it is trained"
    assert not Path(f"/proc/{started.child}").exists()


def test_a_quickstart_that_is_stopped_while_it_evaluates(tmp_path):
    started = Started("quickstart.sh", tmp_path, "launch.evaluate")
    started.process.send_signal(signal.SIGTERM)
    code, modules = started.ended()
    assert modules == ["launch.train", "launch.evaluate"] and code != 0


@pytest.mark.parametrize(("ends", "goes_on"), [(143, False), (130, False), (1, True)])
def test_checks_go_on_after_a_failure_and_not_after_a_signal(tmp_path, ends, goes_on):
    started = Started("test.sh", tmp_path, "ruff check", ends)
    os.kill(started.child, signal.SIGTERM)
    code, modules = started.ended()
    assert code == (1 if goes_on else ends)
    assert modules == (["ruff", "ruff", "pyrefly", "mkdocs", "pytest"] if goes_on else ["ruff"])
