"""Which tables a folder of images has, in the layouts that people hold."""

import os
import re
from collections.abc import Sequence

from dalle_jax import storage
from dalle_jax.data.readers.tables import names_images

FIRST = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
"""Tables by their names, of which the first in a folder is read; `metadata` is what Hugging Face writes. In the folder
itself these four go before caption files beside the images, and the others after them."""

_NAMES = (
    *FIRST, "metadata.parquet", "captions.parquet", "captions.json", "captions.tsv", "metadata.tsv",
    "flickr8k.token.txt", "results_20130124.token",
)  # fmt: skip
_MAYBE = ("metadata.json", "captions.txt", "results.csv")  # names that other files have too
_COCO = re.compile(r"captions_(\w+)\.json")


def first_of(files: Sequence[str]) -> str | None:
    """The table of `FIRST` in a folder itself."""
    return next((name for name in FIRST if name in files), None)


def tables_in(root: str, files: Sequence[str]) -> list[str]:
    """The tables of a folder without caption files: its own, else all of COCO's, else one of each folder below.

    Args:
      root: the folder.
      files: in it and below it, relative to it.

    Returns:
      Tables, relative to it.
    """
    inside: dict[str, list[str]] = {}
    for file in sorted(filter(is_table, files)):
        inside.setdefault(os.path.dirname(file), []).append(file)
    own = _first(root, inside.pop("", []))
    if own is not None:
        return [own]
    coco = sorted(filter(coco_split, files))
    return coco or [table for tables in inside.values() if (table := _first(root, tables)) is not None]


def _first(root: str, tables: Sequence[str]) -> str | None:
    """Of the tables in one folder the one that is read."""
    by_name = {os.path.basename(file).lower(): file for file in tables}
    sure = next((by_name[name] for name in _NAMES if name in by_name), None)
    if sure is not None:
        return sure
    maybe = [file for name, file in by_name.items() if name in _MAYBE or name.endswith(".tsv")]
    return next((file for file in maybe if names_images(storage.join(root, file))), None)


def is_table(file: str) -> bool:
    """Whether a file has the name of a table, read or not."""
    name = os.path.basename(file).lower()
    return name in _NAMES or name in _MAYBE or name.endswith(".tsv") or bool(coco_split(file))


def coco_split(file: str) -> str:
    """`train2017` of `annotations/captions_train2017.json`: the folder in which COCO's images lie; else empty."""
    match = _COCO.fullmatch(os.path.basename(file))
    return match[1] if match else ""
