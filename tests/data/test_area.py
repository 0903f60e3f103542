"""Area averaging against its definition: the integral of the image over each pixel of the result."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dalle_jax.data.images import area
from dalle_jax.data.images.area import area_weights, resize_area


def by_integrals(image, height, width):
    """float64: differences of the integral image, which between pixels is linear along each axis."""
    integral = image.astype(np.float64)
    for axis, count in ((0, height), (1, width)):
        size = image.shape[axis]
        integral = np.moveaxis(np.insert(np.cumsum(integral, axis), 0, 0, axis), axis, 0)
        places = np.arange(count + 1) * (size / count)
        below = np.minimum(places.astype(int), size - 1)
        share = (places - below)[:, None, None]
        edges = integral[below] * (1 - share) + integral[below + 1] * share
        integral = np.moveaxis(np.diff(edges, axis=0) / (size / count), 0, axis)
    return integral


def photograph_like(side):
    """Noise whose power falls with the square of the frequency, as a photograph's does."""
    rng, frequency = np.random.default_rng(0), np.fft.fftfreq(side)
    radius = np.hypot(frequency[:, None], frequency[None])
    radius[0, 0] = 1
    x = np.stack([np.real(np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) / radius)) for _ in range(3)], -1)
    return np.clip(128 + 50 * x / x.std(), 0, 255).astype(np.uint8)


def decibels(a, b):
    return 10 * np.log10(255**2 / np.mean((np.asarray(a, float) - b) ** 2))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_pixel_is_the_mean_of_its_area(data):
    height, width = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    new = data.draw(st.tuples(st.integers(1, height), st.integers(1, width)))
    image = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 256, (height, width, 3), np.uint8)
    found = resize_area(image, *new)
    assert found.dtype == np.uint8 and found.shape == (*new, 3)
    assert np.abs(found - by_integrals(image, *new)).max() < 0.501  # rounding, and float32 at a half


@pytest.mark.parametrize("target", [288, 320, 384])
def test_the_figure_of_parity(target):
    """In dB, of an image of 400 pixels a side: rounding alone is 59; Pillow's box filter reaches 27 to 29."""
    image = photograph_like(400)
    exact = by_integrals(image, target, target)
    assert decibels(resize_area(image, target, target), exact) > 58
    assert decibels(Image.fromarray(image).resize((target, target), Image.Resampling.BOX), exact) < 30


def test_whole_factors_are_means_of_blocks_and_the_same_size_is_the_image_itself():
    image = np.random.default_rng(0).integers(0, 256, (12, 18, 3), np.uint8)
    blocks = image.reshape(4, 3, 9, 2, 3).mean(axis=(1, 3))
    assert np.abs(resize_area(image, 4, 9) - blocks).max() < 0.501
    np.testing.assert_array_equal(resize_area(image, 12, 18), image)


def test_white_stays_white_at_any_scale():
    for size in range(1, 60):
        for count in range(1, size + 1):
            np.testing.assert_allclose(area_weights(size, count).sum(axis=1), 1, rtol=1e-6)
    white = np.full((379, 379, 3), 255, np.uint8)
    assert (resize_area(white, 257, 257) == 255).all()


def test_a_wide_image_is_averaged_in_parts(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    whole = resize_area(image, 20, 31)
    monkeypatch.setattr(area, "_COLUMNS", 7)
    np.testing.assert_array_equal(resize_area(image, 20, 31), whole)
