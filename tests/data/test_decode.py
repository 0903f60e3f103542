"""Every kind of image that people have, and every way for one to be bad."""

import io
import struct
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image

from dalle_jax.data.config import MAX_PIXELS, DataConfig
from dalle_jax.data.images.decode import decode
from dalle_jax.data.records import BadReason, BadSample

RED = (200, 30, 40)


def save(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read(data, **options):
    picture = decode(data, max_pixels=1 << 20, **options)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    return picture


def assert_color(picture, color, tolerance=0):
    assert np.abs(picture.astype(int) - color).max() <= tolerance


def reason_of(data, max_pixels=1 << 20):
    with pytest.raises(BadSample) as error:
        decode(data, max_pixels=max_pixels)
    return error.value.reason


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "TIFF"])
def test_lossless_formats(format):
    assert_color(read(save(Image.new("RGB", (5, 4), RED), format)), RED)


def test_cmyk_jpeg():
    data = save(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG", quality=100)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert_color(read(data), RED, tolerance=8)


def test_palette():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *RED])
    assert_color(read(save(image, "PNG")), RED)
    picture = read(save(image, "PNG", transparency=1))
    assert_color(picture, (255, 255, 255))


old_pillow = pytest.mark.skipif(PIL.__version__ < "13", reason="Pillow before 13 reads no uncompressed YCbCr of a TIFF")


@pytest.mark.parametrize("mode", ["1", "L", "LA", pytest.param("YCbCr", marks=old_pillow), "LAB"])
def test_other_modes_are_converted(mode):
    image = Image.new("RGB", (6, 6), (128, 128, 128)).convert("L").convert("RGB")
    image = image.convert(mode) if mode != "LAB" else Image.new("LAB", (6, 6), (128, 128, 128))
    picture = read(save(image, "TIFF" if mode in ("YCbCr", "LAB") else "PNG"))
    assert picture.shape == (6, 6, 3)


def test_sixteen_bits_keep_their_brightness():
    values = np.array([[0, 256 * 10, 256 * 128 + 77, 65535]], np.uint16)
    assert read(save(Image.fromarray(values), "PNG"))[0, :, 0].tolist() == [0, 10, 128, 255]
    big_endian = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())
    assert read(save(big_endian, "TIFF"))[0, :, 0].tolist() == [0, 10, 128, 255]
    assert_color(read(_png_of_16_bit_rgb(RED)), RED)


def _png_of_16_bit_rgb(color) -> bytes:
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + b"".join(struct.pack(">H", value * 257) for value in color) * 2
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("format", ["WEBP", "GIF", "PNG"])
def test_animations_give_their_first_frame(format):
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, (0, 0, 255))]
    options = {"lossless": True} if format == "WEBP" else {}
    data = save(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert_color(read(data), RED)


def test_transparent_parts_are_white():
    image = Image.new("RGBA", (2, 1), (*RED, 255))
    image.putpixel((1, 0), (*RED, 0))
    assert read(save(image, "PNG")).tolist() == [[list(RED), [255, 255, 255]]]
    half = read(save(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), "PNG"))
    assert_color(half, (127, 127, 127), tolerance=1)
    assert_color(read(save(Image.new("LA", (1, 1), (0, 0)), "PNG")), (255, 255, 255))


def test_camera_orientation():
    image = Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side: turn clockwise
    for format in ("JPEG", "TIFF", "PNG", "WEBP"):
        picture = read(save(image, format, exif=exif))
        assert picture.shape == (16, 8, 3)
        assert picture[:7].mean() > 240 and picture[9:].mean() < 15


def test_arrays_pass_through():
    picture = np.zeros((3, 4, 3), np.uint8)
    assert decode(picture, max_pixels=1) is picture


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated(format):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = save(Image.fromarray(noise), format)
    assert reason_of(data[: len(data) // 2]) in (
        # A WebP whose length does not match its header is not recognised as one.
        (BadReason.TRUNCATED, BadReason.NOT_A_PICTURE) if format == "WEBP" else (BadReason.TRUNCATED,)
    )


def jpegs(noise):
    """JPEG files of several kinds, by name."""
    for subsampling in (0, 2):
        for quality in (30, 100):
            yield f"{subsampling} {quality}", save(noise, "JPEG", quality=quality, subsampling=subsampling)
    yield "optimized", save(noise, "JPEG", optimize=True)
    yield "grey", save(noise.convert("L"), "JPEG")
    yield "flat", save(Image.new("RGB", (56, 40), "red"), "JPEG")
    yield "restarts", save(noise, "JPEG", restart_marker_blocks=1)
    yield "progressive", save(noise, "JPEG", progressive=True)


def test_a_jpeg_without_the_marker_at_its_end_is_read_where_its_pixels_are_there():
    """And where some are not, it is not filled up with grey: a cut gives the pixels of the whole file, or none."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8))
    for name, data in jpegs(noise):
        whole = decode(data, max_pixels=1 << 20)
        read = set()
        for cut in range(1, 60):
            try:
                np.testing.assert_array_equal(decode(data[:-cut], max_pixels=1 << 20), whole, f"{name}, cut by {cut}")
                read.add(cut)
            except BadSample as error:
                assert error.reason is BadReason.TRUNCATED
        assert {1, 2} <= read or name in ("restarts", "progressive"), name
        if name in ("0 100", "2 100", "grey"):
            assert max(read) <= 6, name
    shrunk = decode(save(noise, "JPEG")[:-2], max_pixels=1 << 20, shrink_to=20)
    np.testing.assert_array_equal(shrunk, decode(save(noise, "JPEG"), max_pixels=1 << 20, shrink_to=20))


def test_damage_never_raises_anything_else():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    rng = np.random.default_rng(1)
    for format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        data = save(Image.fromarray(noise), format)
        for _ in range(60):
            damaged = bytearray(data)
            for position in rng.integers(0, len(data), 5):
                damaged[position] = rng.integers(256)
            try:
                read(bytes(damaged))
            except BadSample as error:
                assert error.reason in (BadReason.TRUNCATED, BadReason.NOT_A_PICTURE, BadReason.TOO_LARGE)


@pytest.mark.parametrize("data", [b"", b"<html>403 Forbidden</html>", bytes(1000)])
def test_not_a_picture(data):
    assert reason_of(data) == BadReason.NOT_A_PICTURE


def test_decompression_bombs_are_refused_before_they_unpack():
    data = save(Image.new("1", (1100, 1000)), "PNG")
    assert len(data) < 1000 and reason_of(data) == BadReason.TOO_LARGE
    enormous = data.replace(struct.pack(">II", 1100, 1000), struct.pack(">II", 60_000, 60_000))
    header = enormous[12:29]
    enormous = enormous[:29] + struct.pack(">I", zlib.crc32(header)) + enormous[33:]
    assert reason_of(enormous, max_pixels=1 << 40) == BadReason.TOO_LARGE  # Pillow's own limit


def test_the_limit_of_the_config_is_one_that_holds():
    assert MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS  # above the number itself Pillow only warns
    assert DataConfig(max_pixels=MAX_PIXELS).max_pixels == MAX_PIXELS
    with pytest.raises(ValueError, match="max_pixels must be at most 178,956,970, not 1,000,000,000"):
        DataConfig(max_pixels=10**9)


def test_a_jpeg_may_be_decoded_smaller_but_never_below_what_is_needed():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)).resize((500, 400))
    data = save(image, "JPEG", quality=95)
    assert read(data).shape == (400, 500, 3)
    assert read(data, shrink_to=200).shape == (200, 250, 3)
    assert read(data, shrink_to=201).shape == (400, 500, 3)
    assert read(data, shrink_to=50).shape == (50, 63, 3)
    assert read(save(image, "PNG"), shrink_to=50).shape == (400, 500, 3)
    boxed = np.asarray(image.reduce(2)).astype(int)
    assert np.abs(read(data, shrink_to=200).astype(int) - boxed).mean() < 2
