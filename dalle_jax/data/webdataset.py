"""Webdataset tars as img2dataset writes them, read in any order without being copied or unpacked."""

import bisect
import io
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging

from dalle_jax import storage
from dalle_jax.data.captions import Captions, captions_from_json, captions_from_text
from dalle_jax.data.records import BadReason, BadSample, Record, Source
from dalle_jax.data.tar_index import IMAGE_SUFFIXES, PARTS, TarIndex, tar_index
from dalle_jax.errors import UserError

_THREADS = 16  # that open tars: each waits most of its time for a bucket or a network file system


class WebDataset(Source):
    """Files that share a name up to its first dot are one sample: a picture, and `.txt`, `.json` or labels beside it.

    Captions are the lines of the `.txt`, else the caption field of the `.json`; where `caption_field` is given, that
    field of the `.json` goes first. `.cls` holds a class index, `.npy` a 0 or 1 for each class (CLIP_benchmark's
    multi-label data sets).

    The tars are scanned once (`tar_index`); a sample is then a few reads at known offsets.
    """

    def __init__(
        self, paths: Sequence[str], *, caption_field: str = "", find_index: Callable[[str], TarIndex] = tar_index
    ):
        """Finds or makes the indices of the tars, by `find_index`.

        Raises:
          UserError: where one is cut short, compressed or damaged (naming it and the offset), or no sample in any of
            them has a picture.
        """
        self.name = f"webdataset {paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        self._paths = list(paths)
        self._caption_field = caption_field
        with ThreadPoolExecutor(_THREADS) as pool:
            self._tars = list(pool.map(find_index, self._paths))
        without_picture = sum(index.without_picture for index in self._tars)
        if without_picture:
            logging.warning("%s: %d samples without a picture are left out", self.name, without_picture)
        self._ends = list(itertools.accumulate(map(len, self._tars)))
        if not len(self):
            raise UserError(f"{self.name}: no member is a picture (.{', .'.join(IMAGE_SUFFIXES)})")
        self.has_labels = all(index.has_everywhere("cls") for index in self._tars if len(index))

    def __len__(self) -> int:
        return self._ends[-1]

    def key(self, index: int) -> str:
        tar, place = self._locate(index)
        return self._tars[tar].key(place)

    def key_hashes(self) -> np.ndarray:
        return np.concatenate([index.rows["hash"] for index in self._tars])

    def __getitem__(self, index: int) -> Record:
        image, text, json, label, labels = self._read(index, PARTS)
        texts, fault = self._choose(text, json)
        one = int(label) if label.strip().isdigit() else None
        return Record(image, texts, self.key(index), one, _classes(labels), fault)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._choose(*self._read(index, ("txt", "json")))[0]

    def _locate(self, index: int) -> tuple[int, int]:
        """Which tar, and which sample of it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        tar = bisect.bisect_right(self._ends, index)
        return tar, index - (self._ends[tar - 1] if tar else 0)

    def _read(self, index: int, parts: tuple[str, ...]) -> list[bytes]:
        """The bytes of some members of a sample; none where it has no such member."""
        tar, place = self._locate(index)
        path, spans = self._paths[tar], self._tars[tar].spans(place, parts)
        present = [span for span in spans if span is not None]
        try:
            found = iter(storage.read_parts(path, present))
        except OSError as error:
            raise BadSample(BadReason.MISSING, str(error)) from error
        members = [b"" if span is None else next(found) for span in spans]
        if any(span is not None and len(data) < span[1] for data, span in zip(members, spans, strict=True)):
            raise BadSample(BadReason.MISSING, f"{path} is shorter than it was when the run started")
        return members

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
