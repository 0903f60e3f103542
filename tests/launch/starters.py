"""What the tests of the cluster starters share: running them, golden files, a Python that installs nothing."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("golden")

INSTALLS_NOTHING = """#!/bin/sh
case "$*" in
  "-m venv "*) for folder; do :; done; mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python" ;;
  "-m pip "*) echo "$*" >>'{record}' ;;
  *) exec '{python}' "$@" ;;
esac
"""


def run(command: list, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """A starter as a person would run it."""
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )


def script(path: Path, text: str) -> Path:
    """Writes a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def python_that_installs_nothing(path: Path, record: Path) -> Path:
    """This interpreter, but making an environment copies it there, and what pip is asked for goes into `record`."""
    return script(path, INSTALLS_NOTHING.format(record=record, python=sys.executable))


def assert_golden(name: str, text: str) -> None:
    """Compares with the file in golden/; `UPDATE_GOLDEN=1` writes it."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"{path} is out of date? UPDATE_GOLDEN=1 writes it; look at the difference"


def assert_refused(done: subprocess.CompletedProcess, *parts: str) -> None:
    """Code 2 and exactly one line."""
    assert done.returncode == 2, done
    assert done.stdout == "", done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and len(line) < 300, line
    for part in parts:
        assert part in line, line
