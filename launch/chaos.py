"""Kills a run again and again, and checks that it ends as the one that was left alone.

    python -m launch.chaos --config=configs/chaos.py --kills=20 --out=runs/chaos

trains the config's decoder twice as several processes: undisturbed, and under faults at random steps
(`launch.fault_injection.faults` has the list). The supervisor starts it again each time but after a full disk and an
unreadable shard: these end it with code 2, which a supervisor leaves alone, so the script mends them as a person would
and starts the run again itself.
Parameters, running average and optimizer must be equal bit for bit, the loss of every step too; no fault may cost more
than a save interval, or two where a checkpoint is lost with it. For a lost shard that takes `data.max_bad_fraction=0`,
which it sets: a run that passes over some of its samples is no longer that of all of them.

A third run is killed and goes on with other numbers of processes (`--hosts`), and its loss must agree to 1e-5.

It prints a table and ends with 1 where a fault was not survived. The disk that fills up is one in memory that the
script mounts, which needs root; without, that fault is left out, and a line says so. Data are copied into its own tars.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

from absl import flags

from dalle_jax.config import write_json
from dalle_jax.errors import UserError
from dalle_jax.storage import local_folder
from dalle_jax.training.checkpoints.reader import load_item
from dalle_jax.training.checkpoints.workdir import saved_steps
from dalle_jax.training.trees import named_leaves
from launch.cli import define_config, start
from launch.fault_injection.faults import Kind, Place, make_faults, small_disk
from launch.fault_injection.runner import Storm, table, too_few_in_saves
from launch.fault_injection.testbed import STAGE, Bench, prepare
from launch.run.stages import read_run_config

CONFIG = define_config()
OUT = flags.DEFINE_string("out", "runs/chaos", "folder of the runs; made anew")
KILLS = flags.DEFINE_integer("kills", 20, "number of faults", lower_bound=1)
PROCESSES = flags.DEFINE_integer("processes", 2, "of the run", lower_bound=1)
DEVICES = flags.DEFINE_integer("devices", 1, "CPU devices of each", lower_bound=1)
HOSTS = flags.DEFINE_list("hosts", ["2", "1", "4"], "processes of the run that moves, in turn; empty: no such run")
SEED = flags.DEFINE_integer("seed", 0, "of the faults")
HEARTBEAT = flags.DEFINE_integer("heartbeat", 20, "seconds of silence that count as death", lower_bound=1)

TOLERANCE = 1e-5
"""Relative, of the loss where the number of processes changed."""


def main() -> int:
    """Prepares, runs three times, compares."""
    began = time.monotonic()
    overrides = [argument for argument in sys.argv[1:] if argument.lstrip("-").startswith("config")]
    out = Path(local_folder(OUT.value, "--out")).absolute()
    bench = prepare(read_run_config(CONFIG()), out, overrides, HEARTBEAT.value)
    hosts = _hosts()
    calm = bench.out / "calm"
    bench.run(calm, PROCESSES.value, DEVICES.value)
    _say(f"undisturbed: {bench.num_steps} steps")
    failures = under_faults(bench, calm) + (moved(bench, calm, hosts) if hosts else [])
    for failure in failures:
        print(f"FAILED: {failure}")
    print(f"{'failed' if failures else 'all survived'}; {time.monotonic() - began:.0f} s in all")
    return 1 if failures else 0


def _hosts() -> list[int]:
    if not all(count.isdigit() and int(count) for count in HOSTS.value):
        raise UserError(f"--hosts={','.join(HOSTS.value)}: give numbers of processes, such as 2,1,4")
    return [int(count) for count in HOSTS.value]


def under_faults(bench: Bench, calm: Path) -> list[str]:
    """The run that is struck; prints its table, and returns what went wrong."""
    with small_disk(bench.out / "disk") as mounted:
        if not mounted:
            print(f"{Kind.DISK.value}: left out, no disk can be mounted here (root may)")
        place = Place(bench.out / "disk", STAGE, bench.shards)
        without = frozenset() if mounted else frozenset({Kind.DISK})
        faults = make_faults(KILLS.value, PROCESSES.value, bench.interval, SEED.value, without)
        storm = Storm(
            lambda listen: bench.start(place.workdir, PROCESSES.value, DEVICES.value, listen),
            place, faults, bench.out / "storm.log", _say,
        )  # fmt: skip
        code = storm.run()
        for record in storm.records:
            record.judge(bench.interval)
        print(table(storm.records, bench.interval))
        write_json(bench.out / "chaos.json", [dataclasses.asdict(record) for record in storm.records])
        failures = [f"{record.fault.kind.value}: {fault}" for record in storm.records for fault in record.faults]
        failures += too_few_in_saves(storm.records)
        if code or len(storm.records) < len(faults):
            return [
                *failures,
                f"ended with {code} after {len(storm.records)} of {len(faults)} faults: see storm.log",
            ]
        return failures + differences(calm, place.workdir)


def moved(bench: Bench, calm: Path, hosts: list[int]) -> list[str]:
    """The run with changing numbers of processes against the undisturbed one."""
    workdir = bench.out / "moved"
    for i, count in enumerate(hosts, 1):
        bench.run(workdir, count, DEVICES.value, i * bench.num_steps // len(hosts) if i < len(hosts) else None)
    ours, theirs = losses(calm), losses(workdir)
    errors = {at: abs(ours[at] - theirs[at]) / abs(ours[at]) for at in ours}
    last = [at for at in ours if at[0] == bench.num_steps]
    text = ", ".join(f"{name} {errors[step, name]:.1e}" for step, name in last)
    print(f"{' -> '.join(map(str, hosts))} processes: relative difference of the last losses: {text}; of those before, "
          f"at most {max(errors.values()):.1e}")  # fmt: skip
    return [f"{name} differs by {errors[step, name]:.1e}" for step, name in last if not errors[step, name] <= TOLERANCE]


def differences(calm: Path, stormy: Path) -> list[str]:
    """What is not the same in two runs: arrays of the last checkpoint, bit for bit, and losses by step."""
    step = saved_steps(calm / STAGE)[-1]
    found = []
    for item in ("params", "ema", "optimizer"):
        ours, theirs = (named_leaves(load_item(run / STAGE, step, item)) for run in (calm, stormy))
        unlike = [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()]
        found += [f"{len(unlike)} arrays of {item} differ, such as {unlike[0]}"] if unlike else []
    ours, theirs = losses(calm), losses(stormy)
    unlike = [at for at in ours if ours[at] != theirs.get(at)]
    found += [f"{len(unlike)} losses differ, first {unlike[0]}"] if unlike else []
    if not found:
        print(f"parameters, average, optimizer and {len(ours)} losses: bit for bit those of the undisturbed run")
    return found


def losses(workdir: Path) -> dict[tuple[int, str], float]:
    """Of each step, and of each evaluation."""
    rows = [json.loads(line) for line in (workdir / STAGE / "metrics.jsonl").read_text().splitlines()]
    return {(row["step"], name): row[name] for row in rows for name in ("loss", "eval/loss") if name in row}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    start(main, alone=True)
