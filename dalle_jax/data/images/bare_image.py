"""Image files without what nobody needs, so that it cannot decide their fate.

Pillow reads every entry as it opens a file. It refuses a whole image for a resolution of -1/0, a colour profile of more
than 1 MiB or a wrong checksum of a comment, and what makes it lenient holds for the whole process.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from dalle_jax.data.images import orientation
from dalle_jax.data.images.orientation import PROFILES, UPRIGHT, XMP_SEGMENT

_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_TEXT = 1 << 20  # bytes of a text that are unpacked to look for an orientation
_GREY, _RGB = 0, 2  # colour types of PNG

# Of the tags of TIFF, those on which pixels depend.
_TIFF_TAGS = frozenset(
    (254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338)
    + (339, 340, 341, 347, *range(512, 522), 529, 530, 531, 532)
)
_SAMPLES_PER_PIXEL, _MOST_SAMPLES = 277, 6
_TIFF_SINGLE = frozenset((254, 255, 256, 257, 259, 262, 266, 277, 278, 284, 292, 293, 317, 322, 323, 332))
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


class TransparentColor(NamedTuple):
    """The one colour of a PNG without alpha that is transparent."""

    samples: tuple[int, ...]
    """Of grey, or of red, green and blue."""
    depth: int
    """Bits of a sample in the file."""


class BareImage(NamedTuple):
    """An image file without its metadata, and what was in that."""

    data: bytes
    orientation: int | None = None
    """From 1 to 8; None: it was not looked for, and Pillow's reader of this format is trusted with its metadata."""
    transparent: TransparentColor | None = None


def bare_image(data: bytes) -> BareImage:
    """Takes out of a file what its pixels do not depend on; other damage is, but for a TIFF's, left for Pillow to find.

    Raises:
      Exception: of many kinds, as Pillow's readers do, where a TIFF is damaged.
    """
    if data.startswith(b"\xff\xd8"):
        return _bare_jpeg(data)
    if data.startswith(_PNG):
        return _bare_png(data)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _bare_tiff(data)
    if data[4:8] == b"ftyp":
        return BareImage(_avif_without_exif(data))
    return BareImage(data)


def _bare_jpeg(data: bytes) -> BareImage:
    """Without application segments, but for what tells the colour space, and without comments."""
    kept, exif, xmp = [data[:2]], b"", b""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        size = int.from_bytes(data[position + 2 : position + 4])
        end = position + 2 + size
        if not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xDA or size < 2 or end > len(data):  # the scan, or damage
            break
        segment = data[position + 4 : end]
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            exif += segment[6:] if exif else segment
        elif marker == 0xE1 and segment.startswith(XMP_SEGMENT):
            xmp += segment
        elif not 0xE0 <= marker <= 0xEF and marker != 0xFE or _tells_colors(marker, segment):
            kept.append(data[position:end])
        position = end
    kept.append(data[position:])
    return BareImage(b"".join(kept), orientation.orientation(exif, xmp=xmp))


def _tells_colors(marker: int, segment: bytes) -> bool:
    jfif = marker == 0xE0 and segment.startswith(b"JFIF\0") and len(segment) >= 14
    return jfif or (marker == 0xEE and segment.startswith(b"Adobe") and len(segment) >= 12)


def _bare_png(data: bytes) -> BareImage:
    """Without ancillary chunks, those of animations among them, but for the transparency of a palette."""
    kept, texts, exif, transparent = [data[:8]], list[bytes](), b"", None
    end = 8
    for kind, body, position, end in _chunks(data):
        if kind[:1].isupper():
            kept.append(data[position:end])
        elif kind == b"eXIf":
            exif = exif or body
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            texts.append(kind + body)
        elif kind == b"tRNS":
            whole = zlib.crc32(kind + body) == int.from_bytes(data[end - 4 : end])
            transparent = _transparent_color(data, body) if whole else None
            if transparent is None:  # of a palette, or damaged
                kept.append(data[position:end])
    kept.append(data[end:])
    profiles, xmp = _texts(texts)
    return BareImage(b"".join(kept), orientation.orientation(exif, profiles, xmp), transparent)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, int, int]]:
    """(kind, body, begin, end) of every chunk of a PNG, up to where it is cut short or damaged."""
    position = 8
    while position + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + size
        if end > len(data) or not kind.isalpha():
            return
        yield kind, data[position + 8 : end - 4] if kind != b"IDAT" else b"", position, end
        position = end


def _transparent_color(data: bytes, body: bytes) -> TransparentColor | None:
    depth, color_type = data[24], data[25]
    count = {_GREY: 1, _RGB: 3}.get(color_type)
    if count is None or len(body) < 2 * count:
        return None
    mask = (1 << depth) - 1  # the bits above mean nothing
    return TransparentColor(tuple(sample & mask for sample in struct.unpack_from(f">{count}H", body)), depth)


def _texts(chunks: list[bytes]) -> tuple[list[bytes], bytes]:
    """ImageMagick's profiles, and the XMP, among the texts of a PNG."""
    profiles, xmp = [], b""
    for chunk in chunks:
        kind, (keyword, _, rest) = chunk[:4], chunk[4:].partition(b"\0")
        if keyword == b"XML:com.adobe.xmp" and kind == b"iTXt":
            packed, text = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
            xmp = xmp or (_unpacked(text) if packed else text)
        elif keyword in [b"Raw profile type " + name.encode() for name in PROFILES]:
            profiles.append(_unpacked(rest[1:]) if kind == b"zTXt" else rest)
    return profiles, xmp


def _unpacked(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MOST_TEXT)
    except zlib.error:
        return b""


def _bare_tiff(data: bytes) -> BareImage:
    """With the tags of the first page alone on which its pixels depend; offsets stay what they are.

    What Pillow would log or warn of at every such file is refused here.
    """
    where = orientation.layout(data)
    if where is None:
        raise EOFError("the directory of its tags is not in the file")
    kept = []
    for tag, kind, count, value in orientation.entries(data, where):
        size = count * _TIFF_SIZES.get(kind, 0)
        (offset,) = struct.unpack(f"{where.order}{'Q' if where.big else 'I'}", value)
        inside = size <= len(value) or offset + size <= len(data)
        if tag not in _TIFF_TAGS or not size or not inside:
            continue
        if tag in _TIFF_SINGLE and count > 1:  # damaged: Pillow would take the first, and warn of every one
            unit = size // count
            first = value[:unit] if size <= len(value) else data[offset : offset + unit]
            count, value = 1, first.ljust(len(value), b"\0")
        if tag == _SAMPLES_PER_PIXEL and struct.unpack_from(f"{where.order}H", value)[0] > _MOST_SAMPLES:
            raise ValueError("it has more samples a pixel than are read")
        kept.append(where.entry.pack(tag, kind, count, value))
    width = 8 if where.big else 2
    directory = struct.pack(f"{where.order}{'Q' if where.big else 'H'}", len(kept)) + b"".join(kept)
    directory += bytes(8 if where.big else 4)  # and no other page
    begin = where.start - width
    rest = data[begin + len(directory) :]
    return BareImage(data[:begin] + directory + rest, orientation.in_exif(data) or UPRIGHT)


def _avif_without_exif(data: bytes) -> bytes:
    """With its EXIF under a name that no reader knows, at the same place; what turns an AVIF is in its container."""
    begin = data.find(b"iinf")
    end = begin - 4 + int.from_bytes(data[begin - 4 : begin]) if begin > 4 else 0
    return data[:begin] + data[begin:end].replace(b"Exif", b"free") + data[end:] if begin < end else data
