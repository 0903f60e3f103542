"""Which faults are drawn, what they do to files, and how a run under them is judged."""

import dataclasses
import sys
from pathlib import Path

import pytest

from dalle_jax.errors import PREEMPTED
from launch.cluster.local_group import Group
from launch.fault_injection.faults import Fault, Kind, Place, make_faults
from launch.fault_injection.runner import Record, Storm, table, too_few_in_saves

INTERVAL = 5

RUN = """
import pathlib, shutil, signal, sys, time
folder, asked = pathlib.Path(sys.argv[1]) / "decoder" / "checkpoints", []
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
folder.mkdir(parents=True, exist_ok=True)
for path in folder.glob("*-tmp"):
    shutil.rmtree(path)
steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
for step in [step for step in steps if (folder / str(step) / "data").read_bytes() != bytes(9)]:
    shutil.rmtree(folder / str(step))
    steps.remove(step)
for step in range(max(steps, default=0) + 1, 61):
    print(f"decoder {step}/60  loss 1.0", flush=True)
    time.sleep(0.01)
    stopping = bool(asked)
    if step % 5 == 0 or stopping:
        unfinished = folder / f"{step}.orbax-checkpoint-tmp"
        unfinished.mkdir()
        time.sleep(0.1)
        (unfinished / "data").write_bytes(bytes(9))
        unfinished.rename(folder / str(step))
    if stopping:
        sys.exit(75)
"""
"""Counts to sixty, saves as training does, and goes on from what it has saved and can read."""


@pytest.mark.parametrize("seed", range(5))
def test_twenty_faults_are_each_kind_twice_and_three_in_saves(seed):
    faults = make_faults(20, 2, INTERVAL, seed, frozenset())
    kinds = [fault.kind for fault in faults]
    assert len(faults) == 20 and all(kinds.count(kind) >= 2 for kind in Kind)
    assert sum(fault.during_save for fault in faults) == 3
    assert all(fault.process == 0 for fault in faults if fault.kind is Kind.COORDINATOR)
    assert faults == make_faults(20, 2, INTERVAL, seed, frozenset())


def test_few_faults_are_of_many_kinds_and_some_may_be_left_out():
    assert len({fault.kind for fault in make_faults(5, 2, INTERVAL, 0, frozenset())}) == 5
    assert Kind.DISK not in {fault.kind for fault in make_faults(30, 2, INTERVAL, 0, frozenset({Kind.DISK}))}


@pytest.fixture
def place(tmp_path) -> Place:
    (tmp_path / "0.tar").write_bytes(b"images")
    return Place(tmp_path, "decoder", [tmp_path / "0.tar"])


def storm(place: Place, *faults: Fault) -> Storm:
    (place.workdir.parent / "run.py").write_text(RUN)
    command = [sys.executable, str(place.workdir.parent / "run.py"), str(place.workdir)]
    return Storm(
        lambda listen: Group(command, listen=listen), place, faults, place.workdir.parent / "log", lambda text: None
    )


def test_a_run_that_keeps_its_promises_survives(place):
    done = storm(
        place,
        Fault(Kind.KILL, after=3, process=0, during_save=True),
        Fault(Kind.TERM, after=2, process=0),
        Fault(Kind.DAMAGED, after=6, process=0),
        Fault(Kind.HALF, after=6, process=0),
    )
    assert done.run() == 0
    for record in done.records:
        record.judge(INTERVAL)
        assert not record.faults, record
    killed, asked, *damaged = done.records
    assert killed.struck_in_save and killed.code == 137
    assert (asked.code, asked.lost) == (PREEMPTED, 0) and not asked.lost_a_save
    assert all(record.lost is not None and record.lost > 0 for record in damaged), "the newest checkpoint was of no use"
    head, *lines = table(done.records, INTERVAL).splitlines()
    assert head.split()[0] == "fault" and [line.split()[-1] for line in lines] == ["yes"] * 4


def test_a_fault_that_never_comes_is_told(place):
    done = storm(place, Fault(Kind.KILL, after=100, process=0))
    assert done.run() == 0
    assert done.records[0].faults == ["the run ended before it: more steps are needed"]


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        (Kind.KILL, {"resumed_at": None}, "the run did not go on"),
        (Kind.KILL, {"resumed_at": 14}, "6 steps lost, 5 allowed"),
        (Kind.KILL, {"resumed_at": 14, "lost_a_save": True}, ""),
        (Kind.HALF, {"resumed_at": 10}, ""),
        (Kind.HALF, {"resumed_at": 9}, "11 steps lost, 10 allowed"),
        (Kind.TERM, {"resumed_at": 20, "code": 143}, "exit code 143, not 75"),
        (Kind.DISK, {"resumed_at": 15, "code": 1}, "exit code 1, not 2"),
    ],
)
def test_what_a_fault_may_cost(kind, changes, told):
    record = dataclasses.replace(Record(Fault(kind, after=1, process=0), last_step=20), faults=[], **changes)
    record.judge(INTERVAL)
    assert record.faults == ([told] if told else [])


def test_faults_that_missed_their_save_are_told():
    meant = Fault(Kind.KILL, 0, 3, during_save=True)
    records = [Record(meant, struck_in_save=struck) for struck in (True, False)] + [
        Record(Fault(Kind.TERM, 0, 3, False))
    ]
    (told,) = too_few_in_saves(records)
    assert told.startswith("1 faults struck during a save, 2 were to")
    assert not too_few_in_saves(records[:1])


def test_an_unreadable_shard_comes_back(place, tmp_path):
    fault = Fault(Kind.SHARD, after=1, process=1)
    group = Group(["true"], count=2, listen=lambda index, line: None)
    place.strike(fault, group)
    assert group.wait() == 0
    assert not (tmp_path / "0.tar").exists()
    place.after(fault)
    assert Path(tmp_path / "0.tar").read_bytes() == b"images"
