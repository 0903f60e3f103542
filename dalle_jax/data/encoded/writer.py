"""Writes a data set as tokens, shard by shard: by several processes, resumed after a stop, the same whoever does it."""

import collections
import contextlib
import dataclasses
import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from dalle_jax import storage
from dalle_jax.data.counts import REASONS, ReadCounts
from dalle_jax.data.encoded.folder import Job, note_shard
from dalle_jax.data.encoded.source import Shard, pack, pack_header
from dalle_jax.data.images import transforms
from dalle_jax.data.images.decode import decode
from dalle_jax.data.prefetch import compute_ahead, read_ahead
from dalle_jax.data.records import BadReason, BadSample, hash_key

_OPTIONS = "group_size:1,zstd:1"  # record by record: reading one from a group would unpack the group


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
        batch_size: images at once.
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
          OSError: the disk is full, or cannot be written.
        """
        job, file = self._job, self._job.file(number)
        where = storage.join(self._folder, file)
        epath.Path(where).parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as elsewhere:
            unfinished = f"{elsewhere}/shard" if storage.is_remote(where) else f"{where}.tmp"
            with _full_disk(unfinished):
                records, bad = self._write_records(number, unfinished)
            with open(unfinished, "rb") as written:
                sha256 = hashlib.file_digest(written, "sha256").hexdigest()
            size = storage.size_of(unfinished)
            storage.upload(unfinished, where)
        samples = min(job.shard_size, len(job.source) - number * job.shard_size)
        shard = Shard(file, samples, records, bad, size, sha256)
        note_shard(self._folder, shard)
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
        row, which = np.zeros((1, len(REASONS)), np.int32), np.full((1, len(REASONS)), -1)
        if reason >= 0:
            row[0, reason], which[0, reason] = 1, index
            bad[REASONS[reason].value] += 1
        self._counts.add({"bad": row, "bad_index": which, "cut": np.zeros(int(reason < 0)), "part": np.zeros(1, int)})


@contextlib.contextmanager
def _full_disk(path: str) -> Generator[None, None, None]:
    """ArrayRecord says with a `RuntimeError` what others say with an `OSError`."""
    try:
        yield
    except RuntimeError as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path) from error
