"""Where the samples of a tar lie: found once, kept in the cache folder, and shared by all processes of a machine.

An index is one array, a row a sample: about 50 bytes for a picture with `.txt` and `.json`. It is mapped into memory
from its file, so that neither a second start nor a worker process scans or copies it.
"""

import functools
import hashlib
import io
import os

import numpy as np
from absl import logging

from dalle_jax import storage
from dalle_jax.data import tar
from dalle_jax.data.records import hash_key

IMAGE_SUFFIXES = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "jp2")
"""Of files in the formats that `decode` reads, in small letters."""

PARTS = ("image", "txt", "json", "cls", "npy")
"""What a sample may consist of."""

_PART_OF = dict.fromkeys(IMAGE_SUFFIXES, "image") | {name: name for name in PARTS[1:]}
_BLOCK = 512  # members of a tar begin at multiples of it
_ABSENT = 0xFFFFFFFF
_VERSION = 2


class TarIndex:
    """The samples with a picture of one tar. Picklable: by the name of its file, where it has one."""

    def __init__(self, rows: np.ndarray, without_picture: int, file: str | None = None):
        """Use `tar_index`.

        Args:
          rows: [samples], with fields `key`, `hash`, and for each part that occurs the uint32 pair (block, size).
          without_picture: samples that were left out.
          file: from which the rows are mapped into memory.
        """
        self.rows, self.without_picture, self._file = rows, without_picture, file

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self):
        if self._file is not None:
            return _load, (self._file,)
        return TarIndex, (self.rows, self.without_picture)

    def key(self, index: int) -> str:
        return self.rows["key"][index].decode("utf-8", "surrogateescape")

    def has_everywhere(self, part: str) -> bool:
        """Whether every sample has this part."""
        return part in (self.rows.dtype.names or ()) and bool(np.all(self.rows[part][:, 0] != _ABSENT))

    def spans(self, index: int, parts: tuple[str, ...]) -> list[tuple[int, int] | None]:
        """(offset, size) in bytes of some parts of a sample; None for what it does not have."""
        row, names = self.rows[index], self.rows.dtype.names or ()
        found = [tuple(map(int, row[part])) if part in names else (_ABSENT, 0) for part in parts]
        return [None if block == _ABSENT else (block * _BLOCK, size) for block, size in found]


def tar_index(path: str) -> TarIndex:
    """The index of a tar, from the cache folder or by a scan of its headers.

    Raises:
      UserError: the tar is damaged, cut short or compressed.
    """
    return _tar_index(path, storage.version_of(path))


@functools.cache
def _tar_index(path: str, version: str) -> TarIndex:
    """Kept, because a run opens its data for the tokenizer and for both splits of each stage."""
    name = path if storage.is_remote(path) else os.path.realpath(path)
    digest = hashlib.sha256(f"{_VERSION} {name} {version}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    cache = storage.cache_folder()
    file = str(cache / "tars" / f"{digest}.npy") if cache else ""
    try:
        return _load(file)
    except (OSError, ValueError, EOFError):
        pass  # not there, or damaged
    rows, without_picture = _scan(path)
    if not len(rows) or not file:
        return TarIndex(rows, without_picture)  # what is empty cannot be mapped
    try:
        encoded = io.BytesIO()
        np.save(encoded, rows, allow_pickle=False)
        encoded.write(without_picture.to_bytes(8, "little"))
        storage.write_whole(file, encoded.getvalue())
        return _load(file)
    except OSError as error:
        logging.warning("the index of %s cannot be kept in %s (%s)", path, file, error.strerror)
        return TarIndex(rows, without_picture)


def _load(file: str) -> TarIndex:
    rows = np.load(file, mmap_mode="r", allow_pickle=False)
    end = os.path.getsize(file)
    (without_picture,) = storage.read_parts(file, [(end - 8, 8)])
    return TarIndex(rows, int.from_bytes(without_picture, "little"), file)


def _scan(path: str) -> tuple[np.ndarray, int]:
    """Rows, and the number of samples without a picture."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    for name, offset, size in tar.scan(path):
        folder, base = os.path.split(name)
        stem, _, suffix = base.partition(".")
        part = _PART_OF.get(suffix.lower())
        if part is None or not stem:  # a dot in front: what macOS leaves beside each file
            continue
        span = (offset // _BLOCK, min(size, _ABSENT))
        samples.setdefault(os.path.join(folder, stem), {})[part] = span
    whole = {key: spans for key, spans in samples.items() if "image" in spans}
    keys = np.array([key.encode("utf-8", "surrogateescape") for key in whole], np.bytes_)
    present = [part for part in PARTS if any(part in spans for spans in whole.values())]
    rows = np.zeros(len(whole), [("key", keys.dtype), ("hash", "<u8"), *((part, "<u4", 2) for part in present)])
    rows["key"] = keys
    rows["hash"] = [hash_key(key) for key in whole]
    for part in present:
        rows[part] = [spans.get(part, (_ABSENT, 0)) for spans in whole.values()]
    return rows, len(samples) - len(whole)
