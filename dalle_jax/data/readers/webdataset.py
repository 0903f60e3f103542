"""Webdataset tars as img2dataset writes them, read in any order without being copied or unpacked."""

import bisect
import functools
import io
import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dalle_jax import storage
from dalle_jax.data.captions import Captions, captions_from_json, captions_from_text
from dalle_jax.data.config import HeldOutBy, TarKey
from dalle_jax.data.left_out import Tally, in_words
from dalle_jax.data.paths import distinct_names
from dalle_jax.data.readers.own_splits import splits_in_names
from dalle_jax.data.readers.webdataset_index import DOTTED, IMAGE_SUFFIXES, PARTS, TarIndex, tar_index
from dalle_jax.data.records import BadReason, BadSample, LeftOut, Record, Source, hash_key
from dalle_jax.errors import UserError

_log = logging.getLogger(__name__)

_THREADS = 16  # that open tars: each waits most of its time for a bucket or a network file system


class WebDataset(Source):
    """Files that share a key are one sample: an image, and `.txt`, `.json` or labels beside it.

    A key is a name up to its first dot, or its last (`TarKey`). Where a key has several images, the last in its tar
    is used. Keys may come again in other tars; by `HeldOutBy.TAR_AND_KEY` a record's key has the tar's name before it.

    Captions are the lines of the `.txt`, else the caption field of the `.json`; where `caption_field` is given, that
    field of the `.json` goes first. `.cls` holds a class index, `.npy` a 0 or 1 for each class (CLIP_benchmark's
    multi-label data sets).

    The tars are scanned once (`tar_index`); a sample is then a few reads at known offsets.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        caption_field: str = "",
        key: TarKey = TarKey.FIRST_DOT,
        held_out_by: HeldOutBy = HeldOutBy.KEY,
        find_index: Callable[[str], TarIndex] | None = None,
    ):
        """Finds or makes the indices of the tars, by `find_index` or else by `tar_index`.

        Raises:
          UserError: where one is cut short, compressed or damaged (naming it and the offset), or no sample in any of
            them has an image.
        """
        self.name = f"webdataset {paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        self._paths = list(paths)
        self._caption_field = caption_field
        self._tar_names = [name.removesuffix(".tar") for name in distinct_names(paths)]
        self._by_tar = held_out_by is HeldOutBy.TAR_AND_KEY
        with ThreadPoolExecutor(_THREADS) as pool:
            self._tars = list(pool.map(find_index or functools.partial(tar_index, key=key), self._paths))
        self.left_out = self._merge_left_out()
        self.division = splits_in_names(paths)
        if not any(index.count_any(("json",)) for index in self._tars):
            self.without_effect = {"caption_field": f"{self.name} has no .json members, in which it is looked for"}
        self._ends = list(itertools.accumulate(map(len, self._tars)))
        if not len(self):
            raise UserError(self._without_images())
        self.has_labels = (
            all(index.has_everywhere("cls") for index in self._tars if len(index)) and self._numbers_classes()
        )

    def _numbers_classes(self) -> bool:
        """Whether the `.cls` of the first sample is a number; names in them are not labels."""
        (label,) = self._read(0, ("cls",))
        if not label.strip().isdigit():
            _log.warning("%s: .cls files hold %r, and not numbers: there are no labels", self.name, label[:40])
        return label.strip().isdigit()

    def _merge_left_out(self) -> tuple[LeftOut, ...]:
        tally = Tally()
        for name, index in zip(self._tar_names, self._tars, strict=True):
            for found in index.left_out:
                tally.add(found.reason, f"{found.example} in {name}.tar", found.count)
        return tally.found()

    def _without_images(self) -> str:
        message = f"{self.name}: no member is an image (.{', .'.join(IMAGE_SUFFIXES)})"
        if any(found.reason == DOTTED for found in self.left_out):
            message += ": a key ends at the first dot of a name; set config.data.key=stem to end it at the last"
        return "; ".join([message, *(f"left out: {text}" for text in in_words(self.left_out))])

    def __len__(self) -> int:
        return self._ends[-1]

    def key(self, index: int) -> str:
        tar, place = self._locate(index)
        key = self._tars[tar].key(place)
        return f"{self._tar_names[tar]}/{key}" if self._by_tar else key

    def key_hashes(self) -> np.ndarray:
        hashes = [index.rows["hash"] for index in self._tars]
        if self._by_tar:
            hashes = [keys ^ np.uint64(hash_key(tar)) for keys, tar in zip(hashes, self._tar_names, strict=True)]
        return _mix(np.concatenate(hashes)) if self._by_tar else np.concatenate(hashes)

    def captioned(self) -> int | None:
        return sum(index.count_any(("txt", "json")) for index in self._tars)

    def __getitem__(self, index: int) -> Record:
        image, text, json, label, labels = self._read(index, PARTS)
        texts, fault = self._choose(text, json)
        one = int(label) if label.strip().isdigit() else None
        if one is None and self.has_labels:
            raise BadSample(BadReason.NO_LABEL, f"{self.key(index)}.cls holds {label[:40]!r}")
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


def _mix(hashes: np.ndarray) -> np.ndarray:
    """uint64 in place, one to one, each bit of every bit: the finaliser of SplitMix64 (Steele et al. 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        hashes ^= hashes >> np.uint64(shift)
        hashes *= np.uint64(factor)
    return hashes


def _classes(data: bytes) -> tuple[int, ...] | None:
    """The classes that a `.npy` array marks; None where there is none, or it holds something else."""
    try:
        marks = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError):
        return None
    return tuple(np.flatnonzero(marks).tolist()) if isinstance(marks, np.ndarray) and marks.ndim == 1 else None
