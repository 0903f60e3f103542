"""launch/tpu_vm.sh: what it refuses, what it would run, and a whole life of a run on a stand-in for gcloud."""

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.starters import (
    ROOT,
    assert_golden,
    assert_refused,
    python_that_installs_nothing,
    run,
    script,
)

pytestmark = pytest.mark.entry

WHERE = ["--name=dalle", "--zone=us-central2-b"]
TPU = [*WHERE, "--accelerator=v5e-256"]
TRAIN = ["--", "python", "-m", "launch.train", "--config=configs/decoder_12b.py", "--workdir=gs://bucket/run"]


PROGRESS = """
import os, pathlib
saved = pathlib.Path(os.environ["GCLOUD_STANDIN"], "saved")
print("dalle-jax saved:", saved.read_text() if saved.exists() else "nothing")
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone of the starters alone, with one commit, whose progress is what a test writes down."""
    folder = tmp_path_factory.mktemp("clone")
    names = ["pyproject.toml", "constraints.txt",
             *(f"dalle_jax/{name}.py" for name in ("__init__", "errors", "moved_modules")),
             *(f"launch/{name}.py" for name in ("__init__", "run/__init__", "run/allocator", "cluster/__init__",
                                                "cluster/accelerators", "cluster/command_checks"))]  # fmt: skip
    for file in [*(ROOT / "launch").rglob("*.sh"), *(ROOT / name for name in names)]:
        target = folder / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    (folder / "launch/cluster/supervise.py").write_text(PROGRESS)
    (folder / ".gitignore").write_text("__pycache__/\n")
    who = {"GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z"}
    identity = ["-c", "user.name=A", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "All"]):
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, env=os.environ | who)
    return folder


def tpu_vm(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return run(["bash", "launch/tpu_vm.sh", *arguments], cwd=clone, **environment)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["runn"], ["'runn'", "run, create, setup"]),
        (["run", "--nam=x"], ["unknown option '--nam'", "--help"]),
        (["run", "--name"], ["--name=VALUE"]),
        (["run", "--spot=yes", *TPU], ["--spot takes no value"]),
        (["run", "more"], ["'more'", "after --"]),
        (["run", "--zone=us-central2-b"], ["--name is missing"]),
        (["run", "--name=Dalle", "--zone=us-central2-b"], ["--name=Dalle", "small letters"]),
        (["run", "--name=dalle", "--zone=us-central2"], ["--zone=us-central2", "us-central2-b"]),
        (["run", *WHERE, *TRAIN], ["--accelerator is missing"]),
        (["create", *WHERE, "--accelerator=v5-256"], ["'v5-256'", "did you mean", "v5e-N"]),
        (["create", *WHERE, "--accelerator=v4-24"], ["no slice v4-24", "8, 16, 32"]),
        (["create", *TPU, "--slices=two"], ["--slices=two", "whole number"]),
        (["create", *TPU, "--slices=0"], ["--slices=0"]),
        (["create", *TPU, "--spot", "--reserved"], ["exclude each other"]),
        (["create", *TPU, "--poll=soon"], ["--poll=soon"]),
        (["create", *TPU, "--project=My Project"], ["--project=My Project"]),
        (["create", *TPU, "--runtime-version=v2 alpha"], ["--runtime-version=v2 alpha", "v2-alpha-tpuv5-lite"]),
        (["create", *TPU, "--runtime-version=--spot"], ["--runtime-version=--spot"]),
        (["create", *TPU, "--network=a b"], ["--network=a b", "global/networks"]),
        (["create", *TPU, "--subnetwork=-s"], ["--subnetwork=-s", "subnetworks"]),
        (["create", *TPU, "--service-account=me"], ["--service-account=me", "iam.gserviceaccount.com"]),
        (["run", *TPU], ["no command given"]),
        (["run", *TPU, "--", "--config=x"], ["begins with '--config=x'"]),
        (["run", *TPU, "--", "python", "--workdir=runs/x"], ["--workdir=runs/x", "gs://"]),
        (["start", *WHERE, "--", "python", "--out", "runs/x"], ["--out=runs/x", "gs://"]),
        (["run", *TPU, "--slices=2", *TRAIN], ["--slices=2", "add --config.mesh.slices=2"]),
        (["start", *WHERE, *TRAIN, "--config.mesh.slices", "2"], ["--slices=1", "--config.mesh.slices=2"]),
        (["run", *TPU, "--commit=nowhere", *TRAIN], ["--commit=nowhere"]),
        (["logs", *WHERE, "--slice=1"], ["--slice=1", "--slices=1"]),
        (["logs", *WHERE, "--slice=08", "--slices=20"], ["--slice=08", "whole number"]),
        (["logs", *WHERE, "--worker=010"], ["--worker=010", "whole number"]),
        (["run", *TPU, "--restarts=08", *TRAIN], ["--restarts=08", "whole number"]),
    ],
)
def test_refusals(clone, arguments, parts):
    action, *rest = arguments
    assert_refused(tpu_vm(clone, action, "--dry-run", *rest), *parts)  # what is not refused rents nothing


def test_changed_files_would_not_reach_the_workers(clone):
    file = clone / "pyproject.toml"
    before = file.read_text()
    try:
        file.write_text(before + "\n")
        assert_refused(tpu_vm(clone, "run", *TPU, "--dry-run", *TRAIN), "differ from the last commit", "--commit=")
        assert tpu_vm(clone, "create", *TPU, "--dry-run").returncode == 0
    finally:
        file.write_text(before)


def test_without_gcloud(clone, tmp_path):
    for name in ("bash", "dirname", "mktemp", "rm"):
        (tmp_path / name).symlink_to(shutil.which(name))
    assert_refused(tpu_vm(clone, "status", *WHERE, PATH=str(tmp_path)), "gcloud is not here", "gcloud auth login")


def test_an_old_system_python_is_passed_over(clone, tmp_path):
    """RHEL 9 and macOS have 3.9 as python3, which cannot read the starters' modules."""
    script(tmp_path / "python3", "#!/bin/sh\nexit 1\n")
    python_that_installs_nothing(tmp_path / "python3.13", tmp_path / "pip")
    start = ["start", *WHERE, "--dry-run", "--", "python", "--out=runs/x"]
    path, none = f"{tmp_path}:{os.environ['PATH']}", str(tmp_path / "no environment")
    assert_refused(tpu_vm(clone, *start, PATH=path, DALLE_JAX_VENV=none), "--out=runs/x", "gs://")
    assert tpu_vm(clone, "create", *TPU, "--dry-run", PATH=path, DALLE_JAX_VENV=none).returncode == 0
    path = str(tmp_path)
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name))
    (tmp_path / "python3.13").unlink()
    assert_refused(tpu_vm(clone, *start, PATH=path, DALLE_JAX_VENV=none), "Python 3.11 or newer is needed")


def test_help(clone):
    for arguments in ([], ["--help"], ["run", "--help"]):
        done = tpu_vm(clone, *arguments)
        assert done.returncode == 0 and done.stderr == ""
        assert max(map(len, done.stdout.splitlines())) <= 120
    options = re.search(r'parse_options "([^"]*)"', (ROOT / "launch/tpu_vm.sh").read_text())[1]
    missing = [name for name in re.findall(r"[a-z-]+", options) if f"--{name}" not in done.stdout]
    assert options and not missing


PROMPT = '--prompt=a red  circle\'s "edge", $5\nand `more`'


def test_dry_run(clone, tmp_path):
    """What every sub-command would run; a prompt comes through as it is."""
    pod = [*TPU, "--slices=2", "--spot", "--project=my-project", "--service-account=me@x.iam.gserviceaccount.com"]
    generate = ["--", "python", "-m", "launch.generate", "--workdir=gs://bucket/run", PROMPT]
    said = []
    for arguments in (
        ["run", *pod, "--delete-at-end", *TRAIN, "--config.mesh.slices=2"],
        ["create", *TPU, "--runtime-version=mine", "--reserved", "--network=n", "--subnetwork=s", "--internal-ips"],
        ["setup", *WHERE],
        ["start", *WHERE, "--internal-ips", *generate],
        ["status", *WHERE],
        ["logs", *WHERE, "--slices=2", "--slice=1", "--worker=3"],
        ["stop", *WHERE, "--grace=600"],
        ["delete", *WHERE],
    ):
        done = tpu_vm(clone, *arguments, "--dry-run") if "--" not in arguments else tpu_vm(
            clone, arguments[0], "--dry-run", *arguments[1:]
        )  # fmt: skip
        assert done.returncode == 0, done
        said.append(f"== {arguments[0]}\n{done.stdout}")
    text = re.sub(r"(clone of commit )\w{40}", r"\1COMMIT", "\n".join(said))
    assert_golden("tpu_vm.dry_run.txt", text)
    # Read back twice, by the shell here and by the one on the worker.
    started = shlex.split(said[3])[2:]
    remote = next(word for word in started if word.startswith("--command=")).removeprefix("--command=")
    assert shlex.split(remote)[-1] == PROMPT


COUNT = """
# Attempt 1 runs until its machine is taken away, attempt 2 fails, attempt 3 waits for SIGTERM, attempt 4 finishes.
echo "$1" >"$HOME/begun"
attempts="$GCLOUD_STANDIN/attempts-$(basename "$(dirname "$HOME")")-$(basename "$HOME")"
echo x >>"$attempts"
echo "attempt $(wc -l <"$attempts") of $1, stopped with $DALLE_JAX_PREEMPTED_CODE"
case "$(wc -l <"$attempts")" in
  1) sleep 600 ;;
  2) exit 1 ;;
  3) trap 'exit $DALLE_JAX_PREEMPTED_CODE' TERM; while :; do sleep 0.1; done ;;
esac
"""


HOSTNAME = """#!/bin/sh
echo "t1v-n-$(basename "$(dirname "$HOME")")-w-$(basename "$HOME")"
"""  # as Google calls a TPU's machines


class Pod:
    """The stand-in and what it plays on."""

    def __init__(self, clone: Path, folder: Path, program: str, slices: int):
        self._clone, self.folder, self._slices = clone, folder, slices
        standin = f"exec {sys.executable} {ROOT}/tests/launch/gcloud_standin.py"
        script(folder / "bin/gcloud", f'#!/bin/sh\n{standin} "$@"\n')
        script(folder / "bin/hostname", HOSTNAME)
        python = python_that_installs_nothing(folder / "bin/python3.13", folder / "pip")
        self._environment = {
            "GCLOUD_STANDIN": str(folder),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHON": str(python),
        }
        self.transcripts: list[Path] = []
        self.program = script(folder / "count.sh", program)

    def start(self, action: str, *arguments: str) -> subprocess.Popen:
        self.transcripts.append(self.folder / f"transcript-{len(self.transcripts)}")
        self.transcripts[-1].write_text("")
        command = ["bash", "launch/tpu_vm.sh", action, *WHERE, f"--slices={self._slices}", "--poll=0.2", *arguments]
        environment = os.environ | self._environment | {"GCLOUD_TRANSCRIPT": str(self.transcripts[-1])}
        return subprocess.Popen(
            command, cwd=self._clone, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def end(self, process: subprocess.Popen, action: str, code: int) -> str:
        """What it said, after it has ended with that code."""
        transcript = self.transcripts[-1]
        try:
            said = process.communicate(timeout=400)[0]
        except subprocess.TimeoutExpired:
            raise AssertionError(self.said(process)) from None
        assert process.returncode == code, said
        transcript.write_text(f"## {action}\n{transcript.read_text()}# said, and ended with code {code}:\n{said}")
        return said

    def said(self, process: subprocess.Popen) -> str:
        """What a script has said that does not do what it should; it goes no further."""
        process.kill()
        return process.communicate()[0]

    def __call__(self, action: str, *arguments: str, code: int = 0) -> str:
        with self.start(action, *arguments) as process:
            return self.end(process, action, code)

    def is_there(self, worker: str) -> None:
        """The TPU is active from the start; `worker` is the script that answers on each of its workers."""
        nodes = [f"dalle-{i}" for i in range(self._slices)] if self._slices > 1 else ["dalle"]
        state = {"name": "dalle", "state": "ACTIVE", "nodes": nodes}
        (self.folder / "resource.json").write_text(json.dumps(state))
        for node, number in itertools.product(nodes, "01"):
            script(self.folder / "machines" / node / number / "dalle-jax/launch/cluster/tpu_worker.sh", worker)

    def asked(self, words: str) -> int:
        """How many commands of the last call have these words."""
        lines = [line for line in self.transcripts[-1].read_text().splitlines() if line.startswith("[")]
        return sum(words in " ".join(json.loads(line)) for line in lines)

    def attempts(self) -> list[int]:
        return [len(path.read_text().split()) for path in sorted(self.folder.glob("attempts-*"))]


@pytest.fixture(autouse=True)
def _no_worker_stays(tmp_path):
    """A test that fails leaves the commands of its workers running, each in a session of its own."""
    yield
    for holder in tmp_path.rglob("dalle-jax-run/holder"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.killpg(int(holder.read_text()), signal.SIGKILL)


@pytest.mark.slow
def test_whole_life(clone, tmp_path):
    """Creation, set-up, preemption, crash, stop, going on, end, deletion: what gcloud is asked and what is said."""
    pod = Pod(clone, tmp_path, COUNT, slices=2)
    command = ["--accelerator=v4-16", "--spot", "--", "bash", str(pod.program), "a red  circle's edge"]
    with pod.start("run", *command) as process:
        deadline = time.monotonic() + 500
        while pod.attempts() != [3, 3, 3, 3]:  # preempted once, crashed once
            assert process.poll() is None and time.monotonic() < deadline, pod.said(process)
            time.sleep(0.2)
        watched = pod.transcripts[-1]
        pod("stop", "--grace=20")
        pod.transcripts.append(watched)
        said = pod.end(process, "run", 75)
    assert "preempted" in said and "the run died; starting again" in said and "goes on with it" in said
    pod("status")
    log = (tmp_path / "machines/dalle-1/1/dalle-jax-run/log").read_text()
    assert [line for line in log.splitlines() if line.startswith("attempt")] == [
        f"attempt {i} of a red  circle's edge, stopped with 75" for i in (2, 3)
    ]
    assert "finished" in pod("run", *command)
    assert pod.attempts() == [4, 4, 4, 4]
    assert "finished" in pod("run", *command)  # finds it so, and starts nothing
    assert pod.attempts() == [4, 4, 4, 4]
    assert pod("start", "--", "sleep", "60") == ""
    assert "another command is running on dalle" in pod("run", *command, code=2)
    pod("delete")
    assert not (tmp_path / "machines").exists()
    assert set((tmp_path / "pip").read_text().splitlines()) == {
        "-m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[tpu,gcs]"
    }
    assert_golden("tpu_vm.transcript.txt", readable(pod, clone))


ENDS = """
# Attempts 1 and 4 wait for SIGTERM, the others fail, when both workers have begun. All but attempt 5 save something.
trap 'exit $DALLE_JAX_PREEMPTED_CODE' TERM
echo x >>"$GCLOUD_STANDIN/attempts-$(basename "$HOME")"
attempt="$(wc -l <"$GCLOUD_STANDIN/attempts-$(basename "$HOME")")"
while (($(cat "$GCLOUD_STANDIN"/attempts-* | wc -l) < 2 * attempt)); do sleep 0.1; done
((attempt == 5)) || echo "step $attempt" >"$GCLOUD_STANDIN/saved"
echo >"$HOME/begun"
while ((attempt == 1 || attempt == 4)); do sleep 0.1; done
exit 1
"""


@pytest.mark.slow
def test_told_to_stop(clone, tmp_path):
    """SIGTERM ahead of a preemption, and one that none follows; crashes count in a row without a new checkpoint."""
    pod = Pod(clone, tmp_path, ENDS, slices=1)
    (tmp_path / "warns").write_text("2")
    with pod.start("run", "--accelerator=v4-16", "--spot", "--restarts=1", "--", "bash", str(pod.program)) as process:
        deadline = time.monotonic() + 500
        saved, runs = tmp_path / "saved", []
        while len(runs) < 2 or not saved.exists() or saved.read_text() != "step 4\n":  # written when both have begun
            runs = list(tmp_path.glob("machines/*/*/dalle-jax-run/pid"))
            assert process.poll() is None and time.monotonic() < deadline, pod.said(process)
            time.sleep(0.2)
        for run in runs:
            os.kill(int(run.read_text()), signal.SIGTERM)
        said = pod.end(process, "run", 2)
    assert pod.attempts() == [5, 5]
    assert said.count("waiting whether its TPU is taken away") == 2 and said.count("preempted") == 1
    assert said.count("the run died; starting again (0 more times)") == 2
    assert "its TPU is still there; starting again (0 more times)" in said
    assert said.count("the run died, and --restarts is used up") == 1
    assert_golden("tpu_vm.told_to_stop.txt", readable(pod, clone))


def test_a_tpu_that_is_not_given_back_is_asked_for_again(clone, tmp_path):
    """A failure of the deletion after workers that do not answer is no end of the run."""
    pod = Pod(clone, tmp_path, "", slices=1)
    pod.is_there("exit 255")
    (tmp_path / "silent").write_text("")
    (tmp_path / "keeps").write_text("1")
    said = pod("run", "--accelerator=v4-16", "--restarts=1", "--poll=0.05", "--", "sleep", "1", code=2)
    assert "giving the TPU back; starting again (0 more times)" in said and "no answer" in said
    assert "error: giving the TPU back, and --restarts is used up\n" in said
    assert "finished" not in said


FINISHED = 'echo "$(hostname) dalle-jax state: exit 0"'


@pytest.mark.parametrize("refused", [0, 2, 9])
def test_delete_at_end(clone, tmp_path, refused):
    """What finished gives its TPU back, also where Google refuses at first; where it never does, that is said."""
    pod = Pod(clone, tmp_path, "", slices=2)
    pod.is_there(FINISHED)
    (tmp_path / "keeps").write_text(str(refused))
    arguments = ["--accelerator=v4-16", "--poll=0.05", "--delete-at-end", "--", "sleep", "1"]
    said = pod("run", *arguments, code=2 if refused == 9 else 0)
    assert said.count("the TPU was not given back") == min(refused, 5)
    assert pod.asked("queued-resources delete") == min(refused + 1, 5)
    assert (tmp_path / "machines").exists() == (refused == 9)
    command = "bash launch/tpu_vm.sh delete --name=dalle --zone=us-central2-b --slices=2"
    assert (f"its TPU may still be rented: {command} gives it back" in said) == (refused == 9)


MISTAKE = """
test "$1" = state || exit 0
mkdir -p "$HOME/seen"
state=running
case "$(hostname) $(ls "$HOME/seen" | wc -l)" in
  *"-w-1 1") state="exit 134" ;;
  "t1v-n-dalle-0-w-0 1") state="exit 75" ;;
  "t1v-n-dalle-1-w-0 1") state="exit 2" ;;
esac
touch "$HOME/seen/$(ls "$HOME/seen" | wc -l)"
echo "$(hostname) dalle-jax state: $state"
"""


def test_a_mistake_is_shown_where_it_was_made(clone, tmp_path):
    """The others ended because that worker did, and know nothing of the reason."""
    pod = Pod(clone, tmp_path, "", slices=2)
    pod.is_there(MISTAKE)
    said = pod("run", "--accelerator=v4-16", "--project=my-project", "--", "sleep", "1", code=2)
    assert pod.asked("tpu_worker.sh end 10") == 2  # those that wait for it would be in the way of the next run
    place = "--name=dalle --zone=us-central2-b --project=my-project --slices=2"
    log = f"bash launch/tpu_vm.sh logs {place} --slice=1 --worker=0"
    assert f"a mistake that starting again does not mend: {log} shows it" in said


def test_how_a_run_ended_is_written_down(tmp_path):
    """Whether only the command gets SIGTERM, or everything on its machine; and whether a person stopped it."""
    (tmp_path / "dalle-jax").mkdir()
    command = ["bash", "-c", "trap 'exit $DALLE_JAX_PREEMPTED_CODE' TERM; touch begun; while :; do sleep 0.1; done"]

    def worker(*arguments: str) -> str:
        return run(["bash", "launch/cluster/tpu_worker.sh", *arguments], HOME=str(tmp_path)).stdout.strip()

    def wait_for(true) -> None:
        deadline = time.monotonic() + 60
        while not true():
            assert time.monotonic() < deadline, worker("state")
            time.sleep(0.1)

    begun = tmp_path / "dalle-jax/begun"
    for stop in (
        *["SIGTERM to all"] * 6,
        "end",
        "stop",
    ):  # to all: which process hears of what first is not always the same
        worker("start", *command)
        wait_for(begun.exists)
        begun.unlink()
        assert worker("state", *command).endswith(" state: running")
        if stop == "SIGTERM to all":
            os.killpg(int((tmp_path / "dalle-jax-run/holder").read_text()), signal.SIGTERM)
            wait_for((tmp_path / "dalle-jax-run/exit").exists)
        else:
            worker(stop, "60")
        end = " state: exit 75 after stop" if stop == "stop" else " state: exit 75"
        assert worker("state", *command).endswith(end), stop


def readable(pod: Pod, clone: Path) -> str:
    """The transcripts in an order and with names that are those of every run."""
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=clone, capture_output=True, text=True)
    names = {
        re.escape(str(pod.folder)): "TMP",
        r"t1v-n-dalle(-\d)?-w-\d dalle-jax": "HOST dalle-jax",
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ": "TIME",
        r"\S*/tmp\.\w+/": "SCRATCH/",
        r"with Python 3\S+": "with Python",
        commit.stdout.strip(): "COMMIT",
    }
    shown: list[str] = []
    for transcript in dict.fromkeys(pod.transcripts):
        lines = [
            f"gcloud {shlex.join(json.loads(line))}" if line.startswith("[") else line
            for line in transcript.read_text().splitlines()
        ]
        for pattern, name in names.items():
            lines = [re.sub(pattern, name, line) for line in lines]
        # Slices are spoken to and set up at the same time, workers answer in any order.
        anyhow = r"^(making|installing).*|dalle-\d|^.*( scp |rm -rf dalle-jax.new).*"
        for _, group in itertools.groupby(lines, key=lambda line: re.sub(anyhow, "", line)):
            shown += sorted(set(group))
            # A look is describe and the state of every slice, repeated as often as there is time for.
            for look in (2, 3):
                while len(shown) >= 2 * look and shown[-look:] == shown[-2 * look : -look]:
                    del shown[-look:]
    return "\n".join(shown) + "\n"
