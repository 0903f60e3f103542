"""What the runs of `launch.chaos` stand on: data in tars that may be broken, a codec, a tokenizer, a way to start."""

import dataclasses
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dalle_jax.data.captions import all_captions
from dalle_jax.data.readers.webdataset_writer import write_shard
from dalle_jax.data.records import Source
from dalle_jax.data.sources import TRAIN, open_source
from dalle_jax.data.tokenizer import train_tokenizer
from dalle_jax.errors import PREEMPTED, PREEMPTED_VARIABLE, UserError
from dalle_jax.training.parallel.processes import HEARTBEAT
from launch.cluster.local_group import Group
from launch.run.config import RunConfig

STAGE = "decoder"
SHARDS, RECORDS = 4, 256

Listen = Callable[[int, str], None]


@dataclasses.dataclass(frozen=True)
class Bench:
    """How a run is started."""

    out: Path
    interval: int
    """Steps between checkpoints."""
    num_steps: int
    shards: list[Path]
    arguments: Sequence[str]
    """Of `launch.train`, without the work directory."""
    heartbeat: int

    def start(self, workdir: Path, processes: int, devices: int, listen: Listen | None = None) -> Group:
        """A training run as several processes, which leave with `PREEMPTED` when they were asked to stop."""
        environment = {
            PREEMPTED_VARIABLE: str(PREEMPTED),
            HEARTBEAT: str(self.heartbeat),
            # Every start compiles the same programs.
            "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(self.out / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }
        command = ["python", "-m", "launch.train", *self.arguments, f"--workdir={workdir}"]
        return Group(command, processes, devices, environment, listen)

    def run(self, workdir: Path, processes: int, devices: int, kill_at: int | None = None) -> None:
        """Trains to the end, or until a step, at which all processes are killed.

        Raises:
          UserError: the run fails.
        """
        step, lines = 0, []

        def hear(index: int, line: str) -> None:
            nonlocal step
            lines.append(f"[{index}] {line}")
            step = step_in(line) or step

        group = self.start(workdir, processes, devices, hear)
        code = group.wait(meanwhile=lambda: group.end() if kill_at is not None and step >= kill_at else None)
        if code and kill_at is None:
            raise UserError(f"the run in {workdir} ended with {code}: {' | '.join(lines[-5:])}")


def step_in(line: str) -> int | None:
    """The step of a line that the training prints."""
    found = re.search(rf"{STAGE} (\d+)/\d+  loss", line)
    return int(found[1]) if found else None


def prepare(run: RunConfig, out: Path, overrides: Sequence[str], heartbeat: int) -> Bench:
    """Makes the folder anew: copies data into tars, and trains what the decoder stands on.

    Args:
      run: the config.
      out: the folder.
      overrides: `--config...` as they were given.
      heartbeat: seconds.
    """
    if run.decoder is None or run.decoder.train.checkpoint_every < 1 or run.decoder.train.keep_last < 3:
        raise UserError("chaos needs a decoder with checkpoint_every of 1 or more and keep_last of 3 or more")
    assert run.tokenizer is not None
    shutil.rmtree(out, ignore_errors=True)
    (out / "data").mkdir(parents=True)
    source = open_source(run.data, TRAIN)
    shards = copy_records(source, out / "data")
    arguments = [
        *overrides,
        "--config.data.source=webdataset",
        f"--config.data.path={out}/data/{{{shards[0].stem}..{shards[-1].stem}}}.tar",
        "--config.data.max_bad_fraction=0.0",
        f"--config.{STAGE}.train.log_every=1",
        f"--config.{STAGE}.train.preview_every=0",
    ]
    if not run.tokenizer.path:
        train_tokenizer(all_captions(source), run.tokenizer.vocab_size, out / "tokenizer.model")
        arguments.append(f"--config.tokenizer.path={out}/tokenizer.model")
    if not run.decoder.codec_from:
        command = [sys.executable, "-m", "launch.train", *arguments, "--stages=codec", f"--workdir={out}/codec"]
        if subprocess.run(command).returncode:
            raise UserError("the codec that the decoder stands on could not be trained: see above")
        arguments.append(f"--config.decoder.codec_from={out}/codec")
    train = run.decoder.train
    return Bench(out, train.checkpoint_every, train.num_steps, shards, [*arguments, f"--stages={STAGE}"], heartbeat)


def copy_records(source: Source, folder: Path) -> list[Path]:
    """Writes the first records of a source into tars."""
    samples = []
    for i in range(min(len(source), RECORDS)):
        record = source[i]
        image = record.image if isinstance(record.image, bytes) else _png(record.image)
        samples.append({"key": f"{i:06d}".encode(), "png": image, "txt": "\n".join(record.captions).encode()})
    paths = [folder / f"{i:05d}.tar" for i in range(SHARDS)]
    for i, path in enumerate(paths):
        write_shard(path, samples[i::SHARDS])
    return paths


def _png(pixels: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "png")
    return encoded.getvalue()
