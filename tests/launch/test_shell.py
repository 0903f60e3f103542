"""The scripts and the Dockerfile against their linters, and the starters' commands against the real gcloud."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dalle_jax.errors import PREEMPTED, PREEMPTED_VARIABLE
from tests.launch.starters import GOLDEN, ROOT

SCRIPTS = sorted(path.relative_to(ROOT) for path in [*ROOT.glob("launch/**/*.sh"), ROOT / "launch/slurm.sbatch"])


def program(name: str) -> str:
    """The program beside this interpreter, or on the path."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def lint(*command: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_shellcheck(script):
    done = lint(program("shellcheck"), "--external-sources", str(script))
    assert done.returncode == 0, done.stdout


def test_scripts_parse_in_bash():
    assert len(SCRIPTS) >= 7
    for path in SCRIPTS:
        done = lint("bash", "-n", str(path))
        assert done.returncode == 0, done.stderr
        assert max(map(len, (ROOT / path).read_text().splitlines())) <= 180


def test_starters_ask_for_the_code_of_a_run_that_was_stopped():
    for name, written in {
        "cluster/tpu_worker.sh": f"{PREEMPTED_VARIABLE}={PREEMPTED} ",
        "slurm.sbatch": f"{PREEMPTED_VARIABLE}={PREEMPTED} ",
        "cluster/jobset.yaml": f'{{name: {PREEMPTED_VARIABLE}, value: "{PREEMPTED}"}}',
    }.items():
        assert written in (ROOT / "launch" / name).read_text(), name


RESTARTS = """
restarts=3
source launch/cluster/restarts.sh
for answer in "warning
dalle-jax saved: nothing" "dalle-jax saved: nothing" "" "dalle-jax saved: decoder 20" "" "" ""; do
  hear_progress "$answer"
  take_restart && echo "$restarts_left left, after $(pause_before_restart) s" || echo used up
done
restarts=9 restarts_left=3
pause_before_restart
"""


def test_restarts_count_anew_after_progress():
    done = lint("bash", "-c", f"set -euo pipefail\n{RESTARTS}")
    assert done.returncode == 0 and done.stdout.splitlines() == [
        *["2 left, after 5 s", "1 left, after 10 s", "0 left, after 20 s"],
        *["2 left, after 5 s", "1 left, after 10 s", "0 left, after 20 s", "used up"],
        "60",
    ], done


@pytest.mark.slow
def test_dockerfile():
    done = lint(program("hadolint"), "launch/Dockerfile")
    assert done.returncode == 0, done.stdout


def test_dockerfile_finds_the_driver_and_takes_no_cpus_for_gpus():
    """Where GKE mounts it; the platform of the image comes first, and JAX ends where that fails."""
    last = (ROOT / "launch/Dockerfile").read_text().split("\nFROM ")[-1]
    before, _, environment = last.partition("\nENV ")
    assert "\nARG BACKEND=cpu\n" in before + "\n"  # else it is empty in this stage
    assert {"LD_LIBRARY_PATH=/usr/local/nvidia/lib64", "JAX_PLATFORMS=$BACKEND,cpu"} <= set(
        environment.split("\n")[0].split()
    )


def test_dockerfile_names_extras_that_exist():
    """Each of its back ends, and every file it copies before the code."""
    text = (ROOT / "launch/Dockerfile").read_text()
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert {"gcs", "k8s", "cuda", "tpu"} <= extras
    assert re.findall(r"extras=(\S+)", text) == ["gcs,k8s", "gcs,k8s,$BACKEND"]
    for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE):
        for file in line.split():
            assert (ROOT / file).exists(), file


@pytest.mark.slow
def test_gcloud_knows_the_commands(tmp_path):
    """Every command of the golden file, by the static check of the Google Cloud CLI (which speaks to nobody)."""
    gcloud = program("gcloud")
    text = (GOLDEN / "tpu_vm.dry_run.txt").read_text()
    # A prompt of two lines is no matter of gcloud's.
    commands = sorted({line for line in text.splitlines() if line.startswith("gcloud") and "$5" not in line})
    assert len(commands) > 8
    commands.append(commands[0].replace("--zone", "--zoen"))
    (tmp_path / "commands.json").write_text(json.dumps([{"command_string": line} for line in commands]))
    done = lint(gcloud, "meta", "lint-gcloud-commands", f"--commands-file={tmp_path / 'commands.json'}")
    if "Invalid choice" in done.stderr:
        pytest.skip("this gcloud has no static check")
    *right, wrong = json.loads(done.stdout)
    assert [answer["error_message"] for answer in right if not answer["success"]] == []
    assert len(right) == len(commands) - 1 and not wrong["success"]
