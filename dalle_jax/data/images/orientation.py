"""How an image is to be turned, as its file notes it in EXIF, in XMP or in a text of ImageMagick's.

Only the one entry is looked for. What is damaged around it, or in it, turns nothing and stops nothing.
"""

import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from PIL import Image

UPRIGHT = 1
"""The orientation of an image that needs no turning; the others are 2 to 8, as EXIF numbers them."""

TAG = 0x0112
"""Of the orientation, in EXIF and in TIFF."""

XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"
"""What XMP begins with in a JPEG."""

PROFILES = ("exif", "APP1", "xmp")
"""`Raw profile type X`: texts in which ImageMagick keeps what PNG had no place for."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_PREFIX = re.compile(rb"""xmlns:([\w.-]+)\s*=\s*["']http://ns\.adobe\.com/tiff/1\.0/["']""")
_IN_XMP = rb"""(?<![\w.-])%s:Orientation\s*(?:=\s*["']|>)\s*([1-8])\s*[<"']"""


class Layout(NamedTuple):
    """The first directory of tags of a TIFF file, which EXIF is too."""

    order: str
    """`<` or `>`, as `struct` has them."""
    big: bool
    """BigTIFF, whose offsets have 8 bytes."""
    start: int
    """Offset in bytes of the first entry."""
    count: int
    """Entries that the directory claims to have."""

    @property
    def entry(self) -> struct.Struct:
        """Tag, type, number of values, and their bytes or the offset of them."""
        return struct.Struct(f"{self.order}HHQ8s" if self.big else f"{self.order}HHI4s")


def layout(data: bytes) -> Layout | None:
    """Where the tags of a TIFF file lie; None: it is none, or its directory lies outside of it."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return None
    try:
        (magic,) = struct.unpack_from(f"{order}H", data, 2)
        if magic == 42:
            (offset,) = struct.unpack_from(f"{order}I", data, 4)
            return Layout(order, False, offset + 2, *struct.unpack_from(f"{order}H", data, offset))
        if magic == 43:
            (offset,) = struct.unpack_from(f"{order}Q", data, 8)
            return Layout(order, True, offset + 8, *struct.unpack_from(f"{order}Q", data, offset))
    except (struct.error, OverflowError):
        pass
    return None


def entries(data: bytes, where: Layout) -> Iterator[tuple[int, int, int, bytes]]:
    """(tag, type, number of values, their bytes or the offset of them) of every entry that lies inside the file."""
    there = max(0, len(data) - where.start) // where.entry.size
    for index in range(min(where.count, there)):
        yield where.entry.unpack_from(data, where.start + index * where.entry.size)


def in_exif(data: bytes) -> int | None:
    """The orientation that a block of EXIF or the directory of a TIFF file notes; None: none that is valid."""
    while data.startswith(b"Exif\0\0"):
        data = data[6:]
    where = layout(data)
    if where is None:
        return None
    for tag, kind, _, value in entries(data, where):
        if tag == TAG:
            code = {1: "B", 3: "H", 4: "I"}.get(kind)
            found = struct.unpack_from(where.order + code, value)[0] if code else 0
            return found if 1 <= found <= 8 else None
    return None


def in_xmp(data: bytes) -> int | None:
    """The orientation that XMP notes, in UTF-8, UTF-16 or UTF-32; None: none that is valid."""
    data = data.replace(b"\0", b"")  # what is looked for is ASCII in all of them
    prefix = _TIFF_PREFIX.search(data)
    found = re.search(_IN_XMP % re.escape(prefix[1] if prefix else b"tiff"), data)
    return int(found[1]) if found else None


def in_profile(text: bytes) -> int | None:
    """The orientation in the text of a `Raw profile type X`: a name, a length, and EXIF or XMP in hexadecimals."""
    digits = b"".join(text.split()[2:])
    whole = re.match(rb"(?:[0-9A-Fa-f]{2})*", digits)
    data = bytes.fromhex(whole[0].decode()) if whole else b""
    return in_exif(data) or in_xmp(data)


def orientation(exif: bytes = b"", profiles: Iterable[bytes] = (), xmp: bytes = b"") -> int:
    """The orientation, by the first of these that notes one; `UPRIGHT` where none does.

    Args:
      exif: a block of EXIF, or a whole TIFF file.
      profiles: texts of ImageMagick's.
      xmp: as XML.
    """
    found = in_exif(exif) or next(filter(None, map(in_profile, profiles)), None)
    return found or in_xmp(xmp) or UPRIGHT


def noted(image: Image.Image) -> int:
    """The orientation that Pillow has read with an image; its pixels are read too, where they were not yet."""
    image.load()  # what notes it may stand behind the pixels
    if image.format == "TIFF":
        return UPRIGHT  # Pillow has turned it
    info: dict[Any, Any] = image.info
    profiles = [_bytes(info.get(f"Raw profile type {name}")) for name in PROFILES]
    # What turns an AVIF is in its container. Pillow writes that into the EXIF, and the XMP does not count.
    xmp = b"" if image.format == "AVIF" else _bytes(info.get("xmp") or info.get("XML:com.adobe.xmp"))
    return orientation(_bytes(info.get("exif")), profiles, xmp)


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    return value if isinstance(value, bytes) else b""


def turned(image: Image.Image, code: int) -> Image.Image:
    """An image as an orientation from 1 to 8 asks for it."""
    return image.transpose(_TURNS[code]) if code in _TURNS else image
