"""Images as people hold them, brought to what the image tower reads.

Two roads lead there: Pillow's, exact, for images on the host, and one for images that are on a device already and
stay there, which agrees with it to one level of 255.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from dalle_jax.data.config import BICUBIC, Augment, Resample, Resizing
from dalle_jax.data.images.arrays import ImageLike, image_list, read_image
from dalle_jax.data.images.transforms import inference_transform, long_side_to, short_side_to

_ON_DEVICE = {Resample.BILINEAR: "linear", Resample.BICUBIC: "cubic", Resample.LANCZOS: "lanczos3"}
"""Of `jax.image.resize`."""


def preprocess(
    images: np.ndarray | Iterable[ImageLike],
    size: int,
    preprocessing: Augment = Augment.CLIP_INFERENCE,
    resizing: Resizing = BICUBIC,
    *,
    first: int = 0,
) -> UInt8[np.ndarray, "B size size 3"]:
    """Inference preprocessing: RGB, and a square, resized by Pillow.

    Args:
      images: a list, or uint8 [B, height, width, 3].
      size: pixels a side.
      preprocessing: CLIP's, the short side to `size` and a centre crop; `SQUARE`, SigLIP's, both sides to `size`; or
        `LETTERBOX`, the long side to `size`.
      resizing: the filter, bicubic where nothing is said, and what else these leave open.
      first: number of the first one, for messages.

    Raises:
      UserError: something is not an image, or a file cannot be read.
    """
    transform = inference_transform(preprocessing, size, resizing)
    squares = [transform(read_image(image, i)) for i, image in enumerate(image_list(images), first)]
    return np.stack(squares) if squares else np.zeros((0, size, size, 3), np.uint8)


def preprocess_on_device(
    images: UInt8[Array, "B height width 3"],
    size: int,
    preprocessing: Augment = Augment.CLIP_INFERENCE,
    resizing: Resizing = BICUBIC,
) -> Float[Array, "B size size 3"]:
    """The same on device; values stay in [0, 255], rounded after each pass as Pillow rounds them."""
    _, height, width, _ = images.shape
    new_height, new_width = _resized(height, width, size, preprocessing)
    x = images.astype(jnp.float32)
    for axis, length in ((2, new_width), (1, new_height)):
        if x.shape[axis] != length and resizing.resample is Resample.NEAREST:
            x = jnp.take(x, _nearest(x.shape[axis], length), axis)
        elif x.shape[axis] != length:
            shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
            x = jax.image.resize(x, shape, _ON_DEVICE[resizing.resample], antialias=True)
            x = jnp.clip(jnp.round(x), 0, 255)
    if preprocessing is Augment.LETTERBOX:
        top, left = (size - new_height) // 2, (size - new_width) // 2
        bars = ((0, 0), (top, size - new_height - top), (left, size - new_width - left), (0, 0))
        return jnp.pad(x, bars, constant_values=resizing.fill)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    return x[:, top : top + size, left : left + size]


def _resized(height: int, width: int, size: int, preprocessing: Augment) -> tuple[int, int]:
    """(height, width) before the crop, or inside the bars."""
    if preprocessing is Augment.LETTERBOX:
        return long_side_to(height, width, size)
    return (size, size) if preprocessing is Augment.SQUARE else short_side_to(height, width, size)


def _nearest(length: int, new: int) -> np.ndarray:
    """The pixels that stay; Pillow adds up their distance, and so rounds a tie as this does."""
    steps = np.full(new, length / new)
    steps[0] /= 2
    return np.floor(np.cumsum(steps)).astype(np.int32)
