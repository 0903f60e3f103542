"""Groups of processes, their supervisor, and the command line around both; the commands here are shells."""

import os
import signal
import sys
import threading
import time

import pytest

from dalle_jax.errors import PREEMPTED, UserError
from launch.cluster import local_group
from launch.cluster.local_group import Group, forwarded
from launch.cluster.supervise import Policy, progress_of, supervise
from launch.cluster.supervise import main as print_progress


def shell(script: str, count: int = 2, **options) -> Group:
    return Group(["sh", "-c", script], count, **options)


# Groups


def test_each_process_is_told_what_it_is(capfd):
    group = shell('echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES, $JAX_NUM_CPU_DEVICES $JAX_PLATFORMS"; echo oh >&2',
                  devices=3, environment={"JAX_PLATFORMS": "cpu"})  # fmt: skip
    assert group.wait() == 0
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["[0] 0 of 2, 3 cpu", "[1] 1 of 2, 3 cpu"]
    assert sorted(err.splitlines()) == ["[0] oh", "[1] oh"]


def test_all_meet_at_one_address():
    heard = []
    assert shell('echo "$JAX_COORDINATOR_ADDRESS"', 3, listen=lambda i, line: heard.append(line)).wait() == 0
    assert len(heard) == 3 and len(set(heard)) == 1 and heard[0].startswith("127.0.0.1:")


def test_alone_nothing_is_said_of_others(monkeypatch):
    names = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    heard = []
    Group(["env"], listen=lambda i, line: heard.append(line)).wait()
    assert heard and not [line for line in heard if line.startswith(names)]


def test_python_is_this_python():
    heard = []
    Group(["python", "-c", "import sys; print(sys.executable)"], listen=lambda i, line: heard.append(line)).wait()
    assert heard == [sys.executable]


@pytest.mark.parametrize(
    ("script", "code", "how"),
    [
        ("exit $((JAX_PROCESS_ID * 7))", 7, "process 1 ended with 7"),
        ("test $JAX_PROCESS_ID = 1 && kill -KILL $$; exit 0", 137, "process 1 was ended by SIGKILL"),
        ("exit 0", 0, "all processes ended with 0"),
    ],
)
def test_first_failure_is_the_exit_code(script, code, how):
    group = shell(script)
    assert group.wait(grace=5) == code
    assert group.describe() == how


def test_others_are_ended_a_while_after_the_first_failure():
    start = time.monotonic()
    group = shell("test $JAX_PROCESS_ID = 0 && exit 3; exec sleep 60")
    assert group.wait(grace=0.3) == 3
    assert time.monotonic() - start < 10
    assert [process.returncode for process in group.processes] == [3, -signal.SIGKILL]


def test_workers_of_a_dead_process_are_ended_too():
    heard = []
    group = shell("sleep 60 & echo $!; kill -KILL $$", 1, listen=lambda i, line: heard.append(line))
    assert group.wait() == 137
    group.end()
    with pytest.raises(ProcessLookupError):
        for _ in range(500):
            os.kill(int(heard[0]), 0)
            time.sleep(0.01)


def test_signals_are_passed_on_and_the_second_kills():
    heard = []
    script = 'trap "echo caught" TERM; echo ready; for i in 1 2 3 4 5 6; do sleep 10 & wait $!; done'
    group = shell(script, listen=lambda i, line: heard.append(line))

    def send():
        for number in (1, 2):
            while heard.count("ready" if number == 1 else "caught") < 2:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    before = signal.getsignal(signal.SIGTERM)
    with forwarded(group) as received:
        sender.start()
        assert group.wait() == 137
    sender.join()
    assert received == [signal.SIGTERM] * 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_systems_without_prctl(monkeypatch):
    monkeypatch.setattr(local_group, "_libc", object())
    assert Group(["true"], count=2, listen=lambda index, line: None).wait() == 0


def test_unknown_program_is_one_line():
    with pytest.raises(UserError, match="cannot start 'no-such-program'"):
        Group(["no-such-program"], 2)


# The supervisor


class Run:
    """Ends with the given codes, one after another, and makes progress where told."""

    def __init__(self, *ends: tuple[int, bool]):
        self.ends, self.starts, self.saved = list(ends), 0, 0

    def __call__(self):
        self.starts += 1
        code, progress = self.ends.pop(0)
        self.saved += progress
        return code, "it ended"

    def supervised(self, restarts=2, **options):
        return supervise(self, lambda: self.saved, Policy(restarts, backoff=0.0), **options)


def test_starts_again_until_done():
    run = Run((137, True), (134, True), (76, True), (1, True), (PREEMPTED, False), (0, True))
    assert run.supervised() == 0
    assert run.starts == 6


def test_gives_up_where_nothing_is_gained(capsys):
    run = Run((137, True), (1, False), (1, False), (1, False))
    assert run.supervised() == 1
    assert run.starts == 3
    assert "supervisor: it ended: giving up, 2 starts in a row brought no new checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("code", [0, 2, 130])
def test_what_would_repeat_is_not_started_again(code):
    run = Run((code, False))
    assert run.supervised() == code


def test_without_restarts_it_runs_once():
    assert Run((9, True)).supervised(restarts=0) == 9


def test_nothing_is_started_after_a_stop():
    stopped = threading.Event()
    stopped.set()
    assert Run((PREEMPTED, True)).supervised(stopped=stopped) == PREEMPTED


def test_backoff_grows_without_progress(capsys):
    run = Run((1, False), (1, False), (1, True), (1, False), (0, True))
    supervise(run, lambda: run.saved, Policy(restarts=3, backoff=0.001))
    waits = [line.split(" in ")[1].split(" s;")[0] for line in capsys.readouterr().err.splitlines()]
    assert waits == ["0.002", "0.004", "0.001", "0.002"]


def test_progress_of_a_command(tmp_path, monkeypatch, capsys):
    for stage, steps in (("decoder", (20, 40)), ("codec", (7,)), ("objective/rate_1", (3,))):
        for step in steps:
            (tmp_path / stage / "checkpoints" / str(step)).mkdir(parents=True)
    (tmp_path / "decoder" / "checkpoints" / "60.orbax-checkpoint-tmp").mkdir()
    expected = "codec 7, decoder 40, objective/rate_1 3"
    assert progress_of(["python", "-m", "launch.train", f"--workdir={tmp_path}"]) == expected
    assert progress_of(["train", "--workdir", str(tmp_path), "--dry_run"]) == expected
    assert progress_of(["train", f"--workdir={tmp_path / 'new'}"]) == ""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "chunk.npz").touch()
    drawing = ["generate", f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}"]
    assert progress_of(drawing) == "1 files", "the work directory is what it reads"
    assert progress_of(["something"]) == ""
    for command, said in (([f"--workdir={tmp_path}"], expected), (["something"], "nothing")):
        monkeypatch.setattr(sys, "argv", ["supervise", "train", *command])
        print_progress()
        assert capsys.readouterr().out == f"dalle-jax saved: {said}\n"


# The command line


@pytest.mark.entry
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["no command given", "-- python -m launch.train"]),
        (["--processes=0", "--", "true"], ["--processes=0"]),
        (["--devices=none", "--", "true"], ["devices=none"]),
        (["--restart=often", "--", "true"], ["restart=often", "whole number"]),
        (["--process=2", "--", "true"], ["process", "processes"]),
        (["--", "no-such-program"], ["cannot start 'no-such-program'"]),
    ],
)
def test_wrong_arguments_are_one_line(scripts, arguments, parts):
    ended = scripts("local", *arguments)
    assert ended.code == 2, ended
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ") and all(part in line for part in parts), line


def test_progress_that_cannot_be_read_ends_no_run(capfd):
    looks = iter(["codec 1", OSError("the store is away"), "codec 2"])

    def progress():
        found = next(looks)
        if isinstance(found, OSError):
            raise found
        return found

    codes = iter([(9, "killed"), (9, "killed"), (0, "ended")])
    assert supervise(lambda: next(codes), progress, Policy(restarts=2, backoff=0.0)) == 0
    assert "cannot see how far the run has come: the store is away" in capfd.readouterr().err


@pytest.mark.entry
def test_supervised_command(scripts, tmp_path):
    script = f"mkdir -p {tmp_path}/out; f={tmp_path}/out/$$; touch $f; test $(ls {tmp_path}/out | wc -l) -ge 3"
    ended = scripts("local", "--restart", "--backoff=0.01", "--", "sh", "-c", script, "sh", f"--out={tmp_path}/out")
    assert ended.code == 0, ended
    assert ended.err.count("starting again") == 2 and "saved so far: 2 files" in ended.err
    ended = scripts("local", "--restart=1", "--backoff=0.01", "--", "sh", "-c", "exit 5")
    assert ended.code == 5 and "giving up" in ended.err
