"""What an image file says beside its pixels: it turns the image, and otherwise decides nothing."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from dalle_jax.data.images.arrays import read_image
from dalle_jax.data.images.decode import decode
from dalle_jax.data.images.orientation import XMP_SEGMENT
from dalle_jax.data.readers.webdataset_index import IMAGE_SUFFIXES
from dalle_jax.data.records import BadReason, BadSample

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "GIF", "BMP", "JPEG2000")
EXACT = ("PNG", "TIFF", "BMP")  # without loss, so that pixels are those that were saved
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8).repeat(8, 0).repeat(8, 1)


def save(format: str, pixels=PIXELS, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def read(data: bytes) -> np.ndarray:
    return decode(data, max_pixels=1 << 20)


def exif(*entries: tuple[int, int, int, bytes], order: str = "<", tail: bytes = b"") -> bytes:
    """A block of EXIF with these (tag, type, count, four bytes of value or offset)."""
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(
        struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return b"Exif\0\0" + head + directory + bytes(4) + tail


def turn(code: int, order: str = "<") -> tuple[int, int, int, bytes]:
    return 0x0112, 3, 1, struct.pack(f"{order}HH", code, 0)


def xmp(code: int, form: str = "tiff:Orientation='%d'") -> bytes:
    return b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description ' + (form % code).encode() + b"/></x:xmpmeta>"


def as_noted(pixels: np.ndarray, code: int) -> np.ndarray:
    """By the definition: which row and column of the scene the first row and column of the file are."""
    flips = {1: "", 2: "x", 3: "xy", 4: "y", 5: "t", 6: "tx", 7: "txy", 8: "ty"}
    for step in flips[code]:
        pixels = {"x": pixels[:, ::-1], "y": pixels[::-1], "t": pixels.transpose(1, 0, 2)}[step]
    return pixels


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def with_chunk(inserted: bytes, png: bytes | None = None, *, at_end: bool = False) -> bytes:
    """A PNG with a chunk behind its header, or before its end."""
    png = png or save("PNG")
    place = len(png) - 12 if at_end else 33
    return png[:place] + inserted + png[place:]


def with_segment(marker: int, body: bytes) -> bytes:
    jpeg = save("JPEG")
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + jpeg[2:]


def profile(name: str, payload: bytes, *, packed: bool = False) -> bytes:
    """A text of ImageMagick's: a name, a length, and lines of hexadecimals."""
    digits = payload.hex()
    lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    text = f"\n{name}\n{len(payload):8}\n{lines}\n".encode()
    keyword = b"Raw profile type " + name.encode() + b"\0"
    return chunk(b"zTXt", keyword + b"\0" + zlib.compress(text)) if packed else chunk(b"tEXt", keyword + text)


DAMAGED = {
    "nothing": b"Exif\0\0",
    "no TIFF": b"Exif\0\0garbage!!",
    "a directory outside": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "more entries than there are": b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
    "a resolution of -1/0": exif((0x011A, 10, 1, struct.pack("<I", 26)), tail=struct.pack("<ii", -1, 0)),
    "a date that is a float": exif((0x0132, 11, 1, struct.pack("<f", 1.0))),
    "a width that is a text": exif((0x0100, 2, 1, b"8\0\0\0")),
    "a text outside": exif((0x010E, 2, 1 << 30, b"\xff\xff\xff\x7f")),
    "no orientation": exif(turn(9)),
    "an orientation that is a text": exif((0x0112, 2, 2, b"6\0\0\0")),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_exif_changes_no_pixel(damage):
    block, plain = DAMAGED[damage], {format: read(save(format)) for format in ("JPEG", "PNG", "WEBP")}
    for data, format in (
        (with_segment(0xE1, block), "JPEG"),
        (with_chunk(chunk(b"eXIf", block[6:])), "PNG"),
        (with_chunk(profile("exif", block)), "PNG"),
        (save("WEBP", exif=block), "WEBP"),
    ):
        np.testing.assert_array_equal(read(data), plain[format])


def test_exif_of_an_avif_is_not_read():
    """Its container says how it is turned; Pillow reads the EXIF and fails where it is damaged."""
    note = Image.Exif()
    note[0x010E] = "a description"
    data = save("AVIF", exif=note.tobytes())
    damaged = data.replace(b"MM\0*", b"no\0*")
    assert damaged != data
    np.testing.assert_array_equal(read(damaged), read(data))


@pytest.mark.parametrize(
    "inserted",
    [
        chunk(b"iCCP", b"scanner\0\0" + zlib.compress(bytes(2 << 20))),
        chunk(b"iCCP", b"scanner\0\7no such compression"),
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"{}" * (1 << 20))),
        chunk(b"zTXt", b"workflow\0\7"),
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(b"{}" * (1 << 20))),
        chunk(b"tEXt", b"Author\0me", checksum=0),
        chunk(b"gAMA", b"\0"),
        chunk(b"pHYs", b""),
        chunk(b"acTL", b"\0"),
        chunk(b"fcTL", bytes(26)),
        chunk(b"zzZz", b"of no one", checksum=1),
    ],
    ids=lambda inserted: inserted[4:8].decode() + f"-{len(inserted)}",
)
@pytest.mark.parametrize("at_end", [False, True])
def test_chunks_that_pixels_do_not_depend_on(inserted, at_end):
    np.testing.assert_array_equal(read(with_chunk(inserted, at_end=at_end)), PIXELS)


@pytest.mark.parametrize(
    ("marker", "body"),
    [
        (0xE0, b"JFIF\0"),
        (0xE2, b"MPF\0garbage"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xED, b"Photoshop 3.0\x008BIM"),
        (0xEE, b"Adobe"),
        (0xFE, b"\xff\xfe comment"),
    ],
)
def test_segments_that_pixels_do_not_depend_on(marker, body):
    np.testing.assert_array_equal(read(with_segment(marker, body)), read(save("JPEG")))


def test_tags_that_pixels_do_not_depend_on():
    """The tags of a TIFF are in one directory with those that say where its pixels lie."""
    tiff = save("TIFF", tiffinfo={0x010E: "a description", 0x0131: "software", 0x8773: b"a profile" * 9}, dpi=(72, 72))
    where = struct.unpack_from("<I", tiff, 4)[0]
    seen = 0
    for place in range(where + 2, where + 2 + 12 * struct.unpack_from("<H", tiff, where)[0], 12):
        if struct.unpack_from("<H", tiff, place)[0] in (0x010E, 0x0131, 0x8773, 0x011A, 0x011B):
            for damage in (b"\xff" * 10, bytes(10), struct.pack("<HII", 12, 7, 1 << 31)):
                np.testing.assert_array_equal(read(tiff[: place + 2] + damage + tiff[place + 12 :]), PIXELS)
                seen += 1
    assert seen == 15


OTHER_PREFIX = """xmlns:t='http://ns.adobe.com/tiff/1.0/' x:Orientation='5' t:Orientation='%d'"""


def test_where_an_orientation_may_be_noted():
    upright = {format: read(save(format)) for format in ("JPEG", "PNG", "WEBP", "TIFF")}
    for code in range(1, 9):
        packed_xmp = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(code, "tiff:Orientation>%d</tiff:Orientation"))
        apple = XMP_SEGMENT + xmp(code, 'tiff:Orientation="%d"')
        for place, format, data in (
            ("EXIF", "JPEG", with_segment(0xE1, exif(turn(code)))),
            ("EXIF, big end first", "JPEG", with_segment(0xE1, exif(turn(code, ">"), order=">"))),
            ("EXIF with a damaged entry", "JPEG", with_segment(0xE1, exif((0x0100, 2, 1, b"8\0\0\0"), turn(code)))),
            ("XMP", "JPEG", with_segment(0xE1, apple)),
            *(
                (f"XMP in {encoding}", "JPEG", with_segment(0xE1, XMP_SEGMENT + xmp(code).decode().encode(encoding)))
                for encoding in ("utf-16", "utf-16-be", "utf-32")
            ),
            ("XMP of another prefix", "JPEG", with_segment(0xE1, XMP_SEGMENT + xmp(code, OTHER_PREFIX))),
            ("eXIf", "PNG", with_chunk(chunk(b"eXIf", exif(turn(code))[6:]))),
            ("eXIf at the end", "PNG", with_chunk(chunk(b"eXIf", exif(turn(code))[6:]), at_end=True)),
            ("XMP", "PNG", with_chunk(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(code)))),
            ("packed XMP", "PNG", with_chunk(chunk(b"iTXt", packed_xmp))),
            ("profile exif", "PNG", with_chunk(profile("exif", exif(turn(code))))),
            ("packed profile APP1", "PNG", with_chunk(profile("APP1", exif(turn(code)), packed=True))),
            ("profile xmp", "PNG", with_chunk(profile("xmp", xmp(code)))),
            ("EXIF", "WEBP", save("WEBP", exif=exif(turn(code)))),
            ("XMP", "WEBP", save("WEBP", xmp=xmp(code))),
            ("tag", "TIFF", save("TIFF", tiffinfo={0x0112: code})),
            ("tag of a BigTIFF", "TIFF", save("TIFF", tiffinfo={0x0112: code}, big_tiff=True)),
        ):
            expected = as_noted(upright[format], code)
            message = f"{place} of a {format}, orientation {code}"
            np.testing.assert_array_equal(read(data), expected, message)
            np.testing.assert_array_equal(read_image(Image.open(io.BytesIO(data))), expected, f"{message}, of Pillow's")


def test_an_avif_is_turned_as_its_container_says():
    note = Image.Exif()
    note[0x0112] = 8
    avif = save("AVIF", exif=note.tobytes(), xmp=xmp(3))
    assert read(avif).shape == (40, 24, 3)
    np.testing.assert_array_equal(read_image(Image.open(io.BytesIO(avif))), read(avif))


def test_exif_goes_before_xmp():
    data = with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(3))
    segment = exif(turn(6))
    both = data[:2] + struct.pack(">BBH", 0xFF, 0xE1, len(segment) + 2) + segment + data[2:]
    assert read(both).shape == (40, 24, 3)


def test_formats_are_a_closed_list(monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("another program is run"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EndProlog\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(eps)).format == "EPS"
    for data in (eps, save("PPM"), save("TGA"), save("PCX"), save("ICNS", PIXELS[:16, :16].copy())):
        with pytest.raises(BadSample) as caught:
            read(data)
        assert caught.value.reason is BadReason.NOT_A_PICTURE


def test_each_suffix_is_of_a_format_that_is_read():
    registered = Image.registered_extensions()
    assert {registered[f".{suffix}"] for suffix in IMAGE_SUFFIXES} == set(FORMATS)
    for format in FORMATS:
        assert np.abs(read(save(format)).astype(int) - PIXELS).mean() < (0.01 if format in EXACT else 40)


def test_damage_ends_in_an_image_or_a_bad_sample(caplog, capfd):
    rng = np.random.default_rng(1)
    note = exif(turn(6), (0x010E, 2, 3, b"me\0\0"))
    options = {"JPEG": {"exif": note}, "PNG": {"exif": note}, "WEBP": {"exif": note, "xmp": xmp(3)}}
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for format in FORMATS:
            data = save(format, **options.get(format, {}))
            for trial in range(150):
                damaged = bytearray(data)
                # Half of the time in the front, where what is not pixels lies.
                for position in rng.integers(0, len(data) if trial % 2 else min(len(data), 200), 3):
                    damaged[position] ^= 1 << rng.integers(8)
                try:
                    assert read(bytes(damaged[: rng.integers(1, len(data))] if trial % 5 == 0 else damaged)).ndim == 3
                except BadSample as error:
                    assert error.reason in (BadReason.TRUNCATED, BadReason.NOT_A_PICTURE, BadReason.TOO_LARGE)
    assert not caplog.records and not capfd.readouterr().err
    assert not heard, [str(warning.message) for warning in heard]
