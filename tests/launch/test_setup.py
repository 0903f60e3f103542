"""launch/setup.sh: which Python it takes of those that are there, and what it says where none will do."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.starters import run, script

pytestmark = pytest.mark.entry


def python(path: Path, version: tuple[int, ...], lacks: str = "") -> None:
    """This interpreter, but of another version and without a module; it takes code alone, as setup.sh asks."""
    pretends = f"import sys; sys.version_info = {version}; sys.modules['{lacks}'] = None; exec(sys.argv[1])"
    script(path, f'#!/bin/sh\nexec {sys.executable} -c "{pretends}" "$2"\n')


def find_python(folder: Path, modules: str = "ensurepip, venv") -> subprocess.CompletedProcess:
    command = f'PATH={folder}; source launch/setup.sh; find_python "{modules}"'
    return run(["bash", "-c", command], PYTHON="", DALLE_JAX_VENV=str(folder / "venv"))


def test_one_that_can_make_environments_is_found(tmp_path):
    python(tmp_path / "python3.13", (3, 13, 0), lacks="ensurepip")
    python(tmp_path / "python3", (3, 9, 18))
    python(tmp_path / "python", (3, 12, 1))
    done = find_python(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "python\n", "")
    assert find_python(tmp_path, modules="").stdout == "python3.13\n"


def test_none_is_new_enough(tmp_path):
    python(tmp_path / "python3", (3, 9, 18))
    done = find_python(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: Python 3.11 or newer is needed")


def test_none_can_make_environments(tmp_path):
    """That is what is said, and not that the one which is there is too old."""
    python(tmp_path / "python3.11", (3, 11, 2), lacks="ensurepip")
    python(tmp_path / "python3", (3, 9, 18))
    done = find_python(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: python3.11 cannot make environments") and "apt-get install python3.11-venv" in line


def test_of_the_environment_where_the_system_has_none(tmp_path):
    """As uv makes them; it reads the starters' arguments."""
    python(tmp_path / "python3", (3, 9, 18))
    python(tmp_path / "venv/bin/python", (3, 13, 0))
    assert find_python(tmp_path, modules="").stdout == f"{tmp_path}/venv/bin/python\n"
