"""A folder of pictures, with captions beside them or in one table."""

import csv
import io
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from dalle_jax import storage
from dalle_jax.config import parse_json
from dalle_jax.data.captions import Captions, captions_from_mapping, captions_from_text
from dalle_jax.data.records import BadReason, BadSample, Record, Source
from dalle_jax.data.tar_index import IMAGE_SUFFIXES
from dalle_jax.errors import UserError, closest

TABLES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
"""A table of pictures and captions in the folder, the first that is there; `metadata` is what Hugging Face writes."""

_IMAGE_FIELDS = ("file_name", "image", "file", "filename", "filepath", "path")


class Folder(Source):
    """Pictures in a folder and below it.

    With a table, its rows are the data set: a picture named in several rows has several captions. Without one, every
    picture is a sample, and each line of the `.txt` of the same name is a caption.
    """

    def __init__(self, path: str, *, caption_field: str = "", image_field: str = ""):
        """Lists the folder, or reads its table.

        Raises:
          UserError: where the folder or the pictures are missing, or the table cannot be read.
        """
        self._root = storage.expanduser(path)
        self.name = f"folder {path}"
        if not path or not epath.Path(self._root).is_dir():
            raise UserError(f"config.data.path='{path}' is not a folder: name the folder with the pictures")
        beside = storage.files_in(self._root)
        table = next((name for name in TABLES if name in beside), None)
        self._captions: dict[str, Captions] | None = None
        if table:
            self.name = f"folder {path} ({table})"
            self._captions = _read_table(storage.join(self._root, table), caption_field, image_field)
            self._files = list(self._captions)
        else:
            self._files = sorted(_pictures(self._root))
        if not self._files:
            raise UserError(f"{self.name} holds no picture (.{', .'.join(IMAGE_SUFFIXES)})")

    def __len__(self) -> int:
        return len(self._files)

    def key(self, index: int) -> str:
        return self._files[index]

    def __getitem__(self, index: int) -> Record:
        file = self._files[index]
        path = storage.join(self._root, file)
        try:
            image = storage.read(path)
        except OSError as error:
            raise BadSample(BadReason.MISSING, str(error)) from error
        texts, fault = self._captions[file] if self._captions is not None else _captions_beside(path)
        return Record(image, texts, file, captions_fault=fault)


def _pictures(root: str) -> Iterator[str]:
    """Paths of the pictures, relative to the root and with forward slashes, so that keys are the same everywhere."""
    for file in storage.walk(root):
        name = file.rpartition("/")[2]
        if not name.startswith(".") and os.path.splitext(name)[1][1:].lower() in IMAGE_SUFFIXES:
            yield file


def _captions_beside(path: str) -> Captions:
    try:
        return captions_from_text(storage.read(os.path.splitext(path)[0] + ".txt"))
    except FileNotFoundError:
        return (), None


def _read_table(path: str, caption_field: str, image_field: str) -> dict[str, Captions]:
    table: dict[str, Captions] = {}
    for line, row in _rows(path):
        file = next((row[name] for name in ((image_field,) if image_field else _IMAGE_FIELDS) if row.get(name)), None)
        if not isinstance(file, str):
            fields = ", ".join(str(name) for name in row)
            raise UserError(
                f"{path}, line {line}: no picture is named by {image_field or ' or '.join(_IMAGE_FIELDS)} (its fields: "
                f"{fields}); set config.data.image_field{closest(image_field, map(str, row))}"
            )
        if caption_field and caption_field not in row:
            near = closest(caption_field, map(str, row))
            raise UserError(f"{path}, line {line}: no field '{caption_field}'{near} (config.data.caption_field)")
        texts, fault = captions_from_mapping(row, caption_field)
        before, fault_before = table.get(file, ((), None))
        # A readable caption is worth more than the fault of another row.
        merged = before + texts
        table[file] = (merged, None if merged else fault or fault_before)
    return table


def _rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their line numbers. Bytes that are not UTF-8 are kept as surrogates: one caption is bad, not all."""
    # Of a bucket's object, all of it is fetched: a table is read to its end anyway.
    data = io.BytesIO(storage.read(path))
    with io.TextIOWrapper(data, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if path.endswith(".csv"):
            reader = csv.DictReader(file)
            try:
                for row in reader:
                    yield reader.line_num, row
            except csv.Error as error:
                raise UserError(
                    f"{path}, line {reader.line_num} is not CSV ({error}): is a quote not closed?"
                ) from error
            return
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = parse_json(text)
            except ValueError as error:
                reason = getattr(error, "msg", error)  # JSON's own message counts lines within this one
                raise UserError(f"{path}, line {line} is not JSON ({reason}): mend or delete the line") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {line} is not a JSON object: write one object a line")
            yield line, row
