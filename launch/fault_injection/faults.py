"""What may befall a run: which faults, in which order, how each is done and how it is mended."""

import dataclasses
import enum
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dalle_jax.training.checkpoints.workdir import saved_steps
from launch.cluster.local_group import Group

DISK_BYTES = 64 << 20
"""Of the small disk that work directories lie on."""


class Kind(enum.Enum):
    """Faults, in the words of the table; the first ones are taken where few are asked for."""

    DAMAGED = "newest checkpoint damaged"
    TERM = "SIGTERM to a process"
    DISK = "disk full"
    STOP = "SIGSTOP of a process"
    SHARD = "data shard unreadable"
    COORDINATOR = "SIGKILL of the coordinator"
    HALF = "newest checkpoint half-written"
    KILL = "SIGKILL of a process"

    @property
    def spoils_a_checkpoint(self) -> bool:
        return self in (Kind.DAMAGED, Kind.HALF)


@dataclasses.dataclass(frozen=True)
class Fault:
    """One of the list."""

    kind: Kind
    after: int
    """Steps after the run has begun again, at the least."""
    process: int
    during_save: bool = False
    """Waits for a save to begin."""


def make_faults(count: int, processes: int, interval: int, seed: int, without: frozenset[Kind]) -> list[Fault]:
    """Draws faults in random order: each kind twice as soon as `count` allows it, three of them during a save."""
    rng = np.random.default_rng(seed)
    kinds = [kind for kind in Kind if kind not in without]
    during_save = [(kind, True) for kind in (Kind.KILL, Kind.TERM, Kind.COORDINATOR)]
    plain = [(kind, False) for kind in kinds]
    wanted = [*during_save[:1], *plain, *during_save[1:], *plain]
    wanted += [plain[i] for i in rng.integers(len(plain), size=max(count - len(wanted), 0))]
    order = rng.permutation(min(count, len(wanted)))
    return [
        Fault(kind, int(rng.integers(1, 2 * interval)), _victim(kind, processes, rng), saving)
        for kind, saving in (wanted[i] for i in order)
    ]


def _victim(kind: Kind, processes: int, rng: np.random.Generator) -> int:
    if kind is Kind.COORDINATOR or processes == 1:
        return 0
    if kind is Kind.KILL:
        return int(rng.integers(1, processes))
    return int(rng.integers(processes))


class Place:
    """Where a run lives: its folder, on a small disk where one can be mounted, and its shards."""

    def __init__(self, folder: Path, stage: str, shards: list[Path]):
        self.workdir = folder / "run"
        self.checkpoints = self.workdir / stage / "checkpoints"
        self._stage_dir, self._shards, self._folder = self.workdir / stage, shards, folder

    @property
    def saved(self) -> list[int]:
        """Steps of the stage's checkpoints."""
        return saved_steps(self._stage_dir)

    @property
    def saving(self) -> bool:
        """Whether there is a checkpoint that is not whole yet: one that is being written, or never will be."""
        return self.checkpoints.exists() and any(
            "orbax-checkpoint-tmp" in path.name for path in _entries(self.checkpoints)
        )

    def strike(self, fault: Fault, group: Group) -> None:
        """Does what a fault does while the run goes on."""
        process = group.processes[fault.process]
        if fault.kind is Kind.DISK:
            _fill(self._folder / "ballast")
        elif fault.kind is Kind.SHARD:
            shard = self._shards[fault.process % len(self._shards)]
            shard.rename(shard.with_suffix(".away"))
        else:
            numbers = {Kind.TERM: signal.SIGTERM, Kind.STOP: signal.SIGSTOP}
            process.send_signal(numbers.get(fault.kind, signal.SIGKILL))

    def after(self, fault: Fault) -> None:
        """Does what is done once the run has ended: the damage to a checkpoint, or what a person would mend."""
        if fault.kind is Kind.DISK:
            (self._folder / "ballast").unlink()
        elif fault.kind is Kind.SHARD:
            for shard in self._shards:
                if shard.with_suffix(".away").exists():
                    shard.with_suffix(".away").rename(shard)
        elif fault.kind.spoils_a_checkpoint:
            newest = self.checkpoints / str(self.saved[-1])
            data = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
            content = bytearray(data.read_bytes())
            if fault.kind is Kind.HALF:
                content = content[: len(content) // 2]
            else:
                content[len(content) // 2] ^= 1
            data.write_bytes(content)


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except FileNotFoundError:
        return


def _fill(path: Path) -> None:
    """Writes until nothing is left."""
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mounts a disk of `DISK_BYTES` in memory on a folder, if this process may; gives whether it did."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    may = shutil.which("mount") is not None and os.geteuid() == 0
    mounted = may and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)
