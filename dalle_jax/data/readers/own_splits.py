"""Splits that a folder of images names itself: by COCO's tables, by a table in each folder, or by lists of names."""

import dataclasses
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from dalle_jax import storage
from dalle_jax.data.readers.layouts import coco_split
from dalle_jax.data.readers.tables import read_text
from dalle_jax.data.records import LeftOut
from dalle_jax.errors import UserError
from dalle_jax.text_files import split_lines

ALL = "all"
"""As the split that is trained on: everything, whatever splits the data name."""

IN_PATH = "write {split} in config.data.path where these names stand"
A_TABLE_EACH = "write a table for each"

_USUAL = re.compile(r"(train)(?:ing)?(?:\d{4})?|(val|valid|validation|dev|eval)(?:\d{4})?|(test)(?:ing)?(?:\d{4})?")
_KINDS = ("train", "val", "test")
_LIST = re.compile(r"(?:.*[._-])?(train|val|dev|test)_?images\.txt")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which splits of a folder are read."""

    trained: str = "train"
    """A name that the folder gives (`train2017`), or the usual one of that kind (`train`)."""
    held_out: str | None = ""
    """The same; empty: the one for validation, else that for tests; None: nothing is held out."""


@dataclasses.dataclass(frozen=True)
class Division:
    """The samples of a folder, by its splits."""

    names: tuple[str, ...]
    of: np.ndarray
    """int [samples]: numbers of `names`."""
    lists: tuple[str, ...] = ()
    """The files that say so, where they are not tables."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is read of a division."""

    kept: np.ndarray
    """bool [samples]: is trained on or held out."""
    held_out: np.ndarray | None
    """Indices of those that are held out among those that are kept, ascending; None: nothing is."""
    said: str
    """What was used as what."""
    left_out: tuple[LeftOut, ...]


def kind_of(name: str) -> str:
    """`train`, `val` or `test` of a split's name, such as `val` of `validation` and `val2017`; else empty."""
    match = _USUAL.fullmatch(name.lower())
    return _KINDS[(match.lastindex or 1) - 1] if match else ""


def split_of_table(table: str) -> str:
    """The split that a table is of, by its name or the folders in which it lies: `train2017` of
    `annotations/captions_train2017.json`, `test` of `data/test/metadata.csv`; else the first of the folders."""
    folders = posixpath.dirname(table).split("/")
    return coco_split(table) or next(filter(kind_of, folders), folders[0])


def are_splits(names: Iterable[str]) -> bool:
    """Whether names are those of splits: one to train on, and another to validate or to test."""
    kinds = set(map(kind_of, names))
    return "train" in kinds and bool(kinds & {"val", "test"})


def read_as_one(names: Iterable[str], advice: str = IN_PATH) -> str:
    """What to say of folders or files that are called as splits and are read together; empty where none are."""
    found = list(dict.fromkeys(names))
    if not are_splits(found):
        return ""
    listed = " and ".join(filter(kind_of, found))
    return f"what is called {listed} is read as one: {advice}"


def splits_in_names(paths: Sequence[str]) -> str:
    """`read_as_one` of files: by their folders and the words of their names, but for what is in all of them."""
    words = [{*path.split("/")[:-1], *re.split("[-_.]", posixpath.basename(path))} for path in paths]
    return read_as_one(sorted(set.union(*words) - set.intersection(*words))) if words else ""


def by_lists(
    root: str, files: Sequence[str], find: Callable[[str], str | None], images: Sequence[str]
) -> Division | None:
    """By text files with the name of an image a line, as Flickr8k's `Flickr_8k.trainImages.txt`.

    Args:
      root: the folder.
      files: in it and below it, relative to it.
      find: from a name to the image.
      images: the samples.

    Returns:
      What the lists say, with the images that no list names in a split called ""; None where there are no such lists.
    """
    lists = {file: match[1] for file in files if (match := _LIST.fullmatch(posixpath.basename(file).lower()))}
    named: dict[str, list[str]] = {}
    read = []
    for file, name in sorted(lists.items()):
        found = [find(line) for line in map(str.strip, split_lines(read_text(storage.join(root, file)))) if line]
        if found and found[0] is not None:
            read.append(file)
            named.setdefault(name, []).extend(image for image in found if image is not None)
    if not are_splits(named):
        return None
    names = ("", *named)
    number = {image: i for i, name in enumerate(names) for image in named.get(name, ())}
    numbers = np.fromiter((number.get(image, 0) for image in images), np.uint16, len(images))
    return Division(names, numbers, tuple(read))


def choose(division: Division | None, wanted: Wanted, path: str, samples: Sequence[str]) -> Choice | None:
    """What a run reads.

    Args:
      division: of the samples; None: the folder names no splits.
      wanted: the splits that are read.
      path: as a person has it, for messages.
      samples: by name, for examples.

    Returns:
      None where everything is read as one.

    Raises:
      UserError: there is no such split.
    """
    if wanted.trained == ALL:
        if wanted.held_out:
            raise UserError(
                f"config.data.eval_split='{wanted.held_out}' and split='{ALL}': what is held out cannot be trained on "
                "too; leave one of them out"
            )
        return None
    if division is None:
        for name in (wanted.trained, wanted.held_out):
            if name and name != Wanted.trained:
                raise _no_split(path, name)
        return None
    trained = _numbers(division, wanted.trained, path)
    if wanted.held_out:
        held_out = _numbers(division, wanted.held_out, path)
    else:
        kinds = [kind_of(name) for name in division.names]
        usual = next((kind for kind in ("val", "test") if kind in kinds), None)
        held_out = [i for i, kind in enumerate(kinds) if kind == usual] if wanted.held_out is not None else []
        held_out = [i for i in held_out if i not in trained]
    if set(trained) & set(held_out):
        raise UserError(
            f"config.data.split='{wanted.trained}' and eval_split='{wanted.held_out}' are one split of '{path}' (it "
            f"has {_listed(division.names)}): name two"
        )
    is_held_out = np.isin(division.of, held_out)
    kept = is_held_out | np.isin(division.of, trained)
    said = f"{_listed(division.names[i] for i in trained)} {'is' if len(trained) == 1 else 'are'} trained on"
    if held_out:
        said += f", {_listed(division.names[i] for i in held_out)} held out"
    left_out = []
    for i in sorted({*range(len(division.names))} - {*trained, *held_out}):
        places, name = np.flatnonzero(division.of == i), division.names[i]
        if len(places):
            reason = f"images of the split {name}, which is not asked for" if name else "images that no split names"
            left_out.append(LeftOut(reason, len(places), samples[int(places[0])]))
    indices = np.flatnonzero(is_held_out[kept]) if held_out else None
    return Choice(kept, indices, f"of its splits, {said}", tuple(left_out))


def _numbers(division: Division, name: str, path: str) -> list[int]:
    """The splits of that name; where none has it, those of its kind."""
    exact = [i for i, own in enumerate(division.names) if own == name]
    found = exact or [i for i, own in enumerate(division.names) if kind_of(own) == (kind_of(name) or None)]
    if not found:
        raise _no_split(path, name, division.names)
    return found


def _no_split(path: str, name: str, names: Iterable[str] = ()) -> UserError:
    there = _listed(names)
    return UserError(
        f"config.data.path='{path}' has no split '{name}'"
        + (f" (it has {there})" if there else "")
        + ": write {split} in the path where the split's name stands, or name a split that is there"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(filter(None, names))
