"""Data sets that were encoded beforehand (`launch.encode`): tokens and captions in ArrayRecord shards.

A folder of `manifest.json` and `SPLIT/00000-of-00012.array_record` and on. A record is a little-endian uint32 (bytes
of the header), the header (JSON: `key`, `captions`), and the tokens of each crop in raster order: little-endian, uint16
or, where the codebook has more than 65,536 entries, int32.
"""

import dataclasses
import json
import resource
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from jaxtyping import Int32

from dalle_jax import storage
from dalle_jax.config import from_config_dict, read_json
from dalle_jax.data.config import Augment
from dalle_jax.data.records import BadReason, BadSample, Encoding, LeftOut, Record, Source
from dalle_jax.errors import UserError, closest

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

_OTHER_FILES = 256  # that a process keeps open besides


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file."""

    file: str
    """In the folder."""
    samples: int
    """Of the source, good and bad."""
    records: int
    bad: dict[str, int]
    """Samples that are left out, by reason."""
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Split:
    """The shards of one split, and what they were made from."""

    augment: Augment
    crops: int
    """Alternatives of each image."""
    source: str
    """Its name."""
    source_fingerprint: str
    """See `Source.fingerprint`."""
    samples: int
    records: int
    bad: dict[str, int]
    shards: tuple[Shard, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a finished folder holds. Written last: a folder without one is not finished."""

    format_version: int
    commit: str
    """Of the code."""
    encoding: Encoding
    seed: int
    """Of the crops."""
    splits: dict[str, Split]


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """A shard as `ArrayRecordDataSource` takes it: it then need not open every file to count its records."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Encoded(Source):
    """One split. Records hold tokens and captions; shards are opened when a record of theirs is first read."""

    has_images = False

    def __init__(self, path: str, split: str):
        """Reads the manifest and compares the sizes of the files with it.

        Raises:
          UserError: the folder is not finished, has no such split, or shards are missing or damaged.
        """
        folder = storage.expanduser(path)
        manifest = read_manifest(folder)
        if split not in manifest.splits:
            near = closest(split, manifest.splits)
            raise UserError(f"{path} has no split '{split}'{near} (it has: {', '.join(manifest.splits)})")
        shards = manifest.splits[split].shards
        check_files(folder, shards)
        self.name = f"encoded {path} {split}"
        self.encoding = manifest.encoding
        self.left_out = tuple(
            LeftOut(f"samples that were {reason} when they were encoded", count, _first_with(shards, reason))
            for reason, count in manifest.splits[split].bad.items()
        )
        self._split = split
        paths = [(storage.join(folder, shard.file), shard.records) for shard in shards if shard.records]
        # ArrayRecord asks for objects with these four fields, and names a type of TFDS for them.
        instructions: Any = [_Instruction(file, 0, n, n) for file, n in paths]
        self._records = ArrayRecordDataSource(instructions) if paths else []
        _check_open_files(self.name, len(paths))

    def __len__(self) -> int:
        return len(self._records)

    def key(self, index: int) -> str:
        return f"{self._split}/{index}"

    def captioned(self) -> int | None:
        return len(self)  # a sample without is not encoded

    def __getitem__(self, index: int) -> Record:
        assert self.encoding is not None
        try:
            return unpack(self._records[index], self.encoding)
        except (RuntimeError, IndexError, ValueError, KeyError) as error:
            # What ArrayRecord raises for a damaged block (each has a checksum) and a file that was cut.
            raise BadSample(BadReason.TRUNCATED, f"{self.key(index)}: {error}") from error


def _first_with(shards: tuple[Shard, ...], reason: str) -> str:
    """Where the first sample lay that was bad for a reason."""
    return next((f"one in {shard.file}" for shard in shards if reason in shard.bad), "none that a shard names")


def read_manifest(folder: str) -> Manifest:
    """The manifest of a finished folder.

    Raises:
      UserError: there is none, or it is of another format version.
    """
    file = storage.as_path(folder) / MANIFEST
    if not file.exists():
        raise UserError(
            f"there is no {file}: config.data.path must name a folder of launch.encode, which writes the manifest when "
            "all shards are there; run the same command again to finish it"
        )
    mapping = read_json(file)
    version = mapping.get("format_version") if isinstance(mapping, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{file} has format version {version!r}, and this version reads {FORMAT_VERSION}: encode again")
    return from_config_dict(Manifest, mapping, str(file))


def check_files(folder: str, shards: tuple[Shard, ...]) -> None:
    """Compares the files with the manifest, by presence and size.

    Raises:
      UserError: naming the first file that is missing or has another size.
    """
    inner = {shard.file.rpartition("/")[0] for shard in shards}
    there = {f"{name}/{file}": size for name in inner for file, size in storage.files_in(f"{folder}/{name}").items()}
    missing = [shard.file for shard in shards if shard.file not in there]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(shards)} shards that {folder}/{MANIFEST} names are missing, the first is "
            f"{missing[0]}: run the same launch.encode again, which makes what is missing"
        )
    for shard in shards:
        if there[shard.file] != shard.bytes:
            raise UserError(
                f"{folder}/{shard.file} has {there[shard.file]} bytes instead of {shard.bytes}: it is damaged; delete "
                "it and run the same launch.encode again"
            )


def pack(header: bytes, tokens: Int32[np.ndarray, "crops tokens"], codebook_size: int) -> bytes:
    """A record's bytes; `header` is of `pack_header`."""
    return len(header).to_bytes(4, "little") + header + tokens.astype(_dtype(codebook_size)).tobytes()


def pack_header(record: Record) -> bytes:
    """What a record keeps of the one that was encoded, besides its image."""
    about = {"key": record.key, "captions": record.captions}
    return json.dumps(about, ensure_ascii=False).encode("utf-8", "surrogateescape")


def unpack(data: bytes, encoding: Encoding) -> Record:
    """A record from its bytes.

    Raises:
      ValueError: they are no such record.
    """
    end = 4 + int.from_bytes(data[:4], "little")
    about: dict[str, Any] = json.loads(data[4:end].decode("utf-8", "surrogateescape"))
    tokens = np.frombuffer(data, _dtype(encoding.codebook_size), offset=end).astype(np.int32)
    tokens = tokens.reshape(-1, encoding.grid_size**2)
    if not len(tokens) or tokens.max() >= encoding.codebook_size or tokens.min() < 0:
        raise ValueError(f"there is no token {tokens.max(initial=0)} in a codebook of {encoding.codebook_size}")
    return Record(b"", tuple(about["captions"]), about["key"], tokens=tokens)


def _dtype(codebook_size: int) -> np.dtype:
    return np.dtype("<u2" if codebook_size <= 1 << 16 else "<i4")


def _check_open_files(name: str, count: int) -> None:
    """Each shard that is read stays open; one that cannot be opened would pass for a damaged one."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < count + _OTHER_FILES:
        raise UserError(
            f"{name} has {count} shards, which stay open, and this process may open {limit} files: allow it "
            f"{count + _OTHER_FILES} (ulimit -n, or resource.setrlimit in Python), or encode with fewer shards"
        )
