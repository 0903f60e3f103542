"""The published augmentations and preprocessing, against plain transcriptions of the papers' listings."""

import io

import numpy as np
import pytest
from PIL import Image

from dalle_jax.data.config import Augment
from dalle_jax.data.images import transforms
from dalle_jax.data.images.area import resize_area
from dalle_jax.data.images.decode import decode


@pytest.fixture(scope="module")
def coordinates():
    """An image whose red is its column and whose green is its row, so that a crop tells where it came from."""

    def make(height, width):
        rows, columns = np.mgrid[:height, :width]
        red, green = columns * 255.0 / (width - 1), rows * 255.0 / (height - 1)
        return np.stack([red, green, np.zeros_like(red)], -1).round().astype(np.uint8)

    return make


def window(square, height, width):
    """(left, right, top, bottom) in pixels of the original, from the colours at the square's edges."""
    red, green = square[..., 0].astype(float) / 255 * (width - 1), square[..., 1].astype(float) / 255 * (height - 1)
    return red[:, 0].mean(), red[:, -1].mean(), green[0].mean(), green[-1].mean()


def extents(name, image, size, draws=300):
    rng = np.random.default_rng(0)
    transform = transforms.make_transform(Augment(name), size)
    squares = [transform(image, rng) for _ in range(draws)]
    assert all(square.shape == (size, size, 3) and square.dtype == np.uint8 for square in squares)
    return squares, np.array([window(square, *image.shape[:2]) for square in squares])


def test_dalle_listing_step_by_step():
    picture = np.random.default_rng(0).integers(0, 256, (57, 90, 3), np.uint8)
    for seed in range(20):
        square = transforms.dalle_augment(picture, 32, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        rng.integers(0, 1)  # the first row of the square, which can only be 0
        left = int(rng.integers(3 * 33 // 8, 5 * 33 // 8))
        target = int(rng.integers(32, 36 + 1))
        down, right = rng.integers(target - 32 + 1), rng.integers(target - 32 + 1)
        whole = resize_area(picture[:, left : left + 57], target, target)
        reference = whole[down : down + 32, right : right + 32]
        assert np.array_equal(square, reference)


def test_dvae_listing(coordinates):
    image = coordinates(300, 400)
    squares, found = extents("dvae", image, 128)
    mirrored = found[:, 0] > found[:, 1]
    assert 0.4 < mirrored.mean() < 0.6
    left, right = found[:, :2].min(1), found[:, :2].max(1)
    # s = 300, t from 144 to 192: the crop sees between 128/192 and 128/144 of the square.
    seen = (right - left) / 300 * 128 / 127
    assert seen.min() > 128 / 192 - 0.02 and seen.max() < 128 / 144 + 0.02
    assert seen.min() < 0.69 and seen.max() > 0.86
    assert left.min() < 8 and right.max() > 391  # the square lies anywhere along the long side
    assert found[:, 2].min() < 3 and found[:, 3].max() > 296


def test_dalle_listing(coordinates):
    image = coordinates(300, 500)
    _, found = extents("dalle", image, 128)
    assert (found[:, 0] < found[:, 1]).all()  # never mirrored
    seen = (found[:, 1] - found[:, 0]) / 300 * 128 / 127
    assert seen.min() > 128 / 144 - 0.02 and seen.min() < 0.92 and seen.max() > 0.97
    # The square starts between 3/8 and 5/8 of the slack of 200 pixels, exclusive.
    assert found[:, 0].min() > 74 and found[:, 1].max() < 426
    assert found[:, 0].min() < 82 and found[:, 1].max() > 415


def test_clip_crop(coordinates):
    image = coordinates(200, 300)
    _, found = extents("clip", image, 64)
    assert np.abs(found[:, 2]).max() < 4 and found[:, 3].min() > 195  # the whole short side
    assert found[:, 0].min() < 5 and found[:, 1].max() > 294  # anywhere along the long one
    assert np.allclose(found[:, 1] - found[:, 0], 200, atol=6)


def test_crop_and_mirror():
    """All 81 crops of the padded image come up, each both ways, and nothing else does."""
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    padded = np.pad(picture, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    crops = [padded[top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
    possible = {crop.tobytes() for crop in crops} | {crop[:, ::-1].tobytes() for crop in crops}
    rng = np.random.default_rng(0)
    found = {transforms.crop_and_mirror(picture, 32, rng).tobytes() for _ in range(2000)}
    assert found == possible and len(possible) == 162


def test_clip_crop_equals_resizing_then_cropping():
    picture = np.random.default_rng(0).integers(0, 256, (90, 61, 3), np.uint8)
    for seed in range(10):
        square = transforms.clip_augment(picture, 32, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        resized = Image.fromarray(picture).resize((32, 47), Image.Resampling.BICUBIC)
        top = rng.integers(47 - 32 + 1)
        assert np.abs(square.astype(int) - np.asarray(resized)[top : top + 32]).max() <= 1


@pytest.mark.parametrize("shape", [(300, 450), (451, 300), (256, 256), (100, 77), (33, 1000)])
def test_inference_preprocessing_is_exact(shape):
    height, width = shape
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image, size, short = Image.fromarray(picture), 64, min(shape)

    scaled = image.resize((round(size / short * width), round(size / short * height)), Image.Resampling.LANCZOS)
    left, top = round((scaled.width - size) / 2), round((scaled.height - size) / 2)
    reference = np.asarray(scaled.crop((left, top, left + size, top + size)))
    assert np.array_equal(transforms.dalle_inference(picture, size), reference)

    scaled = image.resize((int(size * width / short), int(size * height / short)), Image.Resampling.BICUBIC)
    left, top = round((scaled.width - size) / 2), round((scaled.height - size) / 2)
    reference = np.asarray(scaled.crop((left, top, left + size, top + size)))
    assert np.array_equal(transforms.clip_inference(picture, size), reference)


@pytest.mark.parametrize("name", [augment.value for augment in Augment])
@pytest.mark.parametrize("shape", [(32, 32), (20, 50), (1, 1), (1, 40), (64, 64), (65, 64), (500, 3)])
def test_small_and_odd_pictures_come_out_at_any_size(name, shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for size in (32, 64):
        extents(name, picture, size, draws=5)


@pytest.mark.parametrize("shape", [(2, 400_000), (400_000, 2)])
def test_a_line_of_pixels_does_not_fill_the_memory(shape, coordinates):
    picture = coordinates(*shape)
    for inference in (transforms.dalle_inference, transforms.clip_inference):
        left, right, top, bottom = window(inference(picture, 64), *shape)
        middle = (top + bottom) / 2 if shape[0] > 2 else (left + right) / 2
        assert abs(middle - 200_000) < 2000  # one level of colour is 1570 pixels


def test_a_picture_of_the_right_size_is_left_as_it_is():
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    rng = np.random.default_rng(0)
    for augment in (Augment.NONE, Augment.CLIP_INFERENCE, Augment.CLIP, Augment.DALLE):
        assert np.array_equal(transforms.make_transform(augment, 32)(picture, rng), picture)
    square = transforms.dvae_augment(picture, 32, rng)
    assert np.array_equal(square, picture) or np.array_equal(square, picture[:, ::-1])


def test_small_pictures_are_enlarged_smoothly():
    step = np.repeat(np.array([[0, 255]], np.uint8), 2, 0)[..., None].repeat(3, -1)
    square = transforms.dalle_augment(step, 16, np.random.default_rng(0))
    assert len(np.unique(square[0, :, 0])) > 4  # nearest-neighbour blocks would have two values


def test_decoding_small_leaves_the_augmentation_alone(coordinates):
    file = io.BytesIO()
    Image.fromarray(coordinates(800, 1000)).save(file, "JPEG", quality=95)
    for augment in (Augment.DVAE, Augment.DALLE, Augment.CLIP):
        limit = transforms.shrink_to(augment, 64)
        small = decode(file.getvalue(), max_pixels=1 << 20, shrink_to=limit)
        assert min(small.shape[:2]) == 100
        _, found = extents(augment.value, small, 64)
        _, reference = extents(augment.value, coordinates(800, 1000), 64)
        shares, wanted = found.mean(0) / [125, 125, 100, 100], reference.mean(0) / [1000, 1000, 800, 800]
        assert np.abs(shares - wanted).max() < 0.05
    assert transforms.shrink_to(Augment.NONE, 64) is None and transforms.shrink_to(Augment.CLIP_INFERENCE, 64) is None


@pytest.mark.parametrize("shape", [(3, 601), (601, 3), (2, 501), (1, 500), (1, 65), (1, 64), (7, 500)])
def test_very_long_images_are_scaled_as_if_whole(shape):
    """The square is the one that is cut from the whole image scaled, to a level: no shift by part of a pixel."""
    image, size = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8), 32
    short = min(shape)
    for transform, height, width, filter_ in (
        (transforms.clip_inference, *(size * side // short for side in shape), Image.Resampling.BICUBIC),
        (transforms.dalle_inference, *(round(size / short * side) for side in shape), Image.Resampling.LANCZOS),
    ):
        whole = np.asarray(Image.fromarray(image).resize((width, height), filter_))
        difference = transform(image, size).astype(int) - transforms.centre_crop(whole, size)
        assert np.abs(difference).max() <= 1
