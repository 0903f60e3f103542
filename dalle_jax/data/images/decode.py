"""From the bytes of an image to red, green and blue."""

import io
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, UnidentifiedImageError

from dalle_jax.data.images.bare_image import TransparentColor, bare_image
from dalle_jax.data.images.jpeg_end import END, lacks_only_its_end
from dalle_jax.data.images.orientation import noted, turned
from dalle_jax.data.records import BadReason, BadSample
from dalle_jax.fetched import GIT_LFS

RgbImage = UInt8[np.ndarray, "height width 3"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
"""Those that are read, as Pillow calls them. Its other readers run other programs, or are seldom looked after."""


def decode(data: bytes | np.ndarray, *, max_pixels: int, shrink_to: int | None = None) -> RgbImage:
    """Decodes an image in any of `FORMATS`; an animation gives its first frame.

    Whatever the file holds becomes 8-bit RGB: CMYK, palettes, greys and 16-bit are converted (see `to_rgb`),
    transparent parts are laid on white, and the orientation that is noted in EXIF or XMP is applied. Colour profiles
    are ignored, and so is whatever else lies beside the pixels, damaged or not; a JPEG may lack the marker at its end.

    Args:
      data: an encoded image, or uint8 [height, width, 3], which is returned as it is.
      max_pixels: larger images are refused before anything is unpacked.
      shrink_to: allows a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size as long as no side falls below this many
        pixels. It skips most of the work, and averages nearly as a box filter does: good for random augmentation, not
        for exact preprocessing.

    Raises:
      BadSample: where it is not an image, ends early, or is too large.
    """
    if isinstance(data, np.ndarray):
        return data
    try:
        bare = bare_image(data)
        with Image.open(io.BytesIO(bare.data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise BadSample(BadReason.TOO_LARGE, f"{image.width}x{image.height} pixels")
            if shrink_to is not None and image.format == "JPEG":
                image.draft(None, (shrink_to, shrink_to))
            try:
                image.load()
            except OSError:
                if image.format != "JPEG" or not lacks_only_its_end(bare.data):
                    raise
                return decode(data + END, max_pixels=max_pixels, shrink_to=shrink_to)
            rgb = to_rgb(image)
            if bare.transparent is not None:
                rgb.paste("white", mask=Image.fromarray(_is_transparent(image, bare.data, bare.transparent)))
            return np.asarray(turned(rgb, noted(image) if bare.orientation is None else bare.orientation))
    except BadSample:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # one, where warnings are errors
        raise BadSample(BadReason.TOO_LARGE, str(error)) from error
    except (UnidentifiedImageError, RangeError) as error:
        if data.startswith(GIT_LFS):
            raise BadSample(BadReason.LFS_POINTER) from error
        raise BadSample(BadReason.NOT_A_PICTURE, str(error)) from error
    except Exception as error:
        # On damaged bytes Pillow's readers raise whatever the damage leads to: OSError for an early end, but also
        # SyntaxError, ValueError, struct.error, EOFError, IndexError.
        raise BadSample(BadReason.TRUNCATED, f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image in any mode; transparent parts are laid on white.

    Samples of more than 8 bits are scaled by the smallest of 8, 12 and 16 bits that holds them all: a file seldom says
    how many of its 16 bits the camera has filled. Floats are brightness from 0 to 1, or from 0 to 255 where some are
    above 1.

    Raises:
      RangeError: samples are negative, above 65535 (floats: 255), or not finite, so that nothing says what is white.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        samples = np.asarray(image)
        rgb = Image.fromarray(_eight_bits(samples)).convert("RGB")
        if isinstance(transparent := image.info.get("transparency"), int):
            rgb.paste("white", mask=Image.fromarray(samples == transparent))
        return rgb
    if image.has_transparency_data:
        image = _as_eight_bits(image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


class RangeError(ValueError):
    """The samples of an image are not brightness."""


def _eight_bits(samples: np.ndarray) -> UInt8[np.ndarray, "height width"]:
    low, high = samples.min(), samples.max()
    floating = samples.dtype.kind == "f"
    if not (low >= 0 and high <= (255 if floating else 65535)):  # NaN included
        raise RangeError(
            f"its samples reach from {low:g} to {high:g}, and nothing says what is black and what is white: "
            "scale it to 8 or 16 bits"
        )
    if floating:
        return np.round(samples * (255 if high <= 1 else 1)).astype(np.uint8)
    return (samples >> (0 if high < 1 << 8 else 4 if high < 1 << 12 else 8)).astype(np.uint8)


def _as_eight_bits(image: Image.Image) -> Image.Image:
    """An RGB image whose transparent colour Pillow has left at 16 bits."""
    transparent: Any = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(sample >> 8 for sample in transparent)
    return image


def _is_transparent(image: Image.Image, data: bytes, color: TransparentColor) -> Bool[np.ndarray, "height width"]:
    """Where a PNG has its transparent colour, compared at the depth of the file."""
    samples, wanted = np.asarray(image), np.array(color.samples)
    if color.depth < 8:  # Pillow scales greys to 8 bits, and gives one bit as a bool
        wanted = wanted * (1 if image.mode == "1" else 255 // ((1 << color.depth) - 1))
    if color.depth == 16 and image.mode == "RGB":
        # Pillow keeps the upper byte of each sample. Read in the other order of bytes, it keeps the lower one.
        with Image.open(io.BytesIO(data), formats=["PNG"]) as lower:
            lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
            return np.all((samples == wanted >> 8) & (np.asarray(lower) == wanted & 255), axis=-1)
    return np.all((samples == wanted).reshape(*samples.shape[:2], -1), axis=-1)
