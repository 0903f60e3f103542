"""Webdataset tars as img2dataset writes them, read in any order without being copied or unpacked."""

import functools
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from absl import logging

from dalle_jax.data import tar
from dalle_jax.data.captions import Captions, captions_from_json, captions_from_text
from dalle_jax.data.records import BadReason, BadSample, Record, Source, hash_key
from dalle_jax.errors import UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")

_PARTS = {suffix: 0 for suffix in IMAGE_SUFFIXES} | {"txt": 1, "json": 2, "cls": 3, "npy": 4}
_IMAGE, _TEXT, _JSON, _CLASS, _CLASSES = range(5)
_ABSENT = -1


class _Shard(NamedTuple):
    keys: np.ndarray  # bytes [samples]
    hashes: np.ndarray  # uint64 [samples]
    spans: np.ndarray  # int64 [samples, part, (offset, size)], _ABSENT where the sample has no such member
    without_picture: int


class WebDataset(Source):
    """Files that share a name up to its first dot are one sample: a picture, and `.txt`, `.json` or labels beside it.

    Captions are the lines of the `.txt`, else the caption field of the `.json`; where `caption_field` is given, that
    field of the `.json` goes first. `.cls` holds a class index, `.npy` a 0 or 1 for each class (CLIP_benchmark's
    multi-label data sets).

    The tars are scanned once in a process, when the source is opened; a sample is then a few reads at known offsets.
    """

    def __init__(self, paths: Sequence[str], *, caption_field: str = ""):
        """Scans the tars.

        Raises:
          UserError: where one is cut short, compressed or damaged (naming it and the offset), or no sample in any of
            them has a picture.
        """
        self.name = f"webdataset {paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        self._paths = list(paths)
        self._caption_field = caption_field
        # Headers lie scattered over the files: threads hide the latency of a network file system.
        with ThreadPoolExecutor(8) as pool:
            shards = list(pool.map(_scan_shard, self._paths))
        without_picture = sum(shard.without_picture for shard in shards)
        if without_picture:
            logging.warning("%s: %d samples without a picture are left out", self.name, without_picture)
        self._spans = np.concatenate([shard.spans for shard in shards])
        if not len(self._spans):
            raise UserError(f"{self.name}: no member is a picture (.{', .'.join(IMAGE_SUFFIXES)})")
        self._shards = np.repeat(np.arange(len(shards)), [len(shard.keys) for shard in shards])
        self._keys = np.concatenate([shard.keys for shard in shards])
        self._hashes = np.concatenate([shard.hashes for shard in shards])
        self.has_labels = bool(np.all(self._spans[:, _CLASS, 0] != _ABSENT))

    def __len__(self) -> int:
        return len(self._spans)

    def key(self, index: int) -> str:
        return self._keys[index].decode("utf-8", "surrogateescape")

    def key_hashes(self) -> np.ndarray:
        return self._hashes.copy()

    def __getitem__(self, index: int) -> Record:
        image, text, json, label, labels = self._read(index, (_IMAGE, _TEXT, _JSON, _CLASS, _CLASSES))
        texts, fault = self._choose(text, json)
        one = int(label) if label.strip().isdigit() else None
        return Record(image, texts, self.key(index), one, _classes(labels), fault)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._choose(*self._read(index, (_TEXT, _JSON)))[0]

    def _read(self, index: int, parts: Sequence[int]) -> list[bytes]:
        """The bytes of some members of a sample; none where it has no such member."""
        path = self._paths[self._shards[index]]
        spans = self._spans[index, parts].tolist()
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                found = [b"" if offset == _ABSENT else os.pread(descriptor, size, offset) for offset, size in spans]
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BadSample(BadReason.MISSING, str(error)) from error
        if any(len(data) < size for data, (_, size) in zip(found, spans, strict=True)):
            raise BadSample(BadReason.MISSING, f"{path} is shorter than it was when the run started")
        return found

    def _choose(self, text: bytes, json: bytes) -> Captions:
        from_text = captions_from_text(text)
        if from_text[0] and not self._caption_field:
            return from_text
        from_json = captions_from_json(json, self._caption_field)
        return from_json if from_json[0] or from_text == ((), None) else from_text


def _classes(data: bytes) -> tuple[int, ...] | None:
    """The classes that a `.npy` array marks; None where there is none, or it holds something else."""
    try:
        marks = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError):
        return None
    return tuple(np.flatnonzero(marks).tolist()) if isinstance(marks, np.ndarray) and marks.ndim == 1 else None


def _scan_shard(path: str) -> _Shard:
    status = os.stat(path)
    return _scan_file(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _scan_file(path: str, size: int, mtime: int) -> _Shard:
    """The samples of a tar. Kept, because a run opens its data for the tokenizer and for both splits of each stage."""
    del size, mtime  # of the file that was scanned: another one has others
    samples: dict[str, list[list[int]]] = {}
    for name, offset, length in tar.scan(path):
        folder, base = os.path.split(name)
        stem, _, suffix = base.partition(".")
        part = _PARTS.get(suffix.lower())
        if part is None or not stem:  # a dot in front: what macOS leaves beside each file
            continue
        sample = samples.setdefault(os.path.join(folder, stem), [[_ABSENT, 0] for _ in range(5)])
        sample[part] = [offset, length]
    whole = {key: spans for key, spans in samples.items() if spans[_IMAGE][0] != _ABSENT}
    return _Shard(
        np.array([key.encode("utf-8", "surrogateescape") for key in whole], np.bytes_),
        np.array([hash_key(key) for key in whole], np.uint64),
        np.array(list(whole.values()), np.int64).reshape(len(whole), 5, 2),
        len(samples) - len(whole),
    )
