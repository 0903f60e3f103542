"""From the bytes of a picture to red, green and blue."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from dalle_jax.data.records import BadReason, BadSample

Picture = UInt8[np.ndarray, "height width 3"]


def decode(data: bytes | np.ndarray, *, max_pixels: int, shrink_to: int | None = None) -> Picture:
    """Decodes a picture in any format that Pillow reads; an animation gives its first frame.

    Whatever the file holds becomes 8-bit RGB: CMYK, palettes, greys and 16-bit are converted, transparent parts are
    laid on white, and the orientation that a camera notes in EXIF is applied. Colour profiles are ignored.

    Args:
      data: an encoded picture, or uint8 [height, width, 3], which is returned as it is.
      max_pixels: larger pictures are refused before anything is unpacked.
      shrink_to: allows a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size as long as no side falls below this many
        pixels. It skips most of the work, and averages nearly as a box filter does: good for random augmentation, not
        for exact preprocessing.

    Raises:
      BadSample: where it is no picture, ends early, or is too large.
    """
    if isinstance(data, np.ndarray):
        return data
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise BadSample(BadReason.TOO_LARGE, f"{image.width}x{image.height} pixels")
            if shrink_to is not None and image.format == "JPEG":
                image.draft(None, (shrink_to, shrink_to))
            image.load()
            return np.asarray(to_rgb(upright(image)))
    except BadSample:
        raise
    except Image.DecompressionBombError as error:
        raise BadSample(BadReason.TOO_LARGE, str(error)) from error
    except UnidentifiedImageError as error:
        raise BadSample(BadReason.NOT_A_PICTURE, str(error)) from error
    except Exception as error:
        # On damaged bytes Pillow's readers raise whatever the damage leads to: OSError for an early end, but also
        # SyntaxError, ValueError, struct.error, EOFError, IndexError. Nothing of ours runs inside this block.
        raise BadSample(BadReason.TRUNCATED, f"{type(error).__name__}: {error}") from error


def upright(image: Image.Image) -> Image.Image:
    """An image turned as the camera notes in EXIF."""
    # Looking for EXIF costs more than decoding a tiny picture, and only these carry any.
    return ImageOps.exif_transpose(image) if "exif" in image.info or image.format in ("TIFF", "MPO") else image


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image in any mode; transparent parts are laid on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip at 255
        values = np.asarray(image)
        image = Image.fromarray((values >> 8 if values.max() > 255 else values).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
