"""Images as people hold them: arrays, Pillow images, paths."""

import os
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dalle_jax.data.config import DataConfig
from dalle_jax.data.images.decode import decode, to_rgb
from dalle_jax.data.images.orientation import noted, turned
from dalle_jax.data.records import BadSample
from dalle_jax.errors import UserError
from dalle_jax.storage import as_path

ImageLike = np.ndarray | Image.Image | str | os.PathLike
"""uint8 [height, width, 3], a Pillow image, or the path of a file."""

_MAX_PIXELS = DataConfig.max_pixels


def image_list(images: np.ndarray | Iterable[ImageLike] | ImageLike) -> list[ImageLike]:
    """Images as a list.

    Args:
      images: any number of them, or uint8 [B, height, width, 3].

    Raises:
      UserError: it is one image, not several.
    """
    if isinstance(images, str | os.PathLike | Image.Image):
        raise UserError(f"images come in a list, [image], and this is one alone: {str(images)[:80]}")
    if isinstance(images, np.ndarray) and images.ndim == 3:
        raise UserError(f"images come in a list or as [B, height, width, 3], not one alone of shape {images.shape}")
    return list(images)


def read_image(image: ImageLike, index: int = 0) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of an image, RGB, upright (the orientation that EXIF or XMP notes is applied).

    Args:
      image: of any size.
      index: of it among others, for the message.

    Raises:
      UserError: it is not an image, or a file cannot be read.
    """
    if isinstance(image, Image.Image):
        return _of_pillow(image, index)
    if isinstance(image, str | os.PathLike):
        return _read(image)
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise UserError(
            f"image {index} is {array.dtype} of shape {array.shape}: give uint8 [height, width, 3] from 0 to 255"
        )
    return array


def _of_pillow(image: Image.Image, index: int) -> np.ndarray:
    try:
        return np.asarray(turned(to_rgb(image), noted(image)))
    except (OSError, ValueError, SyntaxError) as error:  # a file is read when its pixels are asked for
        raise UserError(f"cannot read image {index}: {error}") from error


def _read(path: str | os.PathLike) -> np.ndarray:
    try:
        return decode(as_path(path).read_bytes(), max_pixels=_MAX_PIXELS)
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror or error}") from error
    except BadSample as error:
        raise UserError(f"cannot read the image {path}: {error}") from error
