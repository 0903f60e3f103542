"""Folders with symbolic links in them: every file once, so that none is both trained on and held out.

A file comes under its own path where it lies in the folder itself, else under the first of the links that lead to it,
in the order of their names: the same on every machine.
"""

import fnmatch
import glob
import os
from collections.abc import Iterable

from dalle_jax.errors import UserError

_Identity = tuple[int, int] | str


def walk(folder: str) -> tuple[list[str], list[str]]:
    """The files in a folder and below it. Links to folders are followed; one may lead back to the folder itself.

    Returns:
      Paths of the files, relative to the folder and with forward slashes, in no order; those of the links that lead to
      a file which comes under another path, in order. A link to nothing counts as a file, for whoever reads it to say.

    Raises:
      UserError: a folder cannot be read.
    """
    files: list[str] = []
    file_links: list[str] = []
    folder_links: list[str] = []
    seen: set[_Identity] = set()
    _walk(folder, "", seen=seen, follows=False, files=files, file_links=file_links, folder_links=folder_links)
    while folder_links:  # they wait until what lies in the folder itself is known
        waiting, folder_links = sorted(folder_links), []
        for link in waiting:
            _walk(folder, link, seen=seen, follows=True, files=files, file_links=file_links, folder_links=folder_links)
    if not file_links:
        return files, []
    there = {_identity(os.path.join(folder, file)) for file in files}
    repeated = []
    for link in sorted(file_links):
        identity = _identity(os.path.join(folder, link))
        if identity in there:
            repeated.append(link)
        else:
            there.add(identity)
            files.append(link)
    return files, repeated


def once(paths: Iterable[str]) -> list[str]:
    """The paths without those that lead to the file of another; one that is no link itself stays, else the first."""
    paths = list(paths)
    groups: dict[_Identity, list[str]] = {}
    for path in paths:
        groups.setdefault(_identity(path), []).append(path)
    kept = {group[0] if len(group) == 1 else min(group, key=os.path.islink) for group in groups.values()}
    return [path for path in dict.fromkeys(paths) if path in kept]


def glob_below(pattern: str) -> list[str]:
    """Files that a pattern with `**` in it matches, each once; `glob` would go round and round where links do."""
    head, _, tail = pattern.partition("**")
    folders = sorted(glob.glob(head.rstrip("/"))) if head.rstrip("/") else [head or "."]
    found = []
    for folder in folders:
        below = [file for file in walk(folder)[0] if _matches(file.split("/"), ["**", *tail.strip("/").split("/")])]
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


def _walk(
    folder: str,
    start: str,
    seen: set[_Identity],
    follows: bool,
    files: list[str],
    file_links: list[str],
    folder_links: list[str],
) -> None:
    """Adds what lies below `start` to the lists.

    Args:
      folder: to which paths are relative.
      start: relative to it.
      seen: folders, which are added to.
      follows: whether `start` is behind a link, so that what is in `seen` may come up again and is passed over.
      files, file_links, folder_links: the lists.
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
                    name = f"{inner}/{entry.name}" if inner else entry.name
                    if not entry.is_symlink():
                        (waiting if entry.is_dir() else files).append(name)
                    else:
                        (folder_links if os.path.isdir(entry.path) else file_links).append(name)
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
