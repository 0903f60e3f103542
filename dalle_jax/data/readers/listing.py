"""What a folder of images holds: its samples, where the captions of each are, and what is no part of any."""

import dataclasses
import itertools
import os
import posixpath
import sys
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dalle_jax import storage
from dalle_jax.data.captions import Captions
from dalle_jax.data.readers.file_names import Names
from dalle_jax.data.readers.layouts import coco_split, is_table
from dalle_jax.data.readers.own_splits import A_TABLE_EACH, Division, are_splits, by_lists, split_of_table
from dalle_jax.data.readers.tables import TABLE_CAPTION_FIELDS, Table, read_table
from dalle_jax.data.readers.webdataset_index import IMAGE_SUFFIXES
from dalle_jax.data.records import LeftOut
from dalle_jax.errors import UserError

_TEXTS = (".txt", ".caption")  # of two beside one image, the first is read
_BESIDE = "files of the images' names that end in .txt or .caption"
_SAMPLE = 20  # names of a table by which the folder of its images is found


@dataclasses.dataclass(frozen=True)
class Listing:
    """The samples of a folder."""

    files: list[str]
    """Images, relative to the folder, or as a table writes them where they lie elsewhere."""
    keys: list[str]
    """Of the samples: the same, but as a table writes it where that is a path to the image."""
    captions: list[Captions] | None
    """As tables have them; None: they are in files beside the images."""
    endings: list[str]
    """Of the caption file beside each image, which has its name otherwise; empty where there is none."""
    captions_from: str
    """Where captions were looked for, for messages."""
    left_out: tuple[LeftOut, ...]
    division: Division | None = None
    """Of the samples, where tables or lists beside them name splits."""
    split_column: str = ""
    """What to say of a table's column of splits, which is not read; empty where there is none."""

    def only(self, kept: np.ndarray, left_out: tuple[LeftOut, ...]) -> "Listing":
        """Some of the samples (bool [samples]), and what is said of the others."""
        files, keys, endings = (list(itertools.compress(of, kept)) for of in (self.files, self.keys, self.endings))
        captions = None if self.captions is None else list(itertools.compress(self.captions, kept))
        return Listing(files, keys, captions, endings, self.captions_from, left_out + self.left_out)


def list_files(files: Sequence[str], endings: Mapping[str, str]) -> Listing:
    """Every image is a sample.

    Args:
      files: in the folder and below it, relative to it.
      endings: see `caption_files`.
    """
    images = [file for file in files if is_image(file)]
    found = [endings.get(_stem(file), "") for file in images]
    return Listing(images, images, None, found, _BESIDE, _left_over(files, images, found))


def list_tables(
    root: str,
    files: Sequence[str],
    endings: Mapping[str, str],
    tables: Sequence[str],
    caption_field: str = "",
    image_field: str = "",
) -> Listing:
    """Every image that a table names is a sample, in the order of the tables.

    Args:
      root: the folder.
      files: in it and below it, relative to it.
      endings: see `caption_files`; used where no table has a field of captions.
      tables: among the files.
      caption_field, image_field: see `read_table`.

    Raises:
      UserError: a table cannot be read, or none of the images is there.
    """
    read = {file: read_table(storage.join(root, file), caption_field, image_field) for file in tables}
    without_rows = [file for file, table in read.items() if not table.captions]
    if len(without_rows) == len(tables):
        raise UserError(f"{storage.join(root, tables[0])} has no rows: write a row an image, or take it away")
    names = Names(root, files)
    base = _base(tables[0], read[tables[0]], names)
    urls = {file: len(table.captions) for file, table in read.items() if table.by_url}
    rows, missing = _find_images(read, names)
    if missing and not rows.keys:
        raise UserError(
            f"none of the {len(missing)} images that {tables[0]} names is there: '{missing[0]}' and the others were "
            f"looked for in {root} and every folder below it; bring them there, or write the way from {root} to them "
            "into the table"
        )
    if urls:
        _check_urls(urls, len(rows.keys), sum(map(is_image, files)))
    images, fields = list(rows.places), sorted({field for table in read.values() for field in table.caption_fields})
    if fields:
        captions, found = rows.captions, [""] * len(images)
        captions_from = f"the field {' or '.join(fields)} of {tables[0]}"
    else:
        captions, found = None, [endings.get(_stem(file), "") for file in images]
        captions_from = _beside_a_table(tables[0], read[tables[0]])
    division = rows.division(tables) or by_lists(root, files, lambda name: names.find(name, base), images)
    lists = () if division is None else division.lists
    left_out = (
        *(left_out for table in read.values() for left_out in table.left_out),
        *_group("tables without rows", without_rows),
        *_group(f"rows of tables whose images are not in {root}", missing),
        *_left_over([file for file in files if file not in lists], images, found, tables),
    )
    return Listing(
        files=images,
        keys=rows.keys,
        captions=captions,
        endings=found,
        captions_from=captions_from,
        left_out=left_out,
        division=division,
        split_column=_split_column(read),
    )


def _beside_a_table(file: str, table: Table) -> str:
    """Where captions are looked for when a table has none."""
    return (
        f"{_BESIDE}, since {file} has no field of captions (it has {', '.join(table.fields)[:200]}; "
        f"config.data.caption_field names another than {', '.join(TABLE_CAPTION_FIELDS)})"
    )


def _split_column(tables: Mapping[str, Table]) -> str:
    """See `Listing.split_column`."""
    columns = [(field, file) for file, table in tables.items() for field in table.fields if field.lower() == "split"]
    return "" if not columns else (
        f"the column {columns[0][0]} of {columns[0][1]} is not read, and its splits are read as one: {A_TABLE_EACH}"
    )  # fmt: skip


def caption_files(files: Sequence[str]) -> dict[str, str]:
    """Endings of the caption files of images, by the path of the image without its own."""
    texts = list(filter(_is_text, files))
    stems = {_stem(file) for file in files if is_image(file)} if texts else ()
    found: dict[str, str] = {}
    for file in sorted(texts, key=lambda file: (_TEXTS.index(_ending(file).lower()), file)):
        if _stem(file) in stems:
            found.setdefault(_stem(file), sys.intern(_ending(file)))
    return found


def is_image(file: str) -> bool:
    """Whether a file is read as an image where no table says so."""
    return not posixpath.basename(file).startswith(".") and _ending(file)[1:].lower() in IMAGE_SUFFIXES


def _check_urls(tables: Mapping[str, int], found: int, images: int) -> None:
    """Refuses tables of so many URLs whose ends are not what most files are called: few that match are chance."""
    for file, urls in tables.items():
        if 2 * found < min(urls, images):
            raise UserError(
                f"{file} names its images by URLs, and only {found} of {images} images are called as one of them "
                "ends: add a field with the names of the downloaded files (file)"
            )


class _Rows:
    """The images of tables, with their captions and keys, in the order in which they come up."""

    def __init__(self):
        self.places: dict[str, int] = {}
        """Of each image in the lists, by its path."""
        self.captions: list[Captions] = []
        self.keys: list[str] = []
        self._tables: list[int] = []

    def add(self, path: str, written: str, captions: Captions, table: int) -> None:
        """Adds to the captions of an image; `written` is its path as a table has it, `table` the number of that."""
        place = self.places.setdefault(path, len(self.keys))
        if place == len(self.keys):
            self.captions.append(captions)
            self.keys.append(written if written != path and posixpath.normpath(written) == path else path)
            self._tables.append(table)
        else:
            texts, fault = self.captions[place]
            merged = texts + captions[0]
            self.captions[place] = (merged, None if merged else captions[1] or fault)

    def division(self, tables: Sequence[str]) -> Division | None:
        """By the tables; one that several name is of the first."""
        names = [split_of_table(table) for table in tables]
        if not are_splits(names):
            return None
        numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
        return Division(tuple(numbers), np.array([numbers[name] for name in names])[self._tables])


def _find_images(tables: Mapping[str, Table], names: Names) -> tuple[_Rows, list[str]]:
    """The images that tables name, and the names of those that are not there. It empties the tables as it goes."""
    rows, missing = _Rows(), []
    for i, (file, table) in enumerate(tables.items()):
        base = _base(file, table, names)
        for name in list(table.captions):
            captions, found = table.captions.pop(name), names.find(name, base)
            if found is None:
                missing.append(name)
            else:
                rows.add(found, posixpath.join(base, name), captions, i)
    return rows, missing


def _base(file: str, table: Table, names: Names) -> str:
    """The folder that the names of a table start from."""
    every, split = list(table.captions), coco_split(file)
    some = every[:: max(1, len(every) // _SAMPLE)][:_SAMPLE]
    named = [folder for folder in names.folders if split and posixpath.basename(folder) == split]
    return names.base_of(some, [*named, posixpath.dirname(file), ""]) or ""


def _left_over(
    files: Sequence[str], images: Sequence[str], endings: Sequence[str], tables: Sequence[str] = ()
) -> tuple[LeftOut, ...]:
    """The files that are no part of a sample, by reason."""
    used = {*images, *tables, *(_stem(file) + ending for file, ending in zip(images, endings, strict=True) if ending)}
    unread = [file for file in files if file not in used]
    stems = {_stem(file) for file in images} if any(map(_is_text, unread)) else ()
    groups: dict[str, list[str]] = {}
    for file in unread:
        if posixpath.basename(file).startswith("."):
            reason = "files whose names begin with a dot"
        elif is_image(file):
            reason = f"images that {tables[0]} does not name" if len(tables) == 1 else "images that no table names"
        elif _is_text(file) and _stem(file) in stems:
            reason = "caption files of images that have their captions from elsewhere"
        elif is_table(file):
            reason = "tables that are not read"
        else:
            reason = "caption files without an image" if _is_text(file) else "files with other extensions"
        groups.setdefault(reason, []).append(file)
    return tuple(left_out for reason, found in groups.items() for left_out in _group(reason, found))


def _group(reason: str, found: Sequence[str]) -> Iterable[LeftOut]:
    return [LeftOut(reason, len(found), found[0])] if found else []


def _is_text(file: str) -> bool:
    return not posixpath.basename(file).startswith(".") and _ending(file).lower() in _TEXTS


def _stem(file: str) -> str:
    return os.path.splitext(file)[0]


def _ending(file: str) -> str:
    return os.path.splitext(file)[1]
