"""File patterns as people write them: globs, brace ranges, lists."""

import functools
import glob
import logging
import os
import re
from collections.abc import Sequence

from dalle_jax import storage
from dalle_jax.errors import UserError

_log = logging.getLogger(__name__)

_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")


def expand(pattern: str, suffix: str) -> list[str]:
    """Lists the files that a pattern names, in order; one that it names twice, or by a link too, comes once.

    Args:
      pattern: paths, local or `gs://`, globs (`*`, `?`, `[..]`), brace ranges (`{00000..00099}`, `{a,b}`), several
        separated by commas; a folder stands for the files in it that end in `suffix`.
      suffix: such as `.tar`.

    Raises:
      UserError: where it names no file, a file that does not exist, or a pipe, socket or device, which might be waited
        for without end; or a pattern matches a folder.
    """
    if not pattern:
        raise UserError("config.data.path is empty: name the data, for example --config.data.path='data/*.tar'")
    files: list[str] = []
    missing: list[str] = []
    listed = functools.cache(storage.files_in)  # a range of a thousand files in a bucket is one request
    for path in (path for part in _split(pattern) for path in expand_braces(storage.expanduser(part))):
        folder, _, name = path.rpartition("/")
        if storage.is_remote(path) and glob.has_magic(path):
            files += storage.glob_files(path)
        elif name in listed(folder) if storage.is_remote(path) else os.path.exists(path) and not os.path.isdir(path):
            files.append(path)
        elif inside := sorted(name for name in (*listed(path), *_no_files(path)) if name.endswith(suffix)):
            files += [storage.join(path, name) for name in inside]
        elif glob.has_magic(path):
            files += _without_folders(path, storage.glob_files(path))
        elif storage.is_remote(path) or not os.path.isdir(path):
            missing.append(path)
    missing += [path for path in files if not storage.is_remote(path) and not os.path.exists(path)]
    if missing:
        raise UserError(
            f"{len(missing)} of the files that '{pattern}' names do not exist, the first is '{missing[0]}': "
            "mend the path or the range"
        )
    special = next((path for path in files if not storage.is_remote(path) and not os.path.isfile(path)), None)
    if special is not None:
        raise UserError(f"'{pattern}' names {special}, which is a pipe, socket or device: name files alone")
    if not files:
        raise UserError(f"'{pattern}' matches no {suffix} file: check the path, and quote the pattern in the shell")
    once = storage.once(files)
    if len(once) < len(files):
        _log.warning(
            "%d of the %d files that '%s' names are others again, or links to them: each is read once",
            len(files) - len(once), len(files), pattern,
        )  # fmt: skip
    return once


def _without_folders(pattern: str, found: list[str]) -> list[str]:
    """Refuses a folder that a pattern matches, since what is in it would be missed."""
    for path in found:
        if os.path.isdir(path):
            raise UserError(
                f"'{pattern}' matches {path}, which is a folder: write a pattern that matches files alone, or ** for "
                "all folders below one"
            )
    return found


def _no_files(folder: str) -> list[str]:
    """Names of what is no file in a local folder, nor a folder: links to nothing, pipes; whoever lists its files passes
    over them."""
    if storage.is_remote(folder) or not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if not (entry.is_file() or entry.is_dir())]


def distinct_names(paths: Sequence[str]) -> list[str]:
    """Names of files for keys: without folders, so that keys do not depend on where the data lie, or with the fewest
    folders that tell the files apart."""
    for depth in (1, 2):
        names = ["/".join(path.split("/")[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [os.path.relpath(path, os.path.commonpath(paths)) for path in paths]


def expand_braces(pattern: str) -> list[str]:
    """Expands `{a,b}` and `{start..stop}` as a shell does; zeros in front of `start` set the width."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    body = match[1]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if ends:
        start, stop = int(ends[1]), int(ends[2])
        width = len(ends[1]) if ends[1].startswith("0") or len(ends[1]) == len(ends[2]) else 0
        step = 1 if stop >= start else -1
        choices = [str(number).zfill(width) for number in range(start, stop + step, step)]
    elif "," in body:
        choices = body.split(",")
    else:
        raise UserError(f"cannot read the brace range '{{{body}}}' in '{pattern}': write {{00000..00099}} or {{a,b}}")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + choice + rest for choice in choices for rest in expand_braces(tail)]


def _split(pattern: str) -> list[str]:
    """Splits at the commas that stand outside braces."""
    parts = re.split(r",(?![^{}]*\})", pattern)
    return [part.strip() for part in parts if part.strip()]
