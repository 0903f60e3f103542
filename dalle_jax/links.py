"""Folders with symbolic links in them: every file once, so that none is both trained on and held out.

A file comes under its own path where it lies in the folder itself, else under the first of the links that lead to it,
in the order of their names: the same on every machine.
"""

import dataclasses
import fnmatch
import glob
import os
from collections.abc import Iterable
from typing import NamedTuple

from dalle_jax.errors import UserError

_Identity = tuple[int, int] | str


class Walked(NamedTuple):
    """What is in a folder and below it: paths relative to it, with forward slashes."""

    files: list[str]
    """In no order. A link to nothing counts as a file, for whoever reads it to say."""
    repeated: list[str]
    """Links to files that come under another path, in order."""
    special: list[str]
    """Pipes, sockets and devices, and links to them, in order: whoever opened one might wait for ever."""


def walk(folder: str) -> Walked:
    """The files in a folder and below it. Links to folders are followed; one may lead back to the folder itself.

    Raises:
      UserError: a folder cannot be read.
    """
    found = _Found([], [], [], [])
    seen: set[_Identity] = set()
    _walk(folder, "", seen=seen, follows=False, found=found)
    while found.folder_links:  # they wait until what lies in the folder itself is known
        waiting, found.folder_links = sorted(found.folder_links), []
        for link in waiting:
            _walk(folder, link, seen=seen, follows=True, found=found)
    repeated = []
    if found.file_links:
        there = {_identity(os.path.join(folder, file)) for file in found.files}
        for link in sorted(found.file_links):
            identity = _identity(os.path.join(folder, link))
            if identity in there:
                repeated.append(link)
            else:
                there.add(identity)
                found.files.append(link)
    return Walked(found.files, repeated, sorted(found.special))


def once(paths: Iterable[str]) -> list[str]:
    """The paths without those that lead to the file of another; one that is not a link itself stays, else the first."""
    paths = list(paths)
    groups: dict[_Identity, list[str]] = {}
    for path in paths:
        groups.setdefault(_identity(path), []).append(path)
    kept = {group[0] if len(group) == 1 else min(group, key=os.path.islink) for group in groups.values()}
    return [path for path in dict.fromkeys(paths) if path in kept]


def glob_below(pattern: str) -> list[str]:
    """What a pattern with `**` in it matches beside folders, each once; `glob` would go round and round as links do."""
    head, _, tail = pattern.partition("**")
    folders = sorted(glob.glob(head.rstrip("/"))) if head.rstrip("/") else [head or "."]
    found = []
    for folder in folders:
        walked, segments = walk(folder), ["**", *tail.strip("/").split("/")]
        below = [file for file in (*walked.files, *walked.special) if _matches(file.split("/"), segments)]
        found += [f"{folder.rstrip('/')}/{file}" if head else file for file in below]
    return found


def _matches(names: list[str], patterns: list[str]) -> bool:
    """Whether folders and a file match segments of a pattern, of which `**` is any number of folders."""
    if not patterns or not names:
        return not names and not patterns
    rest = names[1:]
    hidden = names[0].startswith(".")
    if patterns[0] == "**":
        return _matches(names, patterns[1:]) or (not hidden and bool(rest) and _matches(rest, patterns))
    fits = fnmatch.fnmatchcase(names[0], patterns[0]) and not (hidden and not patterns[0].startswith("."))
    return fits and _matches(rest, patterns[1:])


@dataclasses.dataclass
class _Found:
    """What a walk has met so far."""

    files: list[str]
    file_links: list[str]
    folder_links: list[str]
    special: list[str]


def _walk(folder: str, start: str, seen: set[_Identity], follows: bool, found: _Found) -> None:
    """Adds what lies below `start` to what was found.

    Args:
      folder: to which paths are relative.
      start: relative to it.
      seen: folders, which are added to.
      follows: whether `start` is behind a link, so that what is in `seen` may come up again and is passed over.
      found: which is added to.
    """
    waiting = [start]
    while waiting:
        inner = waiting.pop()
        path = os.path.join(folder, inner) if inner else folder
        identity = _identity(path)
        if follows and identity in seen:
            continue
        seen.add(identity)
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    link, name = entry.is_symlink(), f"{inner}/{entry.name}" if inner else entry.name
                    if os.path.isdir(entry.path) if link else entry.is_dir():
                        (found.folder_links if link else waiting).append(name)
                    elif link and os.path.exists(entry.path) and not os.path.isfile(entry.path):
                        found.special.append(name)
                    elif link or entry.is_file():
                        (found.file_links if link else found.files).append(name)
                    else:
                        found.special.append(name)
        except OSError as error:
            raise UserError(
                f"cannot read the folder {path}: {error.strerror}; make it readable or take it away"
            ) from error


def _identity(path: str) -> _Identity:
    """What two paths of one file have in common."""
    try:
        status = os.stat(path)
    except OSError:  # a link to nothing
        return path
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
