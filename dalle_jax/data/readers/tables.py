"""Tables of images and their captions, in the formats in which people hold them."""

import dataclasses
import functools
import itertools
import os
import posixpath
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from dalle_jax import storage
from dalle_jax.config import parse_json
from dalle_jax.data.captions import CAPTION_FIELDS, Captions, captions_from_mapping
from dalle_jax.data.readers import delimited
from dalle_jax.data.records import LeftOut
from dalle_jax.data.rows import Several, row_of
from dalle_jax.errors import UserError, closest
from dalle_jax.fetched import NotFetched, check_fetched
from dalle_jax.text_files import decode_text, split_lines

IMAGE_FIELDS = (
    "file_name", "image", "file", "filename", "filepath", "path", "image_name", "image_path", "image_file", "file_path",
)  # fmt: skip
"""Where the name of an image is looked for when the config names no field, in this order and in any case."""

URL_FIELDS = ("url", "image_url", "img_url")
"""Where its address is looked for, when nothing names the file: downloads are often called by the end of it."""

TABLE_CAPTION_FIELDS = (*CAPTION_FIELDS, "comment")
"""The same for captions; `comment` is Flickr30k's."""

_TOKENS = (".token", ".token.txt")
_OBJECTS = (".jsonl", ".ndjson", ".json", ".parquet")


@dataclasses.dataclass(frozen=True)
class Table:
    """What a table says."""

    captions: dict[str, Captions]
    """Of each image, by its name as it is written, in the order of the table."""
    fields: tuple[str, ...]
    """Of the first row."""
    caption_fields: tuple[str, ...]
    """Those of them that hold captions."""
    left_out: tuple[LeftOut, ...] = ()
    by_url: bool = False
    """Whether names are the ends of URLs, which downloaded files may have or not."""


class _Urls:
    """The addresses of images, by the names that they end in."""

    def __init__(self):
        self.seen: dict[str, str] = {}
        self.alike: set[str] = set()
        """Ends of more than one."""

    def end_of(self, url: str) -> str:
        """`photo 1.jpg` of `http://host/a/photo%201.jpg?w=640`; empty where its path names nothing."""
        name = posixpath.basename(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
        if self.seen.setdefault(name, url) != url:
            self.alike.add(name)
        return name


def read_table(path: str, caption_field: str = "", image_field: str = "") -> Table:
    """Reads a table whole; an image that several rows name has the captions of all of them.

    Args:
      path: of a file that `rows` reads.
      caption_field: of captions; empty: the first of `TABLE_CAPTION_FIELDS` that holds any.
      image_field: of names; empty: the first of `IMAGE_FIELDS` that holds one.

    Raises:
      UserError: it cannot be read, or a row has no such field; names the line.
    """
    captions: dict[str, Captions] = {}
    fields: tuple[str, ...] = ()
    short, example = 0, ""
    urls = _Urls()
    for place, row in rows(path, image_field):
        keys = tuple(map(str, row))
        if len(keys) < len(fields) and not path.lower().endswith(_OBJECTS):  # objects leave out what they like
            short, example = short + 1, example or place
        else:
            fields = fields or keys
            if caption_field and caption_field not in row:
                near = closest(caption_field, keys)
                raise UserError(f"{path}, {place}: no field '{caption_field}'{near} (config.data.caption_field)")
        name = _image_name(path, place, row, image_field)
        if delimited.is_url(name):
            name = urls.end_of(name)
        texts, fault = _captions(row, caption_field)
        before, fault_before = captions.get(name, ((), None))
        # A readable caption is worth more than the fault of another row.
        merged = before + texts
        captions[name] = (merged, None if merged else fault or fault_before)
    for name in urls.alike:
        captions.pop(name, None)  # from which of the URLs a file of that name came, nothing says
    left_out = (LeftOut(f"rows of {os.path.basename(path)} with fewer fields than its header", short, example),)
    held = (caption_field,) if caption_field else _keys(fields, TABLE_CAPTION_FIELDS)
    alike = f"file names in which several URLs of {os.path.basename(path)} end"
    left_out = (left_out if short else ()) + ((LeftOut(alike, len(urls.alike), min(urls.alike)),) if urls.alike else ())
    return Table(captions, fields, held, left_out, by_url=bool(urls.seen))


def is_table_name(path: str) -> bool:
    """Whether a file may be a table, by the end of its name; Kaggle's Flickr8k calls one `captions.txt`."""
    return path.lower().endswith((".csv", ".tsv", ".txt", *_TOKENS, *_OBJECTS))


def names_images(path: str) -> bool:
    """Whether the first row of a file names an image and says something of it, as those of tables do.

    Raises:
      NotFetched: something else stands in its place, and whether it is a table is not known.
    """
    try:
        _, row = next(rows(path))
    except NotFetched:
        raise
    except (StopIteration, UserError):
        return False
    return len(row) > 1 and bool(_keys(tuple(map(str, row)), (*IMAGE_FIELDS, *URL_FIELDS)))


def rows(path: str, image_field: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a table in any format, each with its place in it, such as `line 12`.

    By the end of the name: `.csv` and `.tsv` (see `delimited`), `.token` and `.token.txt` (Flickr's: `name#0`, a tab, a
    caption), `.jsonl` (an object a line), `.json` (a list of objects, or COCO's annotations),
    `.parquet`; any other is read as `.csv`.

    Raises:
      UserError: it cannot be read; names the line.
    """
    low = path.lower()
    if low.endswith(".parquet"):
        yield from _parquet_rows(path)
    elif low.endswith(_TOKENS):
        yield from _token_rows(path, read_text(path))
    elif low.endswith((".jsonl", ".ndjson")):
        yield from _json_lines(path, read_text(path))
    elif low.endswith(".json"):
        yield from _json_rows(path, read_text(path))
    else:
        known = {image_field.lower()} if image_field else set(IMAGE_FIELDS)
        yield from ((f"line {line}", row) for line, row in delimited.rows(path, read_text(path), known))


def read_text(path: str) -> str:
    """A text in UTF-8, or in UTF-16 with its mark; bytes that are neither are kept as surrogates.

    So one caption is bad, not all.

    Raises:
      UserError: it holds zero bytes, which no text does.
    """
    data = storage.read(path)
    check_fetched(data, path)
    try:
        return decode_text(data, "surrogateescape")
    except UnicodeDecodeError as error:
        if error.reason == "zero byte":
            what = "holds zero bytes, and so is not text: name another file, or write it as UTF-8"
            raise UserError(f"{path} {what}") from error
        raise UserError(f"{path} begins as UTF-16 and is damaged ({error.reason}): write it again, as UTF-8") from error


def _image_name(path: str, place: str, row: Mapping[str, Any], image_field: str) -> str:
    fields = tuple(map(str, row))
    keys = (image_field,) if image_field else _keys(fields, IMAGE_FIELDS)
    if not keys:
        keys = _keys(fields, URL_FIELDS)
    key, name = next(((key, row[key]) for key in keys if row.get(key)), ("", None))
    if isinstance(name, Several):
        raise UserError(f"{path}, {place} has '{key}' twice: which of them names the image? give one another name")
    if not isinstance(name, str):
        raise UserError(
            f"{path}, {place}: no image is named by {image_field or ' or '.join(IMAGE_FIELDS)} (its fields: "
            f"{', '.join(fields)[:200]}); set config.data.image_field{closest(image_field, fields)}"
        )
    return name


def _captions(row: Mapping[str, Any], caption_field: str) -> Captions:
    for key in (caption_field,) if caption_field else _keys(tuple(map(str, row)), TABLE_CAPTION_FIELDS):
        captions, fault = captions_from_mapping(row, key)
        if captions or fault:
            return captions, fault
    return (), None


@functools.lru_cache(64)
def _keys(fields: tuple[str, ...], usual: tuple[str, ...]) -> tuple[str, ...]:
    """The fields that are called by a usual name, in any case; in the order of the names."""
    return tuple(field for name in usual for field in fields if field.lower() == name)


def _token_rows(path: str, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for line, content in enumerate(split_lines(text), 1):
        name, tab, caption = content.partition("\t")
        if not content.strip():
            continue
        if not tab:
            raise UserError(f"{path}, line {line} has no tab between the name of an image and its caption")
        yield f"line {line}", {"file_name": name.rpartition("#")[0] or name, "caption": caption}


def _json_lines(path: str, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for line, content in enumerate(split_lines(text), 1):
        if not content.strip():
            continue
        try:
            row = parse_json(content, row_of)
        except ValueError as error:
            reason = getattr(error, "msg", error)  # JSON's own message counts lines within this one
            raise UserError(f"{path}, line {line} is not JSON ({reason}): mend or delete the line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {line} is not a JSON object: write one object a line")
        yield f"line {line}", row


def _json_rows(path: str, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        value = parse_json(text, row_of)
    except ValueError as error:
        if "Extra data" not in str(error):
            raise UserError(f"{path} is not JSON ({error})") from error
        yield from _json_lines(path, text)  # an object a line, under the name of the other format
        return
    if isinstance(value, dict) and "annotations" in value:
        yield from _coco_rows(path, value)
        return
    for i, row in enumerate(value if isinstance(value, list) else ()):
        if not isinstance(row, dict):
            raise UserError(f"{path}, entry {i} is not a JSON object: write a list of objects")
        yield f"entry {i}", row
    if not isinstance(value, list):
        raise UserError(f"{path} is neither a list of JSON objects nor COCO's JSON of captions")


def _coco_rows(path: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """COCO's annotations: every image, with no caption or with some."""
    try:
        names = {image["id"]: image["file_name"] for image in value.get("images", ())}
        told = [(entry["image_id"], entry.get("caption")) for entry in value["annotations"]]
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not COCO's JSON of captions (its entries lack {error})") from error
    unknown = next((image for image, _ in told if image not in names), None)
    if unknown is not None:
        raise UserError(f"{path} names no file for image {unknown}, of which it has a caption: its 'images' lack it")
    captioned = {image for image, _ in told}
    uncaptioned = ((image, None) for image in names if image not in captioned)
    for i, (image, caption) in enumerate(itertools.chain(told, uncaptioned)):
        yield f"annotation {i}", {"file_name": names[image], "caption": caption}


def _parquet_rows(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from dalle_jax.data.readers.parquet import read_rows  # pyarrow takes a while, which other tables do without

    yield from ((f"row {i}", row) for i, row in enumerate(read_rows(path)))
