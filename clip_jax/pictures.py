"""Pictures as people hold them, brought to what the image tower reads.

Two roads lead there: Pillow's, exact, for pictures on the host, and one for pictures that are on a device already and
stay there, which agrees with it to one level of 255.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from dalle_jax.data.config import Augment
from dalle_jax.data.pictures import Picture, picture_list, read_picture
from dalle_jax.data.transforms import inference_transform


def preprocess(
    pictures: np.ndarray | Iterable[Picture],
    size: int,
    preprocessing: Augment = Augment.CLIP_INFERENCE,
    *,
    first: int = 0,
) -> UInt8[np.ndarray, "B size size 3"]:
    """Inference preprocessing: RGB, and a square with Pillow's bicubic filter.

    Args:
      pictures: a list, or uint8 [B, height, width, 3].
      size: pixels a side.
      preprocessing: CLIP's, the short side to `size` and a centre crop; or `SQUARE`, SigLIP's, both sides to `size`.
      first: number of the first one, for messages.

    Raises:
      UserError: something is not a picture, or a file cannot be read.
    """
    transform = inference_transform(preprocessing, size)
    squares = [transform(read_picture(picture, i)) for i, picture in enumerate(picture_list(pictures), first)]
    return np.stack(squares) if squares else np.zeros((0, size, size, 3), np.uint8)


def preprocess_on_device(
    images: UInt8[Array, "B height width 3"], size: int, preprocessing: Augment = Augment.CLIP_INFERENCE
) -> Float[Array, "B size size 3"]:
    """The same on device; values stay in [0, 255], rounded after each pass as Pillow rounds them."""
    _, height, width, _ = images.shape
    x = images.astype(jnp.float32)
    if (height, width) == (size, size):
        return x
    new_height, new_width = (size, size * width // height) if height <= width else (size * height // width, size)
    if preprocessing is Augment.SQUARE:
        new_height = new_width = size
    for axis, length in ((2, new_width), (1, new_height)):
        shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
        x = jnp.clip(jnp.round(jax.image.resize(x, shape, "cubic", antialias=True)), 0, 255)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    return x[:, top : top + size, left : left + size]
