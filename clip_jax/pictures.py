"""Pictures as people hold them, brought to what the image tower reads.

Two roads lead there: Pillow's, exact, for pictures on the host, and one for pictures that are on a device already and
stay there, which agrees with it to one level of 255.
"""

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, UInt8
from PIL import Image

from dalle_jax.data.config import Augment, DataConfig
from dalle_jax.data.decode import decode, to_rgb
from dalle_jax.data.records import BadSample
from dalle_jax.data.transforms import inference_transform
from dalle_jax.errors import UserError

Picture = np.ndarray | Image.Image | str | os.PathLike
"""uint8 [height, width, 3], a Pillow image, or the path of a file."""

_MAX_PIXELS = DataConfig.max_pixels


def preprocess(
    pictures: np.ndarray | Sequence[Picture], size: int, preprocessing: Augment = Augment.CLIP_INFERENCE
) -> UInt8[np.ndarray, "B size size 3"]:
    """Inference preprocessing: RGB, and a square with Pillow's bicubic filter.

    Args:
      pictures: a list, or uint8 [B, height, width, 3].
      size: pixels a side.
      preprocessing: CLIP's, the short side to `size` and a centre crop; or `SQUARE`, SigLIP's, both sides to `size`.

    Raises:
      UserError: something is not a picture, or a file cannot be read.
    """
    transform = inference_transform(preprocessing, size)
    squares = [transform(_pixels(picture, i)) for i, picture in enumerate(pictures)]
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


def _pixels(picture: Picture, index: int) -> np.ndarray:
    if isinstance(picture, Image.Image):
        return np.asarray(to_rgb(picture))
    if isinstance(picture, str | os.PathLike):
        return _read(picture)
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise UserError(
            f"picture {index} is {array.dtype} of shape {array.shape}: give uint8 [height, width, 3] from 0 to 255"
        )
    return array


def _read(path: str | os.PathLike) -> np.ndarray:
    try:
        return decode(epath.Path(path).read_bytes(), max_pixels=_MAX_PIXELS)
    except OSError as error:
        raise UserError(f"cannot read the picture {path}: {error.strerror or error}") from error
    except BadSample as error:
        raise UserError(f"cannot read the picture {path}: {error}") from error
