"""Resampling by exact area: what DALL·E's augmentations call the AREA filter.

Each pixel of the result is the mean of the rectangle of the original that it covers, pixels at the edges counted by the
share that lies inside. Pillow's BOX takes whole pixels by their centres instead: between scales 1 and 2 each result is
one pixel or two, which is nearly the nearest neighbour.
"""

import functools

import numpy as np
import scipy.sparse
from jaxtyping import Float32, UInt8

_COLUMNS = 4096
"""Values of a row that are averaged at once, so that a large image is never held as float32 whole."""


def resize_area(
    image: UInt8[np.ndarray, "height width 3"], height: int, width: int
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Shrinks an image to `height` x `width` pixels, neither larger than the image's own.

    Two sparse products, of a few weights a row, one along each axis; the sums are float32 and rounded once, to even.
    """
    rows = _average(image.reshape(len(image), -1), height).reshape(height, -1, 3)
    columns = _average(rows.swapaxes(0, 1).reshape(rows.shape[1], -1), width)
    # No sum is above 255 by more than rounding, nor below 0.
    return np.rint(columns).astype(np.uint8).reshape(width, height, 3).swapaxes(0, 1)


def _average(x: np.ndarray, count: int) -> Float32[np.ndarray, "count columns"]:
    """Rows of `x` [size, columns] averaged into `count` rows."""
    weights = area_weights(len(x), count)
    parts = [x[:, start : start + _COLUMNS] for start in range(0, x.shape[1], _COLUMNS)]
    return np.concatenate([weights @ part.astype(np.float32) for part in parts], axis=1)


@functools.lru_cache(maxsize=256)
def area_weights(size: int, count: int) -> scipy.sparse.csr_array:
    """float32 [count, size]: the share of pixel i in result k, of `size` pixels averaged into `count`."""
    scale = size / count
    start = np.arange(count)[:, None] * scale
    pixels = np.floor(start).astype(np.int64) + np.arange(int(np.ceil(scale)) + 1)
    inside = np.minimum(start + scale, pixels + 1) - np.maximum(start, pixels)
    shares = np.clip(inside, 0, None) / scale
    starts = np.arange(count + 1) * pixels.shape[1]
    # A pixel past the end has no share; it names the last one.
    entries = shares.astype(np.float32).ravel(), np.minimum(pixels, size - 1).ravel(), starts
    return scipy.sparse.csr_array(entries, shape=(count, size))
