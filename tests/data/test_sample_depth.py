"""Samples of other than 8 bits, and the one colour of a PNG that is transparent: never wrapped, never lost."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dalle_jax.data.images.arrays import read_image
from dalle_jax.data.images.decode import decode
from dalle_jax.data.records import BadReason, BadSample
from dalle_jax.errors import UserError

GREY, RGB = 0, 2  # colour types of PNG
RAMP = np.linspace(0, 1, 256)


def read(data: bytes) -> np.ndarray:
    return decode(data, max_pixels=1 << 20)


def saved(image: Image.Image, format: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def png(samples: np.ndarray, depth: int, transparent: tuple[int, ...]) -> bytes:
    """A PNG of [height, width, channels] samples, written by the specification."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, channels = samples.shape
    bits = (samples.reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=-1)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, depth, GREY if channels == 1 else RGB, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            chunk(b"IHDR", header),
            chunk(b"tRNS", struct.pack(f">{channels}H", *transparent)),
            chunk(b"IDAT", packed),
            chunk(b"IEND", b""),
        )
    )


@pytest.mark.parametrize(("depth", "channels"), [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 3), (16, 3)])
def test_the_transparent_color_is_compared_at_the_depth_of_the_file(depth, channels):
    """Neighbours of the transparent colour, one level away in one channel, stay what they are."""
    top = (1 << depth) - 1
    base = top // 3
    colors = [np.full(channels, base)]
    colors += [colors[0] + np.eye(channels, dtype=int)[channel] for channel in range(channels)]
    samples = np.stack(colors + [np.zeros(channels, int)])[None]
    pixels = read(png(samples, depth, tuple(samples[0, 0])))
    shown = samples * 255 // top if depth <= 8 else samples >> 8
    expected = np.broadcast_to(shown, (*shown.shape[:2], 3)).copy()
    expected[np.all(samples == samples[0, 0], axis=-1)] = 255
    np.testing.assert_array_equal(pixels, expected)


def test_bits_above_the_depth_of_the_file_mean_nothing():
    assert read(png(np.array([[[5], [6]]]), 8, (0x0105,)))[0, :, 0].tolist() == [255, 6]


def test_a_damaged_transparent_color_is_a_bad_sample():
    data = png(np.array([[[5], [6]]]), 8, (5,))
    place = data.index(b"tRNS") + 5
    with pytest.raises(BadSample) as caught:
        read(data[:place] + b"\x07" + data[place + 1 :])
    assert caught.value.reason in (BadReason.TRUNCATED, BadReason.NOT_A_PICTURE)


@pytest.mark.parametrize("white", [255, 4095, 65535])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_greys_of_more_than_8_bits_keep_their_order_and_their_range(white, dtype):
    image = Image.fromarray(np.round(RAMP * white).astype(dtype)[None])
    for pixels in (read(saved(image, "TIFF")), read_image(image)):
        np.testing.assert_allclose(pixels[0, :, 0], RAMP * 255, atol=1)
        assert np.all(np.diff(pixels[0, :, 0].astype(int)) >= 0)


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_floats_are_brightness(white):
    image = Image.fromarray((RAMP * white).astype(np.float32)[None])
    for pixels in (read(saved(image, "TIFF")), read_image(image)):
        np.testing.assert_array_equal(pixels[0, :, 0], np.arange(256))


@pytest.mark.parametrize(
    "samples",
    [
        np.linspace(-1000, 1000, 256, dtype=np.int32),  # as of a CT
        np.linspace(0, 100_000, 256, dtype=np.int32),
        np.linspace(-100, 200, 256, dtype=np.int32),
        np.linspace(0, 1000, 256, dtype=np.float32),
        np.array([0.0, np.nan], np.float32),
        np.array([0.0, np.inf], np.float32),
    ],
    ids=lambda samples: f"{samples.dtype}-{samples[0]:g}-{samples[-1]:g}",
)
def test_what_is_no_brightness_is_refused(samples):
    image = Image.fromarray(samples[None])
    with pytest.raises(BadSample, match="its samples reach from .* scale it to 8 or 16 bits") as caught:
        read(saved(image, "TIFF"))
    assert caught.value.reason is BadReason.NOT_A_PICTURE
    with pytest.raises(UserError, match="cannot read image 3: its samples reach from"):
        read_image(image, 3)


def test_jpegs_of_12_bits_are_refused():
    jpeg = saved(Image.new("L", (8, 8)), "JPEG")
    place = jpeg.index(b"\xff\xc0") + 4
    assert jpeg[place] == 8
    with pytest.raises(BadSample) as caught:
        read(jpeg[:place] + b"\x0c" + jpeg[place + 1 :])
    assert caught.value.reason is BadReason.NOT_A_PICTURE


def test_an_image_of_pillows_with_a_transparent_color_of_16_bits():
    """Pillow has thrown the lower bytes away before it hands the image over."""
    data = png(np.array([[[0x1234] * 3, [0x5678] * 3]]), 16, (0x1234,) * 3)
    assert read_image(Image.open(io.BytesIO(data)))[0].tolist() == [[255] * 3, [0x56] * 3]
    grey = Image.open(io.BytesIO(png(np.array([[[0x1234], [0x1235]]]), 16, (0x1234,))))
    assert read_image(grey)[0, :, 0].tolist() == [255, 0x12]


def test_a_file_of_pillows_that_ends_early(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(Image.effect_noise((64, 64), 50), "PNG")[:-500])
    with pytest.raises(UserError, match="cannot read image 1: "):
        read_image(Image.open(tmp_path / "a.png"), 1)
