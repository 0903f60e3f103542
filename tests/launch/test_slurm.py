"""launch/slurm.sbatch: what it refuses, what it would submit, and its work on a Slurm that the test starts."""

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch import slurm_cluster
from tests.launch.slurm_cluster import SlurmCluster
from tests.launch.starters import ROOT, assert_golden, assert_refused, python_that_installs_nothing, run, script

pytestmark = pytest.mark.entry

TRAIN = ["--", "python", "-m", "launch.train", "--config=configs/decoder_1b.py", "--workdir=/shared/run"]


def slurm(*arguments: str, **environment: str):
    return run(["bash", "launch/slurm.sbatch", *arguments], **environment)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--node=2", *TRAIN], ["unknown option '--node'", "--help"]),
        (["--nodes", *TRAIN], ["--nodes=VALUE"]),
        (["--nodes=0", *TRAIN], ["--nodes=0", "above 0"]),
        (["--gpus=all", *TRAIN], ["--gpus=all", "0 for CPUs"]),
        (["--gpus=08", *TRAIN], ["--gpus=08", "0 for CPUs"]),
        (["--time=1day", *TRAIN], ["--time=1day", "D-HH:MM:SS"]),
        (["--grace=2m", *TRAIN], ["--grace=2m"]),
        (["--restarts=-1", *TRAIN], ["--restarts=-1"]),
        (["--restarts=08", *TRAIN], ["--restarts=08", "whole number"]),
        (["--mem=lots", *TRAIN], ["--mem=lots", "64G"]),
        (["--name=a b", *TRAIN], ["--name=a b"]),
        (["--partition=a b", *TRAIN], ["--partition=a b", "commas"]),
        (["--account=--x", *TRAIN], ["--account=--x", "without blanks"]),
        (["--qos=low;", *TRAIN], ["--qos=low;", "without blanks"]),
        (["--constraint=a100 h100", *TRAIN], ["--constraint=a100 h100", "a100|h100"]),
        (["--logs=100%", *TRAIN], ["--logs=100%", "a folder"]),
        (["--logs=a\\b", *TRAIN], ["--logs=a\\b", "a folder"]),
        (["--logs=my logs", *TRAIN], ["--logs=my logs", "a folder"]),
        (["--logs=-l", *TRAIN], ["--logs=-l", "a folder"]),
        (["--logs=~/l", *TRAIN], ["--logs=~/l", "a folder"]),
        (["--nodes=2"], ["no command given"]),
        (["--nodes=2", "--", "--config=x"], ["begins with '--config=x'"]),
        (["python", "-m", "launch.train"], ["what is 'python'", "after --"]),
    ],
)
def test_refusals(arguments, parts):
    assert_refused(slurm("--dry-run", *arguments), *parts)  # what is not refused installs and submits nothing


def test_without_slurm(tmp_path):
    for name in ("bash", "dirname", "basename"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    assert_refused(slurm(*TRAIN, PATH=str(tmp_path)), "sbatch is not here")


def test_help():
    done = slurm("--help")
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 120
    options = re.search(r'parse_options "([^"]*)"', (ROOT / "launch/slurm.sbatch").read_text())[1]
    missing = [name for name in re.findall(r"[a-z-]+", options) if f"--{name}" not in done.stdout]
    assert options and not missing


def test_dry_run():
    generate = ["--", "python", "-m", "launch.generate", "--workdir=/shared/run", "--prompt=a red  circle's edge"]
    said = []
    for arguments in (
        ["--nodes=4", "--gpus=8", "--time=2-00:00:00", "--grace=300", "--partition=a,b-2", "--account=b", *TRAIN],
        [
            "--cpus=16",
            "--mem=64G",
            "--qos=low",
            "--constraint=[rack1*2&rack2*4]",
            "--name=draw",
            "--restarts=0",
            "--logs=l",
            *generate,
        ],
    ):
        done = slurm("--dry-run", *arguments)
        assert done.returncode == 0 and done.stderr == "", done
        said.append(done.stdout)
    assert_golden("slurm.dry_run.txt", "\n".join(said))


SRUN = """#!/bin/bash
# Two tasks; where the second fails, the first is killed if it is still there, and that is what counts.
while [[ "$1" == -* ]]; do shift; done
SLURM_PROCID=0 "$@" & first=$!
SLURM_PROCID=1 "$@"; code=$?
((code == 0)) || kill "$first" 2>/dev/null; wait
exit $((code == 0 ? 0 : 143))
"""


def attempt(folder: Path, *command: str, **environment: str) -> tuple[subprocess.CompletedProcess, str, str]:
    """The script as Slurm starts it, without Slurm: how it ended, its log, and what was installed."""
    python = python_that_installs_nothing(folder / "venv/bin/python", folder / "pip")
    script(folder / "bin/srun", SRUN)
    copy = script(folder / "slurm_script", (ROOT / "launch/slurm.sbatch").read_text())
    slurms = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
    paths = {"DALLE_JAX_VENV": str(python.parents[1]), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    environment = os.environ | slurms | paths | {"DALLE_JAX_RESTARTS": "0"} | environment
    with open(folder / "job.log", "w") as log:
        done = subprocess.run(["bash", copy, *command], env=environment, stdout=log, stderr=log)
    assert not list(folder.glob(".codes*"))
    return done, (folder / "job.log").read_text(), (folder / "pip").read_text()


@pytest.mark.parametrize(
    ("variables", "installed"),
    [
        ({}, "-e ."),
        ({"SLURM_GPUS_PER_NODE": "0", "SLURM_GPUS": "gpu:0"}, "-e ."),
        ({"SLURM_GPUS_PER_NODE": "a100:8"}, "-e .[cuda]"),
        ({"SLURM_GPUS_ON_NODE": "8"}, "-e .[cuda]"),  # by sbatch --gres=gpu:8
        ({"SLURM_JOB_GPUS": "0"}, "-e .[cuda]"),
        ({"SLURM_GPUS": "16"}, "-e .[cuda]"),
        ({"SLURM_GPUS_PER_TASK": "1"}, "-e .[cuda]"),
    ],
)
def test_gpus_by_any_of_slurms_options(tmp_path, variables, installed):
    done, log, pip = attempt(tmp_path, "true", **variables)
    assert done.returncode == 0, log
    assert pip.splitlines()[-1].endswith(f" {installed}")


@pytest.mark.parametrize(
    ("codes", "code", "said"),
    [
        ("0 0", 0, "finished"),
        ("143 2", 2, "a mistake"),
        ("1 2", 2, "a mistake"),
        ("75 2", 2, "a mistake"),
        ("134 1", 1, "died with code 1,"),
        ("75 9", 9, "died with code 9,"),
        ("143 75", 75, "stopped (unknown job)"),
        ("137 134", 143, "died with code 143,"),
    ],
)
def test_the_code_of_the_task_that_ended_by_itself(tmp_path, codes, code, said):
    """Not of those that srun kills for it."""
    end = 'codes=($0); sleep "0.$((1 - SLURM_PROCID))"; exit "${codes[SLURM_PROCID]}"'
    done, log, _ = attempt(tmp_path, "bash", "-c", end, codes)
    assert done.returncode == code and f" {said}" in log, log


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[SlurmCluster]:
    if absent := slurm_cluster.missing():
        pytest.skip(
            f"Slurm is not installed (no {absent}); Debian: apt-get install slurmctld slurmd slurm-client munge"
        )
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


class Submitted:
    """A job that the script has submitted, or sbatch itself."""

    def __init__(self, cluster: SlurmCluster, folder: Path, *arguments: str, by_sbatch: bool = False):
        self.cluster, self._folder = cluster, folder
        python = python_that_installs_nothing(folder / "venv/bin/python", folder / "pip")
        with socket.socket() as free:  # the nodes' names are not names of the network
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        environment = cluster.environment | {
            "DALLE_JAX_VENV": str(python.parents[1]),
            "JAX_COORDINATOR_ADDRESS": coordinator,
            "JAX_PLATFORMS": "cpu",
        }
        command = ["bash", "launch/slurm.sbatch", f"--logs={folder}", *arguments]
        if by_sbatch:
            command = ["sbatch", f"--output={folder}/%x-%j.log", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.number = re.search(r"Submitted batch job (\d+)", done.stdout)[1]

    @property
    def log(self) -> str:
        path = self._folder / f"dalle-jax-{self.number}.log"
        return path.read_text() if path.exists() else ""

    @property
    def installed(self) -> str:
        return (self._folder / "pip").read_text()

    def wait_for(self, pattern: str, seconds: float = 300) -> None:
        self.cluster.wait(
            lambda: re.search(pattern, self.log, re.MULTILINE) is not None, f"'{pattern}' in {self.log}", seconds
        )

    def ended(self, seconds: float = 300) -> tuple[str, str]:
        """Its last state and exit code."""
        waiting = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}
        self.cluster.wait(lambda: self.cluster.job(self.number)["JobState"] not in waiting, f"end: {self.log}", seconds)
        job = self.cluster.job(self.number)
        return job["JobState"], job["ExitCode"]


JOIN = """
import json, os, sys
import jax
jax.distributed.initialize()
from jax.experimental.multihost_utils import process_allgather
ids = process_allgather(jax.numpy.int32(jax.process_index())).tolist()
print(json.dumps({"ids": ids, "node": os.environ["SLURMD_NODENAME"], "local": os.environ["SLURM_LOCALID"],
                  "gpus": os.environ["CUDA_VISIBLE_DEVICES"], "argument": sys.argv[1]}), flush=True)
"""


@pytest.mark.slow
def test_processes_join(cluster, tmp_path):
    """Two nodes of two GPUs: four processes that find each other, and see all GPUs of their node as JAX wants it."""
    (tmp_path / "join.py").write_text(JOIN)
    argument = 'a red  circle\'s "edge"'
    job = Submitted(cluster, tmp_path, "--nodes=2", "--gpus=2", "--", "python", str(tmp_path / "join.py"), argument)
    assert job.ended() == ("COMPLETED", "0:0"), job.log
    answers = [json.loads(line) for line in re.findall(r"^\d: (\{.*\})$", job.log, re.MULTILINE)]
    assert sorted((x["node"], x["local"], x["gpus"]) for x in answers) == [
        ("n1", "0", "0,1"), ("n1", "1", "0,1"), ("n2", "0", "0,1"), ("n2", "1", "0,1")
    ]  # fmt: skip
    assert all(x["ids"] == [0, 1, 2, 3] and x["argument"] == argument for x in answers)
    assert job.installed.count("-e .[cuda]") == 1  # at submission; the job finds it so
    assert re.search(r"== \S+ finished\n$", job.log)


@pytest.mark.slow
def test_crash_mistake_and_cancel(cluster, tmp_path):
    """A crash is started again, as often as something was saved since; a mistake is not, nor what a person cancels."""
    further = f"touch {tmp_path}/out/$(ls {tmp_path}/out | wc -l); test -e {tmp_path}/out/2 || exit 9"
    (tmp_path / "out").mkdir()
    saves_first = Submitted(
        cluster, tmp_path / "further", "--restarts=1", "--", "bash", "-c", further, "sh", f"--out={tmp_path}/out"
    )
    crash = f'echo "try on $SLURM_PROCID"; test -e {tmp_path}/was || {{ touch {tmp_path}/was; exit 9; }}'
    job = Submitted(cluster, tmp_path / "crash", "--restarts=1", "--", "bash", "-c", crash)
    mistake = Submitted(cluster, tmp_path / "mistake", "--", "bash", "-c", "echo error: no such config; exit 2")
    worn_out = Submitted(cluster, tmp_path / "worn_out", "--restarts=0", "--", "bash", "-c", "exit 9")
    assert job.ended() == ("COMPLETED", "0:0"), job.log
    assert job.log.count("try on 0") == 2 and "died with code 9; starting again in 5 s (0 more times)" in job.log
    assert saves_first.ended() == ("COMPLETED", "0:0"), saves_first.log
    assert saves_first.log.count("starting again in 5 s (0 more times)") == 2, "something was saved in between"
    assert mistake.ended() == ("FAILED", "2:0") and "starting again does not mend" in mistake.log
    assert worn_out.ended() == ("FAILED", "9:0") and "the restarts are used up" in worn_out.log
    saves = "trap 'echo saved; exit $DALLE_JAX_PREEMPTED_CODE' TERM; echo begun; while :; do sleep 0.2; done"
    cancelled = Submitted(cluster, tmp_path / "cancelled", "--", "bash", "-c", saves)
    cancelled.wait_for("^0: begun")
    cluster("scancel", cancelled.number)
    cancelled.wait_for("^0: saved")
    assert cancelled.ended()[0] == "CANCELLED"
    assert "back into the queue" not in cancelled.log


@pytest.mark.slow
def test_a_mistake_of_one_task(cluster, tmp_path):
    """Slurm ends the other tasks for it, and the job all the same with the mistake; a job of sbatch's own options."""
    one = "test $SLURM_PROCID = 1 || exec sleep 600; echo error: no such config; exit 2"
    job = Submitted(cluster, tmp_path / "two", "--nodes=2", "--gpus=2", "--", "bash", "-c", one)
    assert job.ended() == ("FAILED", "2:0"), job.log
    assert "1: error: no such config" in job.log and "starting again does not mend" in job.log
    options = ["--gres=gpu:2", "--ntasks-per-node=2", "launch/slurm.sbatch"]
    job = Submitted(cluster, tmp_path / "sbatch", *options, "bash", "-c", one, by_sbatch=True)
    assert job.ended() == ("FAILED", "2:0"), job.log
    assert "-e .[cuda]" in job.installed
    assert not list(tmp_path.glob("*/.codes*"))


@pytest.mark.slow
def test_time_limit(cluster, tmp_path):
    """What Slurm sends ahead of a time limit reaches the command, which comes back; the second attempt finishes."""
    program = tmp_path / "save.sh"
    program.write_text(
        f"test -e {tmp_path}/saved && echo went on && exit\n"
        f"trap 'touch {tmp_path}/saved; exit $DALLE_JAX_PREEMPTED_CODE' TERM\n"
        "while :; do sleep 0.2; done\n"
    )
    job = Submitted(cluster, tmp_path, "--time=2", "--grace=45", "--", "bash", str(program))
    assert job.ended() == ("COMPLETED", "0:0"), job.log
    assert re.search(
        r"saved; back into the queue\n(.*\n)*== \S+ job \d+, attempt 2 .*\n0: went on\n== \S+ finished\n$", job.log
    )


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_training_comes_back(cluster, tmp_path):
    """Training saves, comes back and goes on where Slurm's signal of the time limit comes; USR1 stops it for good."""
    steps = "--config.codec.train.num_steps=1000000"
    quiet = [f"--config.codec.train.{name}=0" for name in ("eval_every", "preview_every", "checkpoint_every")]
    train = ["python", "-m", "launch.train", "--config=configs/quickstart.py:tiny", "--stages=codec", steps, *quiet,
             f"--config.data.shapes.data_dir={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}"]  # fmt: skip
    job = Submitted(cluster, tmp_path, "--", *train)

    def steps_beyond(step: int) -> bool:
        return any(int(number) > step for number in re.findall(r"codec (\d+)/1000000", job.log))

    cluster.wait(lambda: steps_beyond(0), "first step", 500)
    cluster("scancel", "--batch", "--signal=TERM", job.number)
    job.wait_for("saved; back into the queue")
    saved = int(re.search(r"stopped after step (\d+) and saved", job.log)[1])
    job.wait_for("attempt 2 on")
    cluster.wait(lambda: steps_beyond(saved), f"step after {saved}", 500)
    cluster("scancel", "--batch", "--signal=USR1", job.number)
    assert job.ended() == ("FAILED", "75:0"), job.log
    first, second = map(int, re.findall(r"stopped after step (\d+) and saved", job.log))
    assert (first, second > first) == (saved, True)
    assert re.search(r"== \S+ stopped: the same command goes on with it\n$", job.log)
