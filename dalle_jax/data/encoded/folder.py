"""The folder of an encoding: what it is made of, which shards are finished, and its manifest."""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from etils import epath

from dalle_jax import storage
from dalle_jax.config import from_config_dict, read_json, write_json
from dalle_jax.data.config import Augment
from dalle_jax.data.encoded.source import FORMAT_VERSION, MANIFEST, Manifest, Shard, Split
from dalle_jax.data.records import Encoding, Source
from dalle_jax.errors import UserError

SETTINGS = "encoding.json"
"""In the folder: what decides the content of its shards. Written first."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One split to encode: samples [n `shard_size`, (n + 1) `shard_size`) of the source are shard n."""

    split: str
    source: Source
    augment: Augment
    crops: int
    """Alternatives of each image: crop c of a sample is a function of (seed, the sample's key, c)."""
    seed: int
    encoding: Encoding
    shard_size: int
    max_pixels: int

    @property
    def num_shards(self) -> int:
        """Files that the source is written into."""
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
            "max_pixels": self.max_pixels,
            "samples": len(self.source),
            "shard_size": self.shard_size,
            "source_fingerprint": self.source.fingerprint(),
        }


def note_shard(folder: str, shard: Shard) -> None:
    """Writes beside a finished shard what it holds, which is what makes it count as finished."""
    write_json(_note(folder, shard.file), shard)


def _note(folder: str, file: str) -> epath.Path:
    return epath.Path(folder) / (file.removesuffix(".array_record") + ".json")


def check_settings(jobs: list[Job], folder: str) -> None:
    """Whether a folder, where it is begun already, holds shards of these very jobs.

    Raises:
      UserError: it was made otherwise; names what differs.
    """
    file = epath.Path(folder) / SETTINGS
    old = read_json(file) if file.exists() else {job.split: job.settings for job in jobs}
    for job in jobs:
        there, now = old.get(job.split, {}), job.settings
        there.setdefault("max_pixels", now["max_pixels"])  # folders of the time before it was written down
        changed = [f"{key} ({there.get(key)!r} there, {now[key]!r} now)" for key in now if there.get(key) != now[key]]
        if changed:
            raise UserError(
                f"{folder} holds shards of another encoding: {', '.join(changed)}; choose another --out, or delete it"
            )


def write_settings(jobs: list[Job], folder: str) -> None:
    """Begins a folder, where it is not begun yet: says what its shards are made of."""
    file = epath.Path(folder) / SETTINGS
    if not file.exists():
        write_json(file, {job.split: job.settings for job in jobs})


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


def disown(job: Job, folder: str, numbers: Iterable[int]) -> None:
    """Takes the notes away from shards that are to be made again: whoever counts the notes would find them finished."""
    for number in numbers:
        _note(folder, job.file(number)).unlink(missing_ok=True)


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
            augment=job.augment,
            crops=job.crops,
            source=job.source.name,
            source_fingerprint=job.settings["source_fingerprint"],
            samples=len(job.source),
            records=sum(shard.records for shard in shards),
            bad=dict(sorted(bad.items())),
            shards=shards,
        )
    manifest = Manifest(FORMAT_VERSION, commit, jobs[0].encoding, jobs[0].seed, splits)
    write_json(epath.Path(folder) / MANIFEST, manifest)
    return manifest


def damaged(manifest: Manifest, folder: str) -> list[str]:
    """Files whose content is not what the manifest says, or that are missing. Reads every byte."""

    def is_damaged(shard: Shard) -> bool:
        try:
            with epath.Path(storage.join(folder, shard.file)).open("rb") as file:
                return hashlib.file_digest(cast(Any, file), "sha256").hexdigest() != shard.sha256
        except FileNotFoundError:
            return True

    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    with ThreadPoolExecutor(8) as pool:
        return [shard.file for shard, bad in zip(shards, pool.map(is_damaged, shards), strict=True) if bad]
