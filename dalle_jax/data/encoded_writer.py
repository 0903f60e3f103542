"""Writes a data set as tokens, shard by shard: by several processes, resumed after a stop, the same whoever does it."""

import collections
import dataclasses
import functools
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from dalle_jax import storage
from dalle_jax.config import from_config_dict, read_json, write_json
from dalle_jax.data import transforms
from dalle_jax.data.config import Augment
from dalle_jax.data.counts import REASONS, ReadCounts
from dalle_jax.data.decode import decode
from dalle_jax.data.encoded import FORMAT_VERSION, MANIFEST, Manifest, Shard, Split, pack, pack_header
from dalle_jax.data.prefetch import compute_ahead, read_ahead
from dalle_jax.data.records import BadReason, BadSample, Encoding, Source, hash_key
from dalle_jax.errors import UserError

SETTINGS = "encoding.json"
"""In the folder: what decides the content of its shards. Written first."""

_OPTIONS = "group_size:1,zstd:1"  # record by record: reading one from a group would unpack the group


@dataclasses.dataclass(frozen=True)
class Job:
    """One split to encode: samples [n `shard_size`, (n + 1) `shard_size`) of the source are shard n."""

    split: str
    source: Source
    augment: Augment
    crops: int
    """Alternatives of each picture: crop c of a sample is a function of (seed, the sample's key, c)."""
    seed: int
    encoding: Encoding
    shard_size: int
    max_pixels: int

    @property
    def num_shards(self) -> int:
        return -(-len(self.source) // self.shard_size)

    def file(self, number: int) -> str:
        """Of a shard, in the folder."""
        return f"{self.split}/{number:05d}-of-{self.num_shards:05d}.array_record"

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What decides the content of the shards."""
        return {
            "format_version": FORMAT_VERSION,
            **dataclasses.asdict(self.encoding),
            "augment": self.augment.value,
            "crops": self.crops,
            "seed": self.seed,
            "samples": len(self.source),
            "shard_size": self.shard_size,
            "source_fingerprint": self.source.fingerprint(),
        }


@dataclasses.dataclass(frozen=True)
class CropReader:
    """Reads a sample and cuts its crops. Picklable, for worker processes."""

    job: Job

    def __call__(self, index: int) -> dict[str, Any]:
        """Returns `header` bytes and `crops` uint8 [crops, S, S, 3], and `bad`: which of `REASONS`, or -1."""
        job, size = self.job, self.job.encoding.image_size
        try:
            record = job.source[index]
            if not record.captions:
                raise BadSample(record.captions_fault or BadReason.NO_CAPTION)
            shrink = transforms.shrink_to(job.augment, size)
            image = decode(record.image, max_pixels=job.max_pixels, shrink_to=shrink)
        except BadSample as error:
            return {"header": b"", "crops": np.zeros((0, size, size, 3), np.uint8), "bad": REASONS.index(error.reason)}
        transform, name = transforms.make_transform(job.augment, size), hash_key(record.key)
        rngs = [np.random.default_rng([job.seed, name, crop]) for crop in range(job.crops)]
        return {"header": pack_header(record), "crops": np.stack([transform(image, rng) for rng in rngs]), "bad": -1}


class Writer:
    """Encodes shards with one codec and counts what is bad among all that it reads."""

    def __init__(
        self,
        job: Job,
        folder: str,
        encode: Callable[[np.ndarray], Any],
        *,
        batch_size: int,
        workers: int,
        max_bad_fraction: float,
        on_crops: Callable[[int], object] = lambda count: None,
    ):
        """Args:
        job: what to encode.
        folder: where the shards go; local or `gs://`.
        encode: uint8 [batch_size, S, S, 3] to tokens [batch_size, G], of which it may not wait for the end.
        batch_size: pictures at once.
        workers: processes that decode; 0: threads.
        max_bad_fraction: as in `DataConfig`.
        on_crops: called with the number of crops that were encoded since the last call.
        """
        self._job, self._folder, self._encode, self._batch_size = job, folder, encode, batch_size
        self._workers, self._on_crops = workers, on_crops
        self._counts = ReadCounts(job.source, max_bad_fraction)

    def write(self, number: int) -> Shard:
        """Writes a shard, which is there whole or not at all, and beside it what it holds (`.json`).

        Raises:
          UserError: too many samples are bad.
        """
        job, file = self._job, self._job.file(number)
        where = storage.join(self._folder, file)
        epath.Path(where).parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as elsewhere:
            unfinished = f"{elsewhere}/shard" if storage.is_remote(where) else f"{where}.tmp"
            records, bad = self._write_records(number, unfinished)
            with open(unfinished, "rb") as written:
                sha256 = hashlib.file_digest(written, "sha256").hexdigest()
            size = storage.size_of(unfinished)
            storage.upload(unfinished, where)
        samples = min(job.shard_size, len(job.source) - number * job.shard_size)
        shard = Shard(file, samples, records, bad, size, sha256)
        write_json(_about(self._folder, file), shard)
        return shard

    def _write_records(self, number: int, path: str) -> tuple[int, dict[str, int]]:
        job = self._job
        first = number * job.shard_size
        indices = grain.MapDataset.range(first, min(first + job.shard_size, len(job.source)))
        bad: collections.Counter[str] = collections.Counter()
        headers: collections.deque[bytes] = collections.deque()
        batches = self._batches(read_ahead(indices.map(CropReader(job)), self._workers), first, headers, bad)
        rows, records = np.zeros((0, job.encoding.grid_size**2), np.int32), 0
        writer = ArrayRecordWriter(path, _OPTIONS)
        for tokens in compute_ahead(batches, self._encode, 2):
            rows = np.concatenate([rows, np.asarray(tokens)])
            while len(rows) >= job.crops and headers:
                writer.write(pack(headers.popleft(), rows[: job.crops], job.encoding.codebook_size))
                rows, records = rows[job.crops :], records + 1
            self._on_crops(len(tokens))
        writer.close()
        return records, dict(sorted(bad.items()))

    def _batches(
        self, samples: grain.IterDataset, first: int, headers: collections.deque[bytes], bad: collections.Counter[str]
    ) -> Iterator[np.ndarray]:
        """Crops in batches of one shape; headers go to the deque before the batch with their first crop."""
        waiting: list[np.ndarray] = []
        for index, sample in enumerate(samples, first):
            self._count(index, sample["bad"], bad)
            if sample["bad"] >= 0:
                continue
            headers.append(sample["header"])
            waiting += list(sample["crops"])
            while len(waiting) >= self._batch_size:
                yield np.stack(waiting[: self._batch_size])
                del waiting[: self._batch_size]
        if waiting:
            # One program for all: a product of few rows may be rounded differently.
            yield np.stack([*waiting, *[waiting[-1]] * (self._batch_size - len(waiting))])

    def _count(self, index: int, reason: int, bad: collections.Counter[str]) -> None:
        row = np.zeros((1, len(REASONS)), np.int32)
        if reason >= 0:
            row[0, reason] = 1
            bad[REASONS[reason].value] += 1
        which = np.array([index if reason >= 0 else -1])
        self._counts.add({"bad": row, "bad_index": which, "cut": np.zeros(int(reason < 0)), "part": np.zeros(1, int)})


def check_settings(jobs: list[Job], folder: str) -> None:
    """Whether a folder, where it is begun already, holds shards of these very jobs.

    Raises:
      UserError: it was made otherwise; names what differs.
    """
    file = epath.Path(folder) / SETTINGS
    old = read_json(file) if file.exists() else {job.split: job.settings for job in jobs}
    for job in jobs:
        there, now = old.get(job.split, {}), job.settings
        changed = [f"{key} ({there.get(key)!r} there, {now[key]!r} now)" for key in now if there.get(key) != now[key]]
        if changed:
            raise UserError(
                f"{folder} holds shards of another encoding: {', '.join(changed)}; choose another --out, or delete it"
            )


def write_settings(jobs: list[Job], folder: str) -> None:
    """Begins a folder: says what its shards are made of."""
    write_json(epath.Path(folder) / SETTINGS, {job.split: job.settings for job in jobs})


def finished(job: Job, folder: str) -> dict[int, Shard]:
    """The shards of a job that are there whole, by number."""
    there = storage.files_in(storage.join(folder, job.split))
    names = [name for name in there if name.endswith(".json")]
    with ThreadPoolExecutor(16) as pool:
        abouts = list(pool.map(lambda name: read_json(epath.Path(folder) / job.split / name), names))
    shards = {}
    for about in abouts:
        shard = from_config_dict(Shard, about, f"{folder}/{job.split}")
        name = shard.file.rpartition("/")[2]
        if there.get(name) == shard.bytes:
            shards[int(name.partition("-of-")[0])] = shard
    return shards


def count_written(job: Job, folder: str) -> int:
    """How many shards of a job are there, by their names alone."""
    there = storage.files_in(storage.join(folder, job.split))
    return sum(name.removesuffix(".json") + ".array_record" in there for name in there if name.endswith(".json"))


def write_manifest(jobs: list[Job], folder: str, commit: str) -> Manifest:
    """Writes the manifest of a folder in which every shard is finished."""
    splits = {}
    for job in jobs:
        shards = tuple(shard for _, shard in sorted(finished(job, folder).items()))
        if len(shards) < job.num_shards:
            raise UserError(f"a shard in {folder} was damaged meanwhile: run the same launch.encode again")
        bad: collections.Counter[str] = sum((collections.Counter(shard.bad) for shard in shards), collections.Counter())
        splits[job.split] = Split(
            job.augment,
            job.crops,
            job.source.name,
            job.settings["source_fingerprint"],
            len(job.source),
            sum(shard.records for shard in shards),
            dict(sorted(bad.items())),
            shards,
        )
    manifest = Manifest(FORMAT_VERSION, commit, jobs[0].encoding, jobs[0].seed, splits)
    write_json(epath.Path(folder) / MANIFEST, manifest)
    return manifest


def _about(folder: str, file: str) -> epath.Path:
    return epath.Path(storage.join(folder, file.removesuffix(".array_record") + ".json"))
