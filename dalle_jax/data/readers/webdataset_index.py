"""Where the samples of a tar lie: found once, kept in the cache folder, and shared by all processes of a machine.

An index is one array, a row a sample: about 50 bytes for an image with `.txt` and `.json`. It is mapped into memory
from its file, so that neither a second start nor a worker process scans or copies it.
"""

import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator

import numpy as np

from dalle_jax import storage
from dalle_jax.data.config import TarKey
from dalle_jax.data.left_out import Tally
from dalle_jax.data.readers import tar
from dalle_jax.data.records import LeftOut, hash_key

_log = logging.getLogger(__name__)

IMAGE_SUFFIXES = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "jp2")
"""Of files in the formats that `decode` reads, in small letters."""

PARTS = ("image", "txt", "json", "cls", "npy")
"""What a sample may consist of."""

_PART_OF = dict.fromkeys((*IMAGE_SUFFIXES, "img"), "image") | {name: name for name in PARTS[1:]} | {"cap": "txt"}
_BLOCK = 512  # members of a tar begin at multiples of it
_ABSENT = 0xFFFFFFFF
_VERSION = 3  # of the files, and of what is a sample

HIDDEN = "members whose names begin with a dot"
OTHER = "members of other extensions"
DOTTED = "members with a dot before the one of their extension (data.key=stem reads them)"
REPEATED = "members that a later one of the same name replaces"
WITHOUT_IMAGE = "samples without an image"
_AUXILIARY = "images named after another sample, which alone has captions or a label"


class TarIndex:
    """The samples with an image of one tar. Picklable: by the name of its file, where it has one."""

    def __init__(self, rows: np.ndarray, left_out: tuple[LeftOut, ...] = (), file: str | None = None):
        """Use `tar_index`.

        Args:
          rows: [samples], with fields `key`, `hash`, and for each part that occurs the uint32 pair (block, size).
          left_out: members and samples that are not in the rows.
          file: from which the rows are mapped into memory.
        """
        self.rows, self.left_out, self._file = rows, left_out, file

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self):
        if self._file is not None:
            return _load, (self._file,)
        return TarIndex, (self.rows, self.left_out)

    def key(self, index: int) -> str:
        """The key of a sample, as its members' names begin."""
        return self.rows["key"][index].decode("utf-8", "surrogateescape")

    def has_everywhere(self, part: str) -> bool:
        """Whether every sample has this part."""
        return part in (self.rows.dtype.names or ()) and bool(np.all(self.rows[part][:, 0] != _ABSENT))

    def count_any(self, parts: tuple[str, ...]) -> int:
        """How many samples have one of these parts, or several."""
        there = [self.rows[part][:, 0] != _ABSENT for part in parts if part in (self.rows.dtype.names or ())]
        return int(np.any(there, axis=0).sum()) if there else 0

    def spans(self, index: int, parts: tuple[str, ...]) -> list[tuple[int, int] | None]:
        """(offset, size) in bytes of some parts of a sample; None for what it does not have."""
        row, names = self.rows[index], self.rows.dtype.names or ()
        found = [tuple(map(int, row[part])) if part in names else (_ABSENT, 0) for part in parts]
        return [None if block == _ABSENT else (block * _BLOCK, size) for block, size in found]


def tar_index(path: str, key: TarKey = TarKey.FIRST_DOT) -> TarIndex:
    """The index of a tar, from the cache folder or by a scan of its headers.

    Raises:
      UserError: the tar is damaged, cut short or compressed.
    """
    return _tar_index(path, storage.version_of(path), key)


@functools.cache
def _tar_index(path: str, version: str, key: TarKey) -> TarIndex:
    """Kept, because a run opens its data for the tokenizer and for both splits of each stage."""
    name = path if storage.is_remote(path) else os.path.realpath(path)
    about = f"{_VERSION} {key.value} {name} {version}"
    digest = hashlib.sha256(about.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    cache = storage.cache_folder()
    file = str(cache / "tars" / f"{digest}.npy") if cache else ""
    try:
        return _load(file)
    except (OSError, ValueError, EOFError, TypeError):
        pass  # not there, or damaged
    rows, left_out = _scan(path, key)
    if not len(rows) or not file:
        return TarIndex(rows, left_out)  # what is empty cannot be mapped
    try:
        encoded = io.BytesIO()
        np.save(encoded, rows, allow_pickle=False)
        beside = json.dumps([dataclasses.asdict(found) for found in left_out]).encode()
        encoded.write(beside + len(beside).to_bytes(8, "little"))
        storage.write_whole(file, encoded.getvalue())
        return _load(file)
    except OSError as error:
        _log.warning("the index of %s cannot be kept in %s (%s)", path, file, error.strerror)
        return TarIndex(rows, left_out)


def _load(file: str) -> TarIndex:
    rows = np.load(file, mmap_mode="r", allow_pickle=False)
    end = os.path.getsize(file) - 8
    (size,) = storage.read_parts(file, [(end, 8)])
    length = int.from_bytes(size, "little")
    if not 0 < length < end:
        raise ValueError(f"{file} is damaged")
    (beside,) = storage.read_parts(file, [(end - length, length)])
    return TarIndex(rows, tuple(LeftOut(**found) for found in json.loads(beside)), file)


_Parts = dict[str, tuple[int, int, str]]
"""Of a sample: where each part lies (block, size), and its extension."""


def _scan(path: str, key: TarKey) -> tuple[np.ndarray, tuple[LeftOut, ...]]:
    """Rows, and what is not in them."""
    tally = Tally()
    samples = _samples(path, key, tally)
    for name in _auxiliary(samples) if key is TarKey.STEM else ():
        tally.add(_AUXILIARY, f"{name}.{samples.pop(name)['image'][2]}")
    whole = {name: parts for name, parts in samples.items() if "image" in parts}
    if len(whole) < len(samples):
        example = next(name for name in samples if name not in whole)
        tally.add(WITHOUT_IMAGE, example, len(samples) - len(whole))
    keys = np.array([name.encode("utf-8", "surrogateescape") for name in whole], np.bytes_)
    present = [part for part in PARTS if any(part in parts for parts in whole.values())]
    rows = np.zeros(len(whole), [("key", keys.dtype), ("hash", "<u8"), *((part, "<u4", 2) for part in present)])
    rows["key"] = keys
    rows["hash"] = [hash_key(name) for name in whole]
    for part in present:
        rows[part] = [parts.get(part, (_ABSENT, 0))[:2] for parts in whole.values()]
    return rows, tally.found()


def _samples(path: str, key: TarKey, tally: Tally) -> dict[str, _Parts]:
    """The parts of each sample, by key. Where there are several of one kind, the last in the tar is it."""
    samples: dict[str, _Parts] = {}
    for name, offset, size in tar.scan(path, tally):
        folder, base = os.path.split(name)
        if base.startswith("."):  # what macOS leaves beside each file, say
            tally.add(HIDDEN, name)
            continue
        stem, _, suffix = base.partition(".") if key is TarKey.FIRST_DOT else base.rpartition(".")
        part = _PART_OF.get(suffix.lower())
        if part is None or not stem:
            dotted = _PART_OF.get(suffix.rpartition(".")[2].lower()) is not None and "." in suffix
            tally.add(DOTTED if dotted else OTHER, name)
            continue
        sample = os.path.join(folder, stem)
        parts = samples.setdefault(sample, {})
        if part in parts:
            before = parts[part][2]
            several = "images" if part == "image" else f".{part} files"
            tally.add(
                REPEATED if before == suffix else f"{several} of keys that have a later one", f"{sample}.{before}"
            )
        parts[part] = (offset // _BLOCK, min(size, _ABSENT), suffix)
    return samples


def _auxiliary(samples: dict[str, _Parts]) -> Iterator[str]:
    """Keys of images alone that are another key and more: `a.seg` of `a`, where `a` has an image and more beside it."""
    for name in [name for name, parts in samples.items() if parts.keys() == {"image"}]:
        folder, base = os.path.split(name)
        shorter = [base[:i] for i, letter in enumerate(base) if letter == "."]
        if any(len(parts := samples.get(os.path.join(folder, stem), {})) > 1 and "image" in parts for stem in shorter):
            yield name
