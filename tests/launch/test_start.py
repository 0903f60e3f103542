"""launch.cli.start: which scripts join the processes of a run, and what they compute on."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from launch import cli
from tests.launch.starters import ROOT, assert_refused, run

pytestmark = pytest.mark.entry

OF_MANY = {"train", "generate", "evaluate", "encode", "efficiency"}
"""As docs/many-processes.md has them; the others are one process, wherever they are started."""


def test_which_scripts_join():
    calls = {path.stem: re.findall(r"^    start\((main.*)\)$", path.read_text(), re.MULTILINE)
             for path in (ROOT / "launch").glob("*.py")}  # fmt: skip
    started = {name: arguments for name, (arguments,) in ((n, c) for n, c in calls.items() if c)}
    assert {name for name, arguments in started.items() if "alone=True" not in arguments} == OF_MANY
    assert {"plan", "tokenizer", "emoji", "bench", "chaos"} == set(started) - OF_MANY


def script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return run([sys.executable, "-m", f"launch.{name}", *arguments], PYTHONPATH=str(ROOT), **environment)


def test_compiled_programs_lie_in_the_users_cache(monkeypatch):
    """Beside the indices of tars, so that one volume keeps both."""
    monkeypatch.setattr(jax.config, "update", lambda name, value: kept.append((name, value)))
    kept: list[tuple[str, str]] = []
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    cli._use_compilation_cache()
    monkeypatch.delenv("XDG_CACHE_HOME")
    cli._use_compilation_cache()
    home = str(Path.home() / ".cache/dalle-jax/programs")
    assert kept == [("jax_compilation_cache_dir", path) for path in ("/cache/dalle-jax/programs", home)]


def test_one_process_waits_for_no_other(tmp_path):
    """On a worker of a pod, where the other workers do not start it."""
    (tmp_path / "captions.txt").write_text("a red dog\na green dog\n\nthe red hill\n" * 5)
    others = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    arguments = [f"--data={tmp_path / 'captions.txt'}", "--vocab_size=24", f"--out={tmp_path / 'tokenizer.model'}"]
    done = script("tokenizer", *arguments, **others, DALLE_JAX_JOIN_SECONDS="1")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_a_gpu_that_is_asked_for_and_missing_is_refused():
    """Of itself JAX computes on CPUs then, and says nothing."""
    train = ["--config=configs/quickstart.py:tiny", "--workdir=w", "--dry_run"]
    done = script("train", *train, JAX_PLATFORMS="cuda,cpu")
    assert_refused(done, "JAX_PLATFORMS=cuda,cpu", "no GPU here", "--gpus=all", "JAX_PLATFORMS=cpu")
    helped = script("train", "--help", JAX_PLATFORMS="cuda,cpu")
    assert "--workdir" in helped.stdout and helped.stderr == ""
