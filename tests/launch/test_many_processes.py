"""Real processes: what they compute together is what one computes alone, and they end together."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.processes import HEARTBEAT
from launch.cluster.local_group import Group
from tests.launch import many
from tests.launch.conftest import environment

pytestmark = pytest.mark.entry

ROOT = Path(__file__).parents[2]


def together(count: int, devices: int, *arguments: str) -> tuple[int, list[str]]:
    """Runs `many.py` as several processes; returns the exit code and all lines."""
    lines: list[str] = []
    environment = {HEARTBEAT: "30", "PYTHONPATH": str(ROOT), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    command = ["python", "-m", "tests.launch.many", *arguments]
    group = Group(command, count, devices, environment, lambda i, line: lines.append(f"[{i}] {line}"))
    return group.wait(), lines


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    """In this process, on its eight devices."""
    assert jax.device_count() == 8
    return many.facts(tmp_path_factory.mktemp("alone"), MeshConfig())


@pytest.mark.parametrize(("count", "devices"), [(2, 4), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_several_processes_are_one(alone, tmp_path, count, devices):
    code, lines = together(count, devices, str(tmp_path / "run"))
    assert code == 0, lines
    (found,) = [line.split("FACTS ", 1)[1] for line in lines if "FACTS" in line]
    found = json.loads(found)
    for name in ("batches", "dealt", "whole"):
        assert found[name] == alone["batches"], f"{name}: bit for bit, however the devices lie"
    for name in ("encoded", "tokens", "indices"):
        assert found[name] == alone[name], name
    for name in ("losses", "scores"):
        np.testing.assert_allclose(found[name], alone[name], rtol=1e-5, err_msg=name)
    # One writer: each row once, each image once.
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    assert [path.name for path in (tmp_path / "run" / "previews").iterdir()] == ["step_0000002.png"]


def test_processes_that_disagree_are_named():
    code, lines = together(2, 1, "disagree")
    assert code == 2, lines
    errors = [line for line in lines if "error: " in line]
    assert len(errors) == 2 and not [line for line in lines if "Traceback" in line]
    assert "process 1 (" in errors[0] and "has another config than process 0 (" in errors[0]
    assert "optimizer.learning_rate (0.002 there, 0.001 here)" in errors[0]


def test_whatever_decides_a_run_is_compared_and_the_one_that_differs_named(tmp_path):
    code, lines = together(2, 1, "differ", str(tmp_path))
    assert code == 0, lines
    for name, part in {
        "data": "process 1 (.*) has another data set than process 0",
        "tokenizer": "process 1 (.*) has another tokenizer than process 0",
        "code": "process 1 (.*) has another code than process 0",
        "disk": "process 1 does not see .*run_3_of_",
        "nothing": "agreed",
    }.items():
        said = [line.split(f"SAID {name} ")[1] for line in lines if f"SAID {name} " in line]
        assert len(said) == 2 and all(re.match(part, line) for line in said), (name, said)


# The scripts


def script(name: str, *arguments: object, processes: int = 1, devices: int = 2) -> str:
    """Runs a script of launch/ as several processes of this machine; returns its output."""
    several = ["-m", "launch.local", f"--processes={processes}", f"--devices={devices}", "--"]
    command = [sys.executable, *several, "python", "-m", f"launch.{name}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_scripts_as_two_processes(scripts, tmp_path):
    run = tmp_path / "run"
    said = script("train", "--config=configs/quickstart.py:tiny", scripts.data, f"--workdir={run}", processes=2)
    for stage in ("codec", "decoder", "clip"):
        assert said.count(f"{stage} 2/2  loss") == 1, said
    drawn = {}
    for processes in (1, 2):
        out = tmp_path / f"drawn_{processes}"
        arguments = [f"--workdir={run}", "--prompt=a red circle", "--num_samples=6", "--keep=3", f"--out={out}"]
        said = script("generate", *arguments, processes=processes, devices=4 // processes)
        assert said.count("3 of 6 kept") == 1
        drawn[processes] = json.loads((out / "manifest.json").read_text())["pictures"]
    for one, two in zip(drawn[1], drawn[2], strict=True):
        assert (one["candidate"], one["tokens"]) == (two["candidate"], two["tokens"])
        assert one["score"] == pytest.approx(two["score"], rel=1e-4)
    said = script("evaluate", f"--model={run}", "--suite=retrieval", "--data=run", f"--out={tmp_path}", processes=2)
    assert said.count("text_recall_at_5") == 1 and (tmp_path / "retrieval.json").exists()
    shards = {}
    for processes in (1, 2):
        out = tmp_path / f"encoded_{processes}"
        arguments = ["--config=configs/quickstart.py:tiny", scripts.data, f"--workdir={run}", f"--out={out}"]
        said = script("encode", *arguments, "--shard_size=64", processes=processes, devices=2)
        assert said.count("train: 256 records of 1 crops in 4 shards") == 1
        shards[processes] = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*.array_record")}
    assert shards[1] == shards[2] and len(shards[1]) == 5


@pytest.mark.slow
def test_classification_as_two_processes(photographs, tmp_path):
    run = tmp_path / "run"
    short = [f"--config.clip.train.{change}" for change in ("num_steps=2", "batch_size=8", "eval_batches=1")]
    data = ["--config.data.source=webdataset", f"--config.data.path={photographs}"]
    script("train", "--config=configs/clip_cifar10.py", *data, *short, f"--workdir={run}")
    found = {}
    for processes in (1, 2):
        out = tmp_path / f"of_{processes}"
        arguments = ["--suite=zero_shot,linear_probe", "--data=run", "--prompts=CIFAR10", f"--out={out}"]
        script("evaluate", f"--model={run}", *arguments, processes=processes, devices=2 // processes)
        found[processes] = [json.loads((out / f"{name}.json").read_text()) for name in ("zero_shot", "linear_probe")]
    assert found[1] == found[2]


@pytest.mark.slow
def test_the_efficiency_run_as_two_processes(photographs, tmp_path):
    curves = {}
    for processes in (1, 2):
        out = tmp_path / f"of_{processes}"
        arguments = ["--config.data.source=webdataset", f"--config.data.path={photographs}", "--config.seeds=(0,)"]
        said = script("efficiency", "--config=configs/efficiency.py:tiny", *arguments, f"--workdir={out}",
                      processes=processes, devices=2 // processes)  # fmt: skip
        assert said.count("points: ") == 1
        curves[processes] = [run["curve"] for run in json.loads((out / "efficiency.json").read_text())["runs"]]
        rows = (out / "caption_language_model" / "rate_0.001_seed_0" / "metrics.jsonl").read_text().splitlines()
        curves[processes].append([json.loads(row)["loss"] for row in rows if '"loss"' in row])
    assert curves[1][:3] == curves[2][:3]
    np.testing.assert_allclose(curves[2][3], curves[1][3], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("preset", "kills"), [(":short", 5), ("", 20)])
def test_chaos(tmp_path, preset, kills):
    command = [sys.executable, "-m", "launch.chaos", f"--config=configs/chaos.py{preset}", f"--kills={kills}"]
    done = subprocess.run([*command, f"--out={tmp_path / 'chaos'}"], cwd=ROOT, env=environment(), capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" yes") >= kills and "bit for bit" in done.stdout
