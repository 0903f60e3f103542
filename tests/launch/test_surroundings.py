"""What is around a script: a reader that has gone, arguments that are no text, a person without a home directory."""

import os
import subprocess
import sys

import pytest

from dalle_jax import storage
from dalle_jax.data.readers.webdataset_index import tar_index
from dalle_jax.data.readers.webdataset_writer import write_shard
from dalle_jax.errors import UserError, run_main
from launch import cli
from tests.launch.conftest import ROOT, environment
from tests.launch.starters import assert_refused

pytestmark = pytest.mark.entry

PRINTS = "from launch import cli; cli.start_command(lambda rest: print('one' + '\\n' * {lines}) or {code})"


def into_closed(command: list[str], both: bool = False, **variables: str) -> subprocess.CompletedProcess:
    """Runs a command whose output nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(
            command, cwd=ROOT, env=environment() | variables, stdout=writing,
            stderr=writing if both else subprocess.PIPE, timeout=60,
        )  # fmt: skip
    finally:
        os.close(writing)


@pytest.mark.parametrize("lines", [1, 100_000])
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("both", [False, True])
def test_a_reader_that_has_gone(lines, unbuffered, both):
    """Few lines are written when the script has come to its end, which is what its code then says."""
    program = PRINTS.format(lines=lines, code=3)
    done = into_closed([sys.executable, "-c", program], both, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == (3 if lines == 1 and not unbuffered else 141)
    assert not done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["launch.plot", "--help"],
        ["launch.cluster.accelerators", "v5e-8"],
        ["launch.gke", "--help"],
        ["launch.gke", "--name=a", "--accelerator=v5e-8", "--image=i", "--dry-run", "--", "python"],
    ],
    ids=" ".join,
)
def test_every_script_that_prints(command):
    done = into_closed([sys.executable, "-m", *command], PYTHONUNBUFFERED="")
    assert done.stderr == b"" and done.returncode in (0, 1, 141), "not 120: Python could not write the rest"


def test_another_broken_pipe_is_a_fault(capfd):
    def main():
        raise BrokenPipeError(32, "of a connection")

    with pytest.raises(BrokenPipeError):
        run_main(main)


@pytest.mark.parametrize(
    "arguments",
    [["--prompt=caf\udce9 on a hill"], ["--prompt", "caf\udce9"], ["--workdir=/tmp/\udcfc"], ["--out=\udcfc"]],
)
def test_arguments_that_are_not_utf8(arguments):
    command = [sys.executable, "-m", "launch.generate", *map(os.fsencode, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert_refused(done, "is not UTF-8")


def test_a_file_of_prompts_that_is_not_utf8(tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"caf\xe9 on a hill\n")
    command = [sys.executable, "-m", "launch.generate", f"--prompts={tmp_path / 'prompts.txt'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert_refused(done, "prompts.txt", "UTF-8")


@pytest.mark.parametrize("read", ["--data=f\udcfcr", "--config.data.path=f\udcfcr", "--prime=\udcfc.png"])
def test_what_is_read_may_have_any_name(read):
    cli._check_text(read)


@pytest.fixture
def homeless(monkeypatch):
    """As in a container whose user is a number that no table names."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def unknown(who):
        raise KeyError(who)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("pwd.getpwnam", unknown)


def test_no_home_directory(homeless, monkeypatch, tmp_path):
    assert storage.cache_folder() is None
    with pytest.raises(UserError, match="~/data: there is no home directory here"):
        storage.expanduser("~/data")
    assert storage.expanduser("~backup/x") == "~backup/x" and storage.expanduser("gs://~/x") == "gs://~/x"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert storage.cache_folder() == tmp_path / "dalle-jax"


def test_tars_are_read_without_a_home_directory(homeless, tmp_path):
    write_shard(tmp_path / "a.tar", [{"key": b"a", "png": b"x"}, {"key": b"b", "png": b"y"}])
    assert len(tar_index(str(tmp_path / "a.tar"))) == 2


def test_a_script_runs_without_a_home_directory():
    nobody = "import pwd; pwd.getpwuid = {}.__getitem__; from launch.cli import start; start(lambda: 0, alone=True)"
    bare = {name: value for name, value in environment().items()
            if name not in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR")}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", nobody], cwd=ROOT, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: compiled programs are not kept") and "set HOME or XDG_CACHE_HOME" in line
