"""Turns a data set's images into tokens beforehand, so that a decoder need not do it at every step.

    python -m launch.encode --config=configs/X.py --codec=W --out=DIR --crops=4
    python -m launch.train --config=configs/X.py --workdir=R --config.data.source=encoded --config.data.path=DIR \
        --config.decoder.codec_from=W

Data, seed and augmentation (`config.decoder.augment`) are those of a decoder's config; its codec is what --codec names,
else `config.decoder.codec_from`, else that of --workdir. DIR gets ArrayRecord shards of tokens and captions for the
training data and for what is held out, and `manifest.json` with counts and checksums. Several processes share the
shards; the same command after a stop makes what is missing, with any number of processes.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from dalle_jax import storage
from dalle_jax.code_version import code_version
from dalle_jax.codec import FrozenCodec
from dalle_jax.data.account import in_lines
from dalle_jax.data.encoded.folder import (
    SETTINGS,
    Job,
    check_settings,
    count_written,
    damaged,
    disown,
    finished,
    write_manifest,
    write_settings,
)
from dalle_jax.data.encoded.source import MANIFEST, read_manifest
from dalle_jax.data.encoded.writer import Writer
from dalle_jax.data.sources import TRAIN
from dalle_jax.errors import UserError
from dalle_jax.run_record import read_run
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.consistency import check_agreement
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.processes import from_primary, is_primary
from dalle_jax.training.parallel.sharding import ShardingRules, batch_sharding
from launch.cli import define_config, start
from launch.run.config import RunConfig, open_data
from launch.run.coordination import check_processes, require_shared
from launch.run.stages import find_codec, read_run_config

CONFIG = define_config(optional=["init_from"])
WORKDIR = flags.DEFINE_string("workdir", None, "of a run whose codec makes the tokens")
CODEC = flags.DEFINE_string("codec", None, "work directory with a codec, or a published one")
OUT = flags.DEFINE_string("out", None, "folder for the shards, local or gs://")
CROPS = flags.DEFINE_integer("crops", 1, "random crops of each training image, kept as alternatives", lower_bound=1)
SHARD_SIZE = flags.DEFINE_integer("shard_size", 16_384, "samples a shard", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "images at once on a device", lower_bound=1)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "say what there is to do and stop")
VERIFY = flags.DEFINE_bool("verify", False, "compare the checksums of all shards in --out with the manifest and stop")

_POLL_SECONDS = 2.0


def main() -> None:
    """Encodes this process's shards, waits for the others', and writes the manifest."""
    if OUT.value is None:
        raise UserError("no folder for the shards given: --out=DIR")
    out = storage.expanduser(OUT.value)
    if VERIFY.value:
        verify(out)
        return
    run = read_run_config(CONFIG())
    check_processes(config=run)
    codec = _codec(run)
    jobs = make_jobs(run, codec)
    if is_primary():
        said = in_lines(run.data, {job.split: job.source for job in jobs})
        print(said, file=sys.stdout if DRY_RUN.value else sys.stderr, flush=True)
    check_agreement({"encoding": {job.split: job.settings for job in jobs}})
    check_settings(jobs, out)
    mine = {job.split: _mine(job, out) for job in jobs}
    if DRY_RUN.value:
        for job in jobs:
            _describe(job, out, len(mine[job.split]))
        return
    from_primary(lambda: write_settings(jobs, out))
    for job in jobs:  # all have seen what was there before, and none counts before all have done this
        disown(job, out, mine[job.split])
    require_shared(epath.Path(out) / SETTINGS)
    with tqdm(unit="image", total=_crops(jobs, mine), disable=not sys.stderr.isatty()) as bar:
        for job in jobs:
            _write(run, job, out, mine[job.split], encoder(codec), bar)
    _wait(jobs, out)
    if is_primary():
        manifest = write_manifest(jobs, out, code_version())
        for name, split in manifest.splits.items():
            bad = "".join(f", {count:,} {reason}" for reason, count in split.bad.items())
            print(f"{name}: {split.records:,} records of {split.crops} crops in {len(split.shards)} shards{bad}")
        print(f"manifest: {storage.join(out, MANIFEST)}")


def make_jobs(run: RunConfig, codec: FrozenCodec) -> list[Job]:
    """What is to be encoded: the training data with its augmentation, and what is held out as at inference.

    Raises:
      UserError: the config cannot be encoded.
    """
    assert run.decoder is not None
    if run.data.mixture:
        raise UserError(
            "config.data is a mixture: encode each part by itself, and let the decoder's config mix the encoded ones"
        )
    augment = run.decoder.augment
    if CROPS.value > 1 and augment is augment.held_out:
        raise UserError(
            f"--crops={CROPS.value}: all crops are the same under config.decoder.augment='{augment.value}'; set it to "
            "'dalle', or leave --crops out"
        )
    jobs = []
    for split, source in open_data(run.data).items():
        if source.encoding is not None:
            raise UserError(f"{source.name} is encoded already: name the images with config.data.source")
        trained = split == TRAIN
        job = Job(
            split=split,
            source=source,
            augment=augment if trained else augment.held_out,
            crops=CROPS.value if trained else 1,
            seed=run.seed,
            encoding=codec.encoding,
            shard_size=SHARD_SIZE.value,
            max_pixels=run.data.max_pixels,
        )
        jobs.append(job)
    return jobs


def encoder(codec: FrozenCodec) -> Callable[[np.ndarray], jax.Array]:
    """Images to tokens, spread over the devices of this process: no process waits for another."""
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    sharding = batch_sharding(mesh, ShardingRules())
    return lambda images: codec.encode(jax.device_put(images, sharding))


def verify(out: str) -> None:
    """Reads all shards.

    Raises:
      UserError: some are damaged or missing.
    """
    manifest = read_manifest(out)
    wrong = damaged(manifest, out)
    if wrong:
        more = " and more" if len(wrong) > 3 else ""
        raise UserError(
            f"{len(wrong)} shards in {out} are damaged or missing: {', '.join(wrong[:3])}{more}; delete them and run "
            "the same launch.encode again"
        )
    print(f"{out}: {sum(len(split.shards) for split in manifest.splits.values())} shards are what the manifest says")


def _codec(run: RunConfig) -> FrozenCodec:
    if run.decoder is None:
        raise UserError("the config has no section 'decoder': tokens are made as a decoder's config says")
    if CODEC.value:
        codec_from = CODEC.value
    elif run.decoder.codec_from or (WORKDIR.value is None and run.init_from and not run.codec):
        codec_from = run.decoder.codec_from
    elif WORKDIR.value is not None:
        codec_from = os.fspath(read_run(WORKDIR.value).codec_workdir())
    else:
        raise UserError("no codec given: --codec=FOLDER, or --workdir=FOLDER of a run with one")
    run = dataclasses.replace(run, decoder=dataclasses.replace(run.decoder, codec_from=codec_from))
    codec = find_codec(run, epath.Path(), trained=True)
    assert isinstance(codec, FrozenCodec)  # since it is trained
    return codec


def _mine(job: Job, out: str) -> list[int]:
    """The shards that this process has to make: every so many-th, without those that are finished."""
    done = finished(job, out)
    return [i for i in range(jax.process_index(), job.num_shards, jax.process_count()) if i not in done]


def _crops(jobs: list[Job], mine: dict[str, list[int]]) -> int:
    return sum(len(mine[job.split]) * min(job.shard_size, len(job.source)) * job.crops for job in jobs)


def _write(
    run: RunConfig, job: Job, out: str, numbers: list[int], encode: Callable[[np.ndarray], jax.Array], bar: tqdm
) -> None:
    writer = Writer(
        job,
        out,
        encode,
        batch_size=BATCH_SIZE.value * jax.local_device_count(),
        workers=run.data.workers,
        max_bad_fraction=run.data.max_bad_fraction,
        on_crops=bar.update,
    )
    for i in numbers:
        begun = time.perf_counter()
        shard = writer.write(i)
        rate = shard.records * job.crops / (time.perf_counter() - begun)
        line = f"{shard.file}: {shard.records:,} records, {sum(shard.bad.values())} bad, {rate:.1f} images/s"
        bar.write(line, file=sys.stderr)


def _wait(jobs: list[Job], out: str) -> None:
    """Returns when every process has made its shards: looks into the folder, where no process holds up another."""
    said = False
    while left := sum(job.num_shards - count_written(job, out) for job in jobs):
        if not said:
            print(f"waiting for {left} shards of other processes", file=sys.stderr, flush=True)
            said = True
        time.sleep(_POLL_SECONDS)


def _describe(job: Job, out: str, left: int) -> None:
    kind = f"{job.crops} crop(s) '{job.augment.value}'"
    print(f"{job.split}: {len(job.source):,} samples of {job.source.name}, {kind}, {job.num_shards} shards in {out}, "
          f"{left} to make in this process of {jax.process_count()}; codec {job.encoding.codec}, "
          f"{job.encoding.grid_size}x{job.encoding.grid_size} of {job.encoding.codebook_size} tokens")  # fmt: skip


if __name__ == "__main__":
    start(main)
