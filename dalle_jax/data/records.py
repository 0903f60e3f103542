"""What a data set is to the rest of the code: a random-access sequence of records."""

import abc
import dataclasses
import enum
import hashlib
import types
from collections.abc import Mapping

import numpy as np

_KEYS, _WHOLE = 1024, 16  # looked at for a fingerprint


class BadReason(enum.Enum):
    """Why a sample cannot be used; the metrics count bad samples under these names."""

    MISSING = "missing"  # the file that an index names is not there, or is shorter than it was
    TRUNCATED = "truncated"  # an image, or a record of tokens, that ends early or is damaged inside
    NOT_A_PICTURE = "not_a_picture"  # bytes in no format that is read
    TOO_LARGE = "too_large"  # over the pixel limit: decompression bombs
    NO_CAPTION = "no_caption"
    CAPTION_ENCODING = "caption_encoding"  # the caption is not UTF-8, nor UTF-16 with its mark
    NO_LABEL = "no_label"  # no number, or one of more than 32 bits, where other samples have labels
    CAPTION_JSON = "caption_json"  # what should hold the caption is not JSON
    LFS_POINTER = "lfs_pointer"  # a pointer of Git LFS stands in place of an image or a caption


class BadSample(Exception):
    """A sample that cannot be used. `Batches` replaces it and counts it; a person sees it only as a count."""

    def __init__(self, reason: BadReason, detail: str = ""):
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What made the tokens of a data set that was encoded beforehand: only a decoder on the same codec can use them."""

    codec: str
    """Fingerprint of the codec's weights (`FrozenCodec.fingerprint`)."""
    codebook_size: int
    grid_size: int
    """Tokens a side."""
    image_size: int
    """Pixels a side of what the codec was given."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One sample as it is stored."""

    image: bytes | np.ndarray
    """An encoded image, or uint8 [height, width, 3]; b"" where the record holds tokens in its place."""
    captions: tuple[str, ...]
    """All captions of the image, without surrounding space and none of them empty; () where it has none."""
    key: str
    """Names the sample within its source; held-out splits hash it, so it must not depend on where the data lie."""
    label: int | None = None
    labels: tuple[int, ...] | None = None
    """All classes of the image, where the data set notes every one that it shows (VOC 2007)."""
    captions_fault: BadReason | None = None
    """Why there are no captions, where they are unreadable rather than absent. Codecs train on the image all the
    same, so this is not a `BadSample` yet."""
    tokens: np.ndarray | None = None
    """int32 [crops, grid_size ** 2]: the image as a codec sees several crops of it, which are alternatives."""


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """What was found beside the samples of a source and is not among them, under one reason."""

    reason: str
    """A plural phrase: `images that captions.csv does not name`."""
    count: int
    example: str
    """One of them: a path, a key or a line number."""


class Source(abc.ABC):
    """A random-access sequence of records. Picklable, because worker processes get a copy."""

    name: str
    """What a person calls it, for messages: its kind and path."""
    has_labels: bool = False
    """Whether every record has a label."""
    class_names: tuple[str, ...] = ()
    """Of the labels, in their order; () where the source does not know them."""
    encoding: Encoding | None = None
    """Of the tokens, where records hold any."""
    has_images: bool = True
    """Whether records hold images; where only some do (a mixture), the others hold tokens."""
    part_names: tuple[str, ...] = ()
    """Of a mixture's parts."""
    captions_from: str = ""
    """Where captions were looked for, for the message that there are none; empty: each record says."""
    left_out: tuple[LeftOut, ...] = ()
    """What was found where the samples lie and is not among them; a person is told at the start of a run."""
    held_out: np.ndarray | None = None
    """Indices of the samples that the data themselves hold out, ascending; None: they do not say."""
    division: str = ""
    """What the data's own splits were used as, in words; a person is told at the start of a run."""
    without_effect: Mapping[str, str] = types.MappingProxyType({})
    """Options of `SourceConfig` that have no effect on what was found, and why."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Record:
        """Reads one record.

        Raises:
          BadSample: where it cannot be read.
        """

    @abc.abstractmethod
    def key(self, index: int) -> str:
        """The record's key, without reading its image."""

    def captions(self, index: int) -> tuple[str, ...]:
        """The record's captions; cheaper than `self[index]` where a source can leave the image unread.

        Raises:
          BadSample: where they cannot be read.
        """
        return self[index].captions

    def label(self, index: int) -> int | None:
        """The record's label; cheaper than `self[index]` where a source can leave the image unread.

        Raises:
          BadSample: where it cannot be read.
        """
        return self[index].label

    def captioned(self) -> int | None:
        """How many records have captions, where names or a table tell; None: each would have to be read."""
        return None

    def key_hashes(self) -> np.ndarray:
        """uint64 [len]: a hash of every key, evenly spread and the same in every process and release."""
        return np.fromiter((hash_key(self.key(i)) for i in range(len(self))), np.uint64, len(self))

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that are the same for the same data, wherever they lie; the cost is constant.

        Of the number of records, of keys spread over them, and of a few whole records.
        """
        count, digest = len(self), hashlib.sha256()
        digest.update(str(count).encode())
        for i in _spread(count, _KEYS):
            digest.update(self.key(i).encode("utf-8", "surrogateescape") + b"\0")
        for i in _spread(count, _WHOLE):
            try:
                record = self[i]
                tokens = b"" if record.tokens is None else record.tokens.tobytes()
                digest.update(bytes(record.image) + tokens + repr(record.captions).encode("utf-8", "surrogateescape"))
            except BadSample as error:
                digest.update(error.reason.value.encode())
        return digest.hexdigest()[:12]

    def part_of(self, index: int) -> int:
        """Which of `part_names` the record is of; 0 where there are no parts."""
        del index
        return 0

    def alternatives(self, index: int) -> range:
        """The records among which another is drawn where this one is bad: all, or those of its part of a mixture."""
        del index
        return range(len(self))


def _spread(count: int, most: int) -> list[int]:
    """At most so many indices, the first and the last among them."""
    return sorted({i * (count - 1) // max(min(count, most) - 1, 1) for i in range(min(count, most))})


class Subset(Source):
    """Some records of a source (`whole`), in the order of `indices`."""

    def __init__(self, source: Source, indices: np.ndarray, name: str):
        self.whole = source
        self._indices = indices
        self.name = name
        self.has_labels = source.has_labels
        self.class_names = source.class_names
        self.captions_from = source.captions_from

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self.whole[self._place(index)]

    def key(self, index: int) -> str:
        return self.whole.key(self._place(index))

    def captions(self, index: int) -> tuple[str, ...]:
        return self.whole.captions(self._place(index))

    def _place(self, index: int) -> int:
        return int(self._indices[index])


def whole_of(source: Source) -> Source:
    """What a source holds a part of for a run, where some of it is held out; else the source."""
    return source.whole if isinstance(source, Subset) else source


class Rest(Subset):
    """All records of a source but some, in its order: what it takes in memory, in every worker, is that of the few."""

    def __init__(self, source: Source, left_out: np.ndarray, name: str):
        """Args:
        source: of which records.
        left_out: indices, ascending.
        name: of what is left.
        """
        # How many records are left before each that is left out: they rise with it.
        before = left_out.astype(np.int64) - np.arange(len(left_out))
        super().__init__(source, before.astype(left_out.dtype), name)

    def __len__(self) -> int:
        return len(self.whole) - len(self._indices)

    def _place(self, index: int) -> int:
        # A number of another type would have the whole table converted for every record.
        return index + int(np.searchsorted(self._indices, self._indices.dtype.type(index), side="right"))


def hash_key(key: str) -> int:
    """A 64-bit hash that is the same in every process and release."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")
