"""Captions as people store them: text files, JSON objects, columns of a table."""

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dalle_jax.config import parse_json
from dalle_jax.data.records import BadReason, BadSample, Source
from dalle_jax.data.rows import row_of
from dalle_jax.errors import UserError
from dalle_jax.fetched import GIT_LFS
from dalle_jax.text_files import decode_text, split_lines

CAPTION_FIELDS = ("caption", "captions", "text")
"""Where a caption is looked for when the config names no field, in this order."""

_READERS = 32
_PROBES = 64  # samples looked at before a data set counts as one without captions

Captions = tuple[tuple[str, ...], BadReason | None]
"""The captions of one image, and why there are none where they cannot be read."""


def captions_from_text(data: bytes) -> Captions:
    """Reads a `.txt` file: every line that is not blank is one caption."""
    if data.startswith(GIT_LFS):
        return (), BadReason.LFS_POINTER
    try:
        return clean(split_lines(decode_text(data)))
    except UnicodeDecodeError:
        return (), BadReason.CAPTION_ENCODING


def captions_from_json(data: bytes, field: str = "") -> Captions:
    """Reads the captions in a JSON object; see `captions_from_mapping`. Other JSON has none."""
    if data.startswith(GIT_LFS):
        return (), BadReason.LFS_POINTER
    try:
        value = parse_json(decode_text(data), row_of)
    except UnicodeDecodeError:
        return (), BadReason.CAPTION_ENCODING
    except ValueError:
        return (), BadReason.CAPTION_JSON if data else None
    return captions_from_mapping(value, field) if isinstance(value, dict) else ((), None)


def captions_from_mapping(mapping: Mapping[str, Any], field: str = "") -> Captions:
    """Reads the captions under `field`, or under the first usual name that holds any.

    The value may be one caption, as a string or as bytes, a list of them, or a list of objects with a caption each
    (COCO in TFDS).
    """
    for name in (field,) if field else CAPTION_FIELDS:
        try:
            captions, fault = clean(_strings(mapping.get(name)))
        except RecursionError:  # lists in lists in lists, which hold no caption
            continue
        except UnicodeDecodeError:
            return (), BadReason.CAPTION_ENCODING
        if captions or fault:
            return captions, fault
    return (), None


def clean(texts: list[str]) -> Captions:
    """Collapses white space, drops what is empty, and finds the bytes that were not UTF-8, and zeros.

    Text that was decoded with `surrogateescape`, or holds half of a surrogate pair, cannot be encoded again.
    """
    captions = tuple(caption for text in texts if (caption := " ".join(text.split())))
    if any("\0" in caption for caption in captions):
        return (), BadReason.CAPTION_ENCODING
    try:
        for caption in captions:
            caption.encode()
    except UnicodeEncodeError:
        return (), BadReason.CAPTION_ENCODING
    return captions, None


def caption_list(texts: Any) -> list[str]:
    """Captions that a person hands over, as a list.

    Raises:
      UserError: they are no list of strings.
    """
    captions = listed(texts, "captions")
    for i, text in enumerate(captions):
        if not isinstance(text, str):
            raise UserError(f"caption {i} is not a string but {type(text).__name__}: {text!r:.40}")
    return captions


def listed(values: Any, what: str) -> list[Any]:
    """What a person hands over in an order of its own: a list, a generator, a column of a table.

    Raises:
      UserError: it is one string, a mapping, or has no order.
    """
    if isinstance(values, str | bytes | Mapping | set | frozenset) or not hasattr(values, "__iter__"):
        raise UserError(f"{what} come in a list, not as {type(values).__name__}: {values!r:.40}")
    return list(values)


def all_captions(source: Source, limit: int = 2_000_000) -> Iterator[str]:
    """Captions to train a tokenizer on: those of every record, or of `limit` records spread evenly over the source.

    Bad samples are passed over. Many are read at once, in order: from a bucket each takes tens of milliseconds.

    Raises:
      UserError: after the last record, where none has a caption; says why.
    """
    count, found = min(len(source), limit), False

    def read(i: int) -> tuple[str, ...]:
        try:
            return source.captions(i * len(source) // count)
        except BadSample:
            return ()

    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, count, 64 * _READERS):
            for captions in pool.map(read, range(start, min(start + 64 * _READERS, count))):
                found = found or bool(captions)
                yield from captions
    if not found:
        raise UserError("there are no captions to train a tokenizer on: " + _no_captions(source, _causes(source)))


def require_captions(source: Source) -> None:
    """Looks at samples all over the source: a data set without any caption is a mistake, not a bad sample.

    Raises:
      UserError: no sample has a caption, or one that cannot be read; says where captions were looked for.
    """
    causes = _causes(source)
    if None not in causes and BadReason.CAPTION_ENCODING not in causes:
        raise UserError(_no_captions(source, causes))


def _causes(source: Source) -> Counter[BadReason | None]:
    """Why samples all over the source have no captions; looks no further than the first that has one, which is None."""
    causes: Counter[BadReason | None] = Counter()
    probes = min(len(source), _PROBES)
    for i in range(probes):
        try:
            record = source[i * len(source) // probes]
        except BadSample as error:
            causes[error.reason] += 1
            continue
        causes[None if record.captions else record.captions_fault or BadReason.NO_CAPTION] += 1
        if record.captions:
            break
    return causes


def _no_captions(source: Source, causes: Counter[BadReason | None]) -> str:
    """What to say of a source without captions."""
    total = causes.total()
    about = f"{source.name} has no captions (none at {total} samples looked at)"
    if causes[BadReason.CAPTION_ENCODING]:
        return f"{about}: those of {causes[BadReason.CAPTION_ENCODING]} are not UTF-8; write them as UTF-8"
    if causes[BadReason.NO_CAPTION]:
        looked = f"they are looked for in {source.captions_from}" if source.captions_from else (
            "put a .txt of the same name beside each image, or name the caption's field with "
            "config.data.caption_field"
        )  # fmt: skip
        classes = any("/" in source.key(i) for i in range(min(len(source), 10)))
        names = "; of folders that are classes, config.data.caption_templates makes captions" if classes else ""
        return f"{about}: {looked}{names}"
    reasons = ", ".join(f"{count} {reason.value}" for reason, count in causes.items() if reason is not None)
    return f"{about}: they cannot be read ({reasons})"


def _strings(value: Any) -> list[str]:
    if isinstance(value, bytes):
        return [decode_text(value, "surrogateescape")]
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return next((_strings(value[name]) for name in CAPTION_FIELDS if name in value), [])
    if hasattr(value, "tolist"):  # numpy scalars and arrays of bytes
        return _strings(value.tolist())
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return []
