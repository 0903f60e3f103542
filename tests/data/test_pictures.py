"""Images as people hold them: the same pixels in every form, and a line where they are none."""

import io

import numpy as np
import pytest
from PIL import Image

from dalle_jax.data.images.arrays import image_list, read_image
from dalle_jax.errors import UserError


def test_the_same_pixels_in_every_form(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    for form in (pixels, Image.fromarray(pixels), path, str(path)):
        np.testing.assert_array_equal(read_image(form), pixels)
    grey = Image.fromarray(pixels[..., 0])
    np.testing.assert_array_equal(read_image(grey), np.repeat(pixels[..., :1], 3, axis=-1))


def test_a_photograph_stands_upright_in_every_form(tmp_path):
    image, exif = Image.new("RGB", (8, 4), "red"), Image.Exif()
    image.paste("blue", (0, 0, 4, 4))
    exif[0x0112] = 6  # turned to the right to be seen
    image.save(tmp_path / "turned.png", exif=exif)
    as_file = read_image(tmp_path / "turned.png")
    assert as_file.shape == (8, 4, 3) and as_file[0, 0].tolist() == [0, 0, 255]
    np.testing.assert_array_equal(read_image(Image.open(tmp_path / "turned.png")), as_file)


def test_lists():
    one = np.zeros((4, 4, 3), np.uint8)
    assert len(image_list(one for _ in range(3))) == 3 and len(image_list(np.stack([one, one]))) == 2
    for alone in (one, Image.fromarray(one), "a.png"):
        with pytest.raises(UserError, match="images come in a list"):
            image_list(alone)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)])
def test_arrays_that_are_no_pictures(array):
    with pytest.raises(UserError, match=r"image 2 is .* of shape .*: give uint8 \[height, width, 3\]"):
        read_image(array, 2)


def test_files_that_are_no_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(io.BytesIO(b"no").getvalue())
    for name in ("a.png", "missing.png"):
        with pytest.raises(UserError, match=f"cannot read the image .*{name}"):
            read_image(tmp_path / name)
