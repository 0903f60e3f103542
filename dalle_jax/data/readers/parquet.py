"""Parquet files with the bytes of the images in them, as Hugging Face stores data sets, read in any order."""

import bisect
import collections
import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from dalle_jax import storage
from dalle_jax.data.captions import CAPTION_FIELDS, captions_from_mapping
from dalle_jax.data.paths import distinct_names
from dalle_jax.data.readers.own_splits import splits_in_names
from dalle_jax.data.records import BadReason, BadSample, Record, Source
from dalle_jax.data.rows import row_of
from dalle_jax.errors import UserError, closest
from dalle_jax.fetched import check_fetched

_log = logging.getLogger(__name__)

_IMAGE_FIELDS = ("image", "img", "jpg", "png", "picture", "image_bytes", "bytes")
_KEPT = 8  # row groups, of which each holds its images
_LARGE = 1 << 28  # bytes of a row group, all of which are read for one sample


class Parquet(Source):
    """Rows of several files: an image in `image.bytes` (or in a column of bytes), its captions, its class.

    A sample is read with its row group, and the last few groups are kept: groups of about a hundred rows, as Hugging
    Face writes them for images, are what random order is quick with. A sample's key is its file's name and its row.
    """

    def __init__(self, paths: Sequence[str], *, caption_field: str = "", image_field: str = "", label_field: str = ""):
        """Reads the footers of the files.

        Args:
          paths: at least one.
          caption_field: column of captions, each one text or a list of them, or several columns of that name; empty:
            `caption`, `captions` or `text`.
          image_field: column of images; empty: the one of bytes, or that is called as images usually are.
          label_field: column of classes; empty: `label`, where there is one.

        Raises:
          UserError: a file is damaged, has other columns than the first, or shares its name with another; or there is
            no column of images, or two of its name, or no row.
        """
        self.name = f"parquet {paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        self._paths, self._names = list(paths), distinct_names(paths)
        self.division = splits_in_names(paths)
        with _open(self._paths[0]) as file:
            schema = file.schema_arrow
        self._image = _image_column(self._paths[0], schema, image_field)
        self._caption = _column("caption_field", caption_field, schema, CAPTION_FIELDS)
        self._label = _column("label_field", label_field, schema, ("label",))
        wanted = [name for name in (self._image, self._caption, self._label) if name]
        _check_names(self._paths[0], schema, self._image, self._label)
        self._firsts: list[int] = []  # index of each file's first row
        self._groups: list[tuple[int, int]] = []  # of each row group: its file, and its number there
        self._ends: list[int] = []  # of each row group: the index after its last row
        largest, unlabelled = (0, ""), 0
        for i, path in enumerate(self._paths):
            self._firsts.append(len(self))
            with _open(path) as file:
                lacking = [name for name in wanted if name not in file.schema_arrow.names]
                if lacking:
                    raise UserError(f"{path} has no column '{lacking[0]}', which {self._paths[0]} has")
                for group in range(file.num_row_groups):
                    about = file.metadata.row_group(group)
                    self._groups.append((i, group))
                    self._ends.append(len(self) + about.num_rows)
                    unlabelled += _nulls(about, self._label)
                    largest = max(largest, (about.total_byte_size, path))
        if not len(self):
            raise UserError(f"{self.name} has no rows")
        _warn_of_large_groups(*largest)
        self.class_names = _class_names(schema, self._label)
        self.has_labels = (
            bool(self._label) and pa.types.is_integer(_plain(schema.field(self._label).type)) and unlabelled < len(self)
        )
        self.captions_from = f"the column '{self._caption}'" if self._caption else (
            f"the columns {' or '.join(CAPTION_FIELDS)} (it has {', '.join(schema.names)}; config.data.caption_field "
            "names another)"
        )  # fmt: skip
        self._cache = _Cache()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def key(self, index: int) -> str:
        file = bisect.bisect_right(self._firsts, index) - 1
        return f"{self._names[file]}/{index - self._firsts[file]}"

    def __getitem__(self, index: int) -> Record:
        row = self._row(index, [name for name in (self._image, self._caption, self._label) if name])
        texts, fault = captions_from_mapping(row, self._caption) if self._caption else ((), None)
        image = row[self._image]
        if isinstance(image, dict):
            image = image.get("bytes")
        if not isinstance(image, bytes):
            raise BadSample(BadReason.MISSING, f"{self.key(index)} holds no bytes of an image")
        label = row.get(self._label) if self.has_labels else None
        return Record(image, texts, self.key(index), label, captions_fault=fault)

    def captions(self, index: int) -> tuple[str, ...]:
        if not self._caption:
            return ()
        return captions_from_mapping(self._row(index, [self._caption]), self._caption)[0]

    def label(self, index: int) -> int | None:
        return self._row(index, [self._label])[self._label] if self.has_labels else None

    def _row(self, index: int, columns: list[str]) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = bisect.bisect_right(self._ends, index)
        first = self._ends[place - 1] if place else 0
        table = self._cache.get((place, *columns), lambda: self._read(place, columns))
        try:
            values = [column.to_pylist()[0] for column in table.slice(index - first, 1).columns]
            return row_of(zip(table.column_names, values, strict=True))
        except UnicodeDecodeError as error:  # pyarrow takes a writer's word that a text is UTF-8
            raise BadSample(BadReason.CAPTION_ENCODING, self.key(index)) from error

    def _read(self, place: int, columns: list[str]) -> pa.Table:
        file, group = self._groups[place]
        try:
            with _open(self._paths[file]) as opened:
                return opened.read_row_group(group, columns=columns)
        except UserError as error:
            raise BadSample(BadReason.MISSING, str(error)) from error
        except (OSError, pa.ArrowException) as error:
            raise BadSample(BadReason.TRUNCATED, f"{self._paths[file]}: {error}") from error


class _Cache:
    """The row groups that were read last; each worker process begins with none."""

    def __init__(self):
        self._kept: collections.OrderedDict[tuple, pa.Table] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):
        return _Cache, ()

    def get(self, key: tuple, read: Callable[[], pa.Table]) -> pa.Table:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        table = read()
        with self._lock:
            self._kept[key] = table
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return table


def read_rows(path: str) -> Iterator[dict[str, Any]]:
    """The rows of a table of metadata, column by column as Python's values.

    Raises:
      UserError: it is not a Parquet file, or damaged.
    """
    with _open(path) as file:
        names = file.schema_arrow.names
        try:
            for batch in file.iter_batches(1024):
                columns = [column.to_pylist() for column in batch.columns]
                yield from (row_of(zip(names, values, strict=True)) for values in zip(*columns, strict=True))
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path} is damaged ({error})") from error


@contextlib.contextmanager
def _open(path: str) -> Iterator[pq.ParquetFile]:
    """Raises: UserError: it is not there, or no Parquet file."""
    with contextlib.ExitStack() as stack:
        try:
            where = stack.enter_context(fsspec.open(path, "rb")) if storage.is_remote(path) else path
            file = stack.enter_context(pq.ParquetFile(where))
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing") from error
        except pa.ArrowInvalid as error:
            if not storage.is_remote(path):
                check_fetched(storage.read_parts(path, [(0, 512)])[0], path)
            raise UserError(f"{path} is not a Parquet file, or cut short ({error})") from error
        yield file


def _warn_of_large_groups(size: int, path: str) -> None:
    if size > _LARGE:
        advice = "all of which are read for one sample: write the files with row_group_size=100"
        _log.warning("%s: a row group holds %d MB, %s", path, size >> 20, advice)


def _nulls(group: pq.RowGroupMetaData, name: str) -> int:
    """How many rows of a group are known to have nothing in a column."""
    columns = map(group.column, range(group.num_columns))
    found = next((column.statistics for column in columns if name and column.path_in_schema == name), None)
    return found.null_count if found is not None and found.has_null_count else 0


def _check_names(path: str, schema: pa.Schema, *names: str) -> None:
    """Raises: UserError: a column shares its name with another, and which of them is meant nothing says."""
    for name in names:
        if schema.names.count(name) > 1:
            raise UserError(f"{path} has two columns '{name}': give one another name")


def _image_column(path: str, schema: pa.Schema, chosen: str) -> str:
    """The chosen column, else the only one that holds bytes, else the one of a usual name."""
    holding = list(dict.fromkeys(field.name for field in schema if _holds_bytes(field.type)))
    if chosen:
        _column("image_field", chosen, schema, ())
        if chosen not in holding:
            raise UserError(f"{path}: the column '{chosen}' holds no bytes of images (config.data.image_field)")
        return chosen
    found = holding if len(holding) == 1 else [name for name in _IMAGE_FIELDS if name in holding]
    if not found:
        raise UserError(
            f"{path} has no column with the bytes of images (its columns: {', '.join(schema.names)}): name it with "
            "config.data.image_field; where it names image files, it is a table for config.data.source=folder"
        )
    return found[0]


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values, where they are stored as places in a dictionary of them."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _holds_bytes(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _column(option: str, chosen: str, schema: pa.Schema, usual: Sequence[str]) -> str:
    """The chosen column, else the first of a usual name; empty where there is none."""
    if chosen and chosen not in schema.names:
        raise UserError(
            f"there is no column '{chosen}'{closest(chosen, schema.names)} (config.data.{option}; there are: "
            f"{', '.join(schema.names)})"
        )
    return chosen or next((name for name in usual if name in schema.names), "")


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Of a label's classes, as Hugging Face's `datasets` notes them."""
    try:
        noted = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
        return tuple(map(str, noted))
    except (KeyError, TypeError, ValueError):
        return ()
