"""Where the members of a tar lie, so that they can be read in any order.

The standard library's `tarfile` answers the same question in five to ten times the time, and a data set has millions
of members.
"""

import logging
import os
from collections.abc import Iterator
from typing import NamedTuple

from dalle_jax import storage
from dalle_jax.data.left_out import Tally
from dalle_jax.data.readers import tar_header
from dalle_jax.data.readers.tar_header import BLOCK
from dalle_jax.errors import UserError
from dalle_jax.fetched import check_fetched

_log = logging.getLogger(__name__)

_SPARSE = "sparse members, which are not read"
_LINKS = "links that lead to no file in their tar"
_OTHER_KINDS = "members of kinds that are not read (devices, pipes, parts of other archives)"


class Member(NamedTuple):
    """One file in a tar: a plain one, or a link to one."""

    name: str
    offset: int
    """Of its first byte, from the start of the tar."""
    size: int


class _Entry(NamedTuple):
    """A header and what its extensions add."""

    kind: bytes
    name: str
    link: str
    offset: int
    size: int
    said: dict[str, str]


def scan(path: str, tally: Tally | None = None) -> Iterator[Member]:
    """Yields the files of an uncompressed tar (ustar, pax or GNU), reading headers only.

    A hard link is the file before it that it leads to, a symbolic link (at the end of them all) the last one of that
    name. A name may come up several times; whoever unpacks the tar keeps the last.

    What lies behind empty blocks is read too, as `tar --ignore-zeros` does: `cat a.tar b.tar` makes such tars. A
    warning is logged then, since a hole in a damaged tar looks alike, and where nothing closes the tar: of one that was
    cut at the end of a member there is no other sign.

    Args:
      path: of the tar.
      tally: counts the members that are not files, folders aside.

    Raises:
      UserError: naming the tar and the offset, where it is compressed, ends inside a member, or is not a tar.
    """
    tally = tally or Tally()
    files: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    waiting: list[str] = []
    with storage.Reader(path) as file:
        for entry in _entries(path, file):
            name = entry.name.removeprefix("./")
            place = os.path.normpath(name) if "./" in name or "//" in name else name
            if entry.kind in (tar_header.FOLDER, tar_header.VOLUME_LABEL) or name.endswith("/"):
                continue
            if entry.kind == tar_header.SPARSE or entry.said and any(key.startswith("GNU.") for key in entry.said):
                tally.add(_SPARSE, entry.said.get("GNU.sparse.name", name))
            elif entry.kind in tar_header.REGULAR:
                files[place] = entry.offset, entry.size
                links.pop(place, None)
                yield Member(name, *files[place])
            elif entry.kind == tar_header.SYMBOLIC_LINK:
                links[place] = os.path.normpath(os.path.join(os.path.dirname(entry.name), entry.link))
                waiting.append(name)
            elif entry.kind == tar_header.HARD_LINK and (target := os.path.normpath(entry.link)) in files:
                files[place] = files[target]
                yield Member(name, *files[place])
            elif entry.kind == tar_header.HARD_LINK and target in links:
                links[place] = links[target]
                waiting.append(name)
            else:
                tally.add(_LINKS if entry.kind == tar_header.HARD_LINK else _OTHER_KINDS, name)
    for name in waiting:
        if (place := os.path.normpath(name)) not in links:
            continue  # a file of that name came later
        if (target := _end_of(place, links)) in files:
            yield Member(name, *files[target])
        else:
            tally.add(_LINKS, name)


def _end_of(place: str, links: dict[str, str]) -> str | None:
    """Where a chain of links ends; None where it goes in a circle."""
    seen: set[str] = set()
    while place in links and place not in seen:
        seen.add(place)
        place = links[place]
    return None if place in links else place


def _entries(path: str, file: storage.Reader) -> Iterator[_Entry]:
    """The members of a tar, of whatever kind."""
    total, offset = file.size, 0
    check_fetched(file.pread(BLOCK, 0), path)
    if not total:
        raise UserError(f"{path} is empty: fetch it again or leave it out")
    said: dict[str, str] = {}  # by extension headers, of the member after them
    closed = False
    while offset < total:
        header = file.pread(BLOCK, offset)
        if header == tar_header.EMPTY[: len(header)] and not said:
            closed, offset = True, _after_empty_blocks(path, file, offset)
            continue
        if len(header) < BLOCK:
            raise _cut(path, offset, total)
        if not tar_header.checksum_matches(header):
            raise _not_a_tar(path, offset, header)
        closed, kind, start = False, header[156:157], offset + BLOCK
        is_extension = kind in tar_header.EXTENSIONS
        try:
            size = tar_header.size_of(header, {} if is_extension else said)
            if kind in tar_header.WITHOUT_BODY and size and _is_header(file.pread(BLOCK, start)):
                size = 0
            if kind == tar_header.SPARSE:
                start = _after_map(file, header, start)
            if start + size > total:
                raise _cut(path, offset, total)
            said |= tar_header.extension(kind, file.pread(size, start)) if is_extension else {}
        except ValueError:
            raise _not_a_tar(path, offset, header) from None
        offset = start + -(-size // BLOCK) * BLOCK
        if is_extension or kind == tar_header.GLOBAL:
            continue
        name, link = said.get("path") or tar_header.name_of(header), ""
        if kind in (tar_header.HARD_LINK, tar_header.SYMBOLIC_LINK):
            link = said.get("linkpath") or tar_header.link_of(header)
        yield _Entry(kind, name, link, start, size, said)
        said = {}
    if said:
        raise _cut(path, offset, total)  # the member that an extension announced is not there
    if not closed:
        # Some writers leave them out, so that this proves nothing.
        _log.warning("%s ends without the empty blocks that close a tar: it may be cut short between two members", path)


def _after_empty_blocks(path: str, file: storage.Reader, offset: int) -> int:
    """Where the first block begins that is not empty; the end of the tar where there is none.

    Raises:
      UserError: what begins there is no member.
    """
    end = file.skip_zeros(offset)
    if end == file.size:
        return end
    end -= end % BLOCK
    header = file.pread(BLOCK, end)
    if len(header) < BLOCK or not tar_header.checksum_matches(header):
        raise UserError(
            f"{path} is damaged: it is empty from byte {offset} on, and what follows at byte {end} is not a member; "
            "fetch it again or leave it out"
        )
    _log.warning(
        "%s has members behind the empty blocks at byte %d, which are read too: it is made of several tars, or lacks "
        "what lay there", path, offset,
    )  # fmt: skip
    return end


def _after_map(file: storage.Reader, header: bytes, start: int) -> int:
    """Where the bytes of a sparse file begin: behind the blocks that map them."""
    more = tar_header.is_continued(header, sparse=True)
    while more:
        more = tar_header.is_continued(file.pread(BLOCK, start))
        start += BLOCK
    return start


def _is_header(block: bytes) -> bool:
    return block == tar_header.EMPTY or tar_header.checksum_matches(block.ljust(BLOCK, b"\0"))


def _cut(path: str, offset: int, total: int) -> UserError:
    return UserError(
        f"{path} is cut short: the member at byte {offset} does not end within its {total} bytes; "
        "fetch it again or leave it out"
    )


def _not_a_tar(path: str, offset: int, header: bytes) -> UserError:
    compressions = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}
    if offset == 0 and header[:2] in compressions:
        return UserError(
            f"{path} is compressed with {compressions[header[:2]]}: unpack it to a plain .tar first, "
            "which is what can be read in any order"
        )
    return UserError(f"{path} is damaged or no tar: no member starts at byte {offset}; fetch it again or leave it out")
