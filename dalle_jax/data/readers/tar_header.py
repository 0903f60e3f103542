"""What a tar's headers say, block by block (ustar, pax and GNU)."""

import zlib
from collections.abc import Mapping

BLOCK = 512
EMPTY = bytes(BLOCK)

REGULAR = (b"0", b"\0", b"7")
"""Type flags of plain files: POSIX, ancient, contiguous."""
HARD_LINK, SYMBOLIC_LINK, FOLDER, VOLUME_LABEL, SPARSE = b"1", b"2", b"5", b"V", b"S"
WITHOUT_BODY = (HARD_LINK, SYMBOLIC_LINK, b"3", b"4", FOLDER, b"6")
"""Nothing follows their headers, whatever size these state; but pax has hard links that repeat the bytes."""
GLOBAL = b"g"
"""A pax header about all members: comments and the like."""

_PAX, _GNU_NAME, _GNU_LINK = (b"x", b"X"), b"L", b"K"
EXTENSIONS = (*_PAX, _GNU_NAME, _GNU_LINK)
"""Headers about the member that follows."""

_LONGEST = 1 << 20  # bytes of an extension header that is believed


def name_of(header: bytes) -> str:
    """The path in a header."""
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    return _text(name)


def link_of(header: bytes) -> str:
    """The path to which a link leads, as it is written."""
    return _text(header[157:257].split(b"\0", 1)[0])


def size_of(header: bytes, said: Mapping[str, str]) -> int:
    """Bytes of a member; a negative number would lead back, again and again.

    Raises:
      ValueError: it is none.
    """
    size = int(said["size"]) if "size" in said else _number(header[124:136])
    if size < 0:
        raise ValueError(f"a size of {size}")
    return size


def is_continued(block: bytes, sparse: bool = False) -> bool:
    """Whether a block of GNU's map of a sparse file follows a block: its header (`sparse`), or another of the map."""
    return block[482 if sparse else 504 :][:1] not in (b"\0", b"")


def extension(kind: bytes, data: bytes) -> dict[str, str]:
    """What an extension header says: `path`, `linkpath` and `size`, and `GNU.sparse...` of sparse files.

    Args:
      kind: one of `EXTENSIONS`.
      data: its body: pax's `length key=value` records, or the name in a GNU one.

    Raises:
      ValueError: it holds something else; no checksum covers it.
    """
    if len(data) > _LONGEST:
        raise ValueError(f"an extension header of {len(data)} bytes")
    if kind not in _PAX:
        return {"path" if kind == _GNU_NAME else "linkpath": _text(data.split(b"\0", 1)[0])}
    values = {}
    while data and data[:1] != b"\0":
        length = int(data.split(b" ", 1)[0])
        if not 0 < length <= len(data):
            raise ValueError(f"a record of {length} bytes")
        key, _, value = data[:length].partition(b" ")[2].rstrip(b"\n").partition(b"=")
        if key in (b"path", b"linkpath", b"size") or key.startswith(b"GNU.sparse."):
            values[_text(key)] = _text(value)
        data = data[length:]
    return values


def checksum_matches(header: bytes) -> bool:
    """Whether the header's bytes, its checksum field read as spaces, add up to that field, with a sign or without one.

    The low half of Adler-32 is 1 + the sum of the bytes modulo 65521, at a fortieth of the time of Python's `sum`.
    """
    summed = header[:148] + b" " * 8 + header[156:]
    try:
        stated = _number(header[148:156])
    except ValueError:
        return False
    if zlib.adler32(summed) & 0xFFFF == (stated + 1) % 65521:
        return True
    # Old writers added up what `char` was on their machine.
    return stated == sum(byte - 256 if byte > 127 else byte for byte in summed)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    """An octal number, or GNU's binary one for sizes of 8 GiB and more."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)
