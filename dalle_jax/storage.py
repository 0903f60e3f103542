"""Files on a disk or in a bucket (`gs://`), for what `etils.epath` leaves out: parts of files, sizes, appending.

`gs://` needs the extra `gcs`. Local paths go past fsspec, which would cost more than a small read.
"""

import contextlib
import errno
import glob
import importlib.util
import os
import re
import stat
import time
from pathlib import Path
from typing import Any

import fsspec
from etils import epath

from dalle_jax import links
from dalle_jax.errors import UserError


def path_text(path: Any) -> str:
    """What a person has given as a path, as a string.

    Raises:
      UserError: it is None, an empty string, or something else that is not a path.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise UserError(f"a path is needed where {path!r} is given: name a file or a folder")
    return os.fspath(path)


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in a bucket.

    Raises:
      UserError: it is a URL of another kind, which nothing here reads or writes.
    """
    text = os.fspath(path)
    scheme, mark, rest = text.partition("://")
    if mark and scheme != "gs":
        advice = f"write the path alone, '{rest}'" if scheme == "file" else "copy the files to a disk or to gs:// first"
        raise UserError(f"'{text}': paths are local or gs://, and {scheme}:// is not read or written: {advice}")
    return bool(mark)


def as_path(path: epath.PathLike) -> epath.Path:
    """The path that a person has named.

    Raises:
      UserError: as `is_remote`; or it is in a bucket, and what reads there is not installed.
    """
    if is_remote(path) and importlib.util.find_spec("gcsfs") is None:
        raise UserError(f'{os.fspath(path)}: paths at gs:// need gcsfs: pip install "dalle-jax[gcs]", or gcsfs alone')
    return epath.Path(path)


def local_folder(path: str, option: str) -> str:
    """The folder that a person has named for files that are written to disks alone.

    Raises:
      UserError: it is a URL; the message names the option.
    """
    if "://" in path:
        raise UserError(f"{option}={path}: name a folder on a disk, and copy it from there")
    return path


def expanduser(path: str) -> str:
    """A path with `~` replaced; one in a bucket is left alone.

    Raises:
      UserError: nothing says where the home directory is.
    """
    if is_remote(path):
        return path
    expanded = os.path.expanduser(path)
    if expanded == path and re.match("~(/|$)", path):
        raise UserError(f"{path}: there is no home directory here: write the path in full, or set HOME")
    return expanded


def cache_folder() -> Path | None:
    """Where this user keeps what can be made again, under `XDG_CACHE_HOME` or `~/.cache`; None: there is no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dalle-jax"
    except RuntimeError:  # as of containers whose user is a number alone
        return None


def join(folder: str, name: str) -> str:
    """`folder/name`."""
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def size_of(path: str) -> int:
    """Bytes of a file.

    Raises:
      OSError: it is not there.
    """
    return int(_system(path).info(path)["size"]) if is_remote(path) else os.stat(path).st_size


def read_parts(path: str, spans: list[tuple[int, int]]) -> list[bytes]:
    """Some parts of a file, as few requests as it takes: parts that lie close to each other come in one.

    Args:
      path: of the file.
      spans: (offset, size) of each part; a part that reaches over the end of the file is cut there.

    Raises:
      OSError: the file cannot be read.
    """
    if is_remote(path):
        return _read_remote(path, spans)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return [os.pread(descriptor, size, offset) for offset, size in spans]
    finally:
        os.close(descriptor)


_CLOSE = 1 << 16  # bytes between parts that cost less than another request


def _read_remote(path: str, spans: list[tuple[int, int]]) -> list[bytes]:
    wanted = sum(size for _, size in spans)
    if not wanted:
        return [b""] * len(spans)
    start, end = min(offset for offset, _ in spans), max(offset + size for offset, size in spans)
    if end - start > wanted + _CLOSE:
        return [_read_remote(path, [span])[0] for span in spans]
    data = _cat(path, start, end)
    return [data[offset - start :][:size] for offset, size in spans]


class Reader:
    """A file that is scanned from its start to its end, here and there. From a bucket it comes in large pieces."""

    WINDOW = 1 << 22  # bytes of a piece

    def __init__(self, path: str):
        """Raises: OSError: the file is not there."""
        self._path = path
        self._descriptor = None if is_remote(path) else os.open(path, os.O_RDONLY)
        self.size = size_of(path)
        self._start, self._window = 0, b""

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def pread(self, size: int, offset: int) -> bytes:
        """Some bytes; fewer at the end of the file."""
        if self._descriptor is not None:
            return os.pread(self._descriptor, size, offset)
        if not self._start <= offset <= offset + size <= self._start + len(self._window):
            end = min(offset + max(size, self.WINDOW), self.size)
            self._start = offset
            self._window = _cat(self._path, offset, end) if end > offset else b""
        return self._window[offset - self._start :][:size]

    def skip_zeros(self, offset: int) -> int:
        """Where the first byte from `offset` on lies that is not 0; the file's size where there is none."""
        while offset < self.size:
            if self._descriptor is not None:
                offset = _next_data(self._descriptor, offset, self.size)
            data = self.pread(self.WINDOW, offset)
            if data != _ZEROS[: len(data)] or not data:
                return offset + len(data) - len(data.lstrip(b"\0")) if data else self.size
            offset += len(data)
        return self.size


_ZEROS = bytes(Reader.WINDOW)


def _next_data(descriptor: int, offset: int, size: int) -> int:
    """Where a file next has data on the disk: what was never written is passed over without being read."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size  # a hole up to the end
        return offset  # the file system does not know


def read(path: str) -> bytes:
    """All of a file.

    Raises:
      OSError: it cannot be read.
      UserError: it is a device, which may have no end.
    """
    if is_remote(path):
        return _cat(path)
    mode = os.stat(path).st_mode
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise UserError(f"{path} is a device, which may have no end: name a file")
    with open(path, "rb") as file:
        return file.read()


def _cat(path: str, start: int | None = None, end: int | None = None) -> bytes:
    found: Any = _system(path).cat_file(path, start=start, end=end)
    return found


def version_of(path: str) -> str:
    """A text that changes when a file does.

    Raises:
      OSError: it is not there.
    """
    if is_remote(path):
        info = _system(path).info(path)
        return f"{info['size']} {info.get('generation') or info.get('etag') or info.get('mtime')}"
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns}"


def files_in(folder: str) -> dict[str, int]:
    """Names and bytes of the files that lie in a folder; none where there is no such folder."""
    try:
        if is_remote(folder):
            listed = _system(folder).ls(folder, detail=True)
            return {os.path.basename(info["name"]): int(info["size"]) for info in listed if info["type"] == "file"}
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def walk(folder: str) -> list[str]:
    """Paths of the files in a folder and below it, relative to it and with forward slashes, in no order.

    Raises:
      UserError: see `walk_links`.
    """
    return walk_links(folder).files


def walk_links(folder: str) -> links.Walked:
    """As `walk`, with what it leaves out: links to files that are there under another path, and what is not a file.

    Every file comes once, however many links lead to it or to a folder around it; see `dalle_jax.links`. A bucket has
    neither.

    Raises:
      UserError: a folder cannot be read.
    """
    if is_remote(folder):
        start = len(str(_system(folder)._strip_protocol(folder)).rstrip("/")) + 1
        return links.Walked([str(path)[start:] for path in _system(folder).find(folder)], [], [])
    return links.walk(folder)


def once(paths: list[str]) -> list[str]:
    """The paths without those that lead to the file of another, by a link say; in their order."""
    return links.once(paths)


def glob_files(pattern: str) -> list[str]:
    """What a pattern with `*`, `?`, `[..]` or `**` matches, in order; of folders, one without `**`."""
    if is_remote(pattern):
        protocol = pattern.split("://", 1)[0]
        return sorted(f"{protocol}://{path}" for path in _system(pattern).glob(pattern))
    found = links.glob_below(pattern) if "**" in pattern.split("/") else glob.glob(pattern)
    return links.once(sorted(found))


def write_whole(path: epath.PathLike, data: bytes) -> None:
    """Writes a file so that a reader sees either the old one or all of the new one; folders are made.

    Raises:
      OSError: it cannot be written; `NotADirectoryError` where a file stands in the place of one of its folders.
    """
    path = as_path(path)
    if is_remote(path):
        path.write_bytes(data)  # An object appears when all of it is there.
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # a file, or a link to nothing; higher up, the system says so itself
        if os.path.islink(path.parent):
            path.parent.stat()
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path.parent)) from error
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # another process may write the same
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # half of it would take the room that is wanting
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error  # by the name that a person knows


def upload(local: epath.PathLike, path: epath.PathLike) -> None:
    """Brings a finished local file to its place, where a reader sees nothing or all of it; the local one is gone."""
    if is_remote(path):
        _system(path).put_file(os.fspath(local), os.fspath(path))
        os.remove(local)
    else:
        os.replace(local, path)


class Appended:
    """A file that grows. In a bucket nothing can be appended to: the object is written again, at most every so often.

    Where a process is killed, a bucket lacks what was written since; `flush(now=True)` makes sure of what must stay.
    """

    SECONDS = 30.0
    """Between two writes of an object; a bucket refuses more than one a second."""

    def __init__(self, path: epath.PathLike, content: bytes | None = None):
        """Args:
        path: of the file.
        content: what it shall hold to begin with; None: what it holds.
        """
        self._path = epath.Path(path)
        there = self._path.read_bytes() if self._path.exists() else None
        if content is not None and there != content:
            write_whole(self._path, content)  # it may be killed meanwhile, and what it keeps must not be lost
            there = content
        self._file = None if is_remote(path) else self._path.open("ab")
        self._content = bytearray(there or b"")
        self._pending, self._written = False, time.monotonic()

    def write(self, data: bytes) -> None:
        """Adds to the end."""
        if self._file is not None:
            self._file.write(data)
        else:
            self._content += data
            self._pending = True

    def flush(self, now: bool = False) -> None:
        """Brings what was written to the disk, and to a bucket where it is time, or asked for."""
        if self._file is not None:
            self._file.flush()
        elif self._pending and (now or time.monotonic() - self._written >= self.SECONDS):
            self._path.write_bytes(bytes(self._content))
            self._pending, self._written = False, time.monotonic()

    def close(self) -> None:
        """Writes the rest."""
        self.flush(now=True)
        if self._file is not None:
            self._file.close()


def _system(path: epath.PathLike) -> fsspec.AbstractFileSystem:
    # Other processes write too: a listing that is kept would hide their files.
    return fsspec.core.url_to_fs(os.fspath(path), use_listings_cache=False)[0]
