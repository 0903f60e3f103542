"""From an image of any size to a square one: the two published augmentations of DALL·E, CLIP's, one for small
images, and what the models do at inference.

All take uint8 [height, width, 3] and give uint8 [size, size, 3]. An image is never enlarged more than it must be:
where its short side is below `size`, it is brought to exactly `size` with a bicubic filter (the published code assumes
that this does not happen), and a scale that would be drawn at random is `size`. What CLIPs differ in is said by a
`Resizing`.
"""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dalle_jax.data.config import BICUBIC, Augment, Resample, Resizing
from dalle_jax.data.images.area import resize_area
from dalle_jax.data.images.decode import RgbImage

Square = UInt8[np.ndarray, "size size 3"]
Resized = UInt8[np.ndarray, "_ _ 3"]  # not of the height and width that a function's argument has
Box = tuple[float, float, float, float]

_LONG = 64
"""Times its short side, from which length on an image is not scaled whole: a line of pixels would fill the memory."""


def dvae_augment(image: RgbImage, size: int, rng: np.random.Generator) -> Square:
    """DALL·E's augmentation for the codec (Listing 1).

    A random square of the short side s, scaled to t x t with t uniform from min(s, 9/8 size) to min(s, 12/8 size),
    then a random crop, mirrored half of the time. The scaling averages exact areas (`dalle_jax.data.images.area`); the
    paper's aligns the corner pixels of both images, which moves nothing by more than a pixel.
    """
    height, width, _ = image.shape
    short = min(height, width)
    top, left = rng.integers(height - short + 1), rng.integers(width - short + 1)
    target = _uniform(rng, max(size, min(short, round(9 / 8 * size))), max(size, min(short, round(12 / 8 * size))))
    square = _scaled_crop(image, int(top), left=int(left), side=short, target=target, size=size, rng=rng)
    return square[:, ::-1] if rng.random() < 0.5 else square


def dalle_augment(image: RgbImage, size: int, rng: np.random.Generator) -> Square:
    """DALL·E's augmentation for the decoder (Listing 2).

    A near-central square of the short side s, scaled to t x t with t uniform from size to min(s, 9/8 size), then a
    random crop. Never mirrored: the image may hold writing, and the caption may say left or right.
    """
    height, width, _ = image.shape
    short = min(height, width)
    top, left = _near_centre(rng, height - short), _near_centre(rng, width - short)
    target = _uniform(rng, size, max(size, min(short, round(9 / 8 * size))))
    return _scaled_crop(image, top, left=left, side=short, target=target, size=size, rng=rng)


def clip_augment(image: RgbImage, size: int, rng: np.random.Generator, how: Resizing = BICUBIC) -> Square:
    """CLIP's augmentation (section 2.3): the short side resized to `size`, then a random square crop."""
    new_height, new_width = _short_side_to(image, size)
    top, left = rng.integers(new_height - size + 1), rng.integers(new_width - size + 1)
    height, width, _ = image.shape
    # Resizing the region that the crop covers equals cropping the resized image, and touches no other pixel.
    scale_y, scale_x = height / new_height, width / new_width
    box = (left * scale_x, top * scale_y, (left + size) * scale_x, (top + size) * scale_y)
    return _resize(image, size, size, _PILLOW[how.resample], box)


def crop_and_mirror(image: RgbImage, size: int, rng: np.random.Generator, how: Resizing = BICUBIC) -> Square:
    """The usual one for small photographs (He et al. 2015, section 4.2), for CLIPs of theirs.

    The short side resized to `size`, an eighth of it more on every side by reflection, then a random square crop,
    mirrored half of the time.
    """
    image, pad = _without_far_ends(image), size // 8
    resized = _resize(image, *_short_side_to(image, size), _PILLOW[how.resample])
    padded = np.pad(resized, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    height, width, _ = padded.shape
    top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
    square = padded[top : top + size, left : left + size]
    return square[:, ::-1] if rng.random() < 0.5 else square


def dalle_inference(image: RgbImage, size: int) -> Square:
    """What DALL·E's codec is given at inference: Lanczos to a short side of `size`, centre crop."""
    height, width, _ = image.shape
    ratio = size / min(height, width)
    return _centre_of_resized(image, size, round(ratio * height), round(ratio * width), Image.Resampling.LANCZOS)


def clip_inference(image: RgbImage, size: int, how: Resizing = BICUBIC) -> Square:
    """What CLIP is given at inference: bicubic to a short side of `size`, centre crop."""
    return _centre_of_resized(image, size, *_short_side_to(image, size), _PILLOW[how.resample])


def square(image: RgbImage, size: int, how: Resizing = BICUBIC) -> Square:
    """What SigLIP is given: all of the image, squeezed into the square with a bicubic filter."""
    return _resize(image, size, size, _PILLOW[how.resample])


def letterbox(image: RgbImage, size: int, how: Resizing = BICUBIC) -> Square:
    """All of the image, its long side resized to `size`, in the middle of a square of one level."""
    height, width = long_side_to(image.shape[0], image.shape[1], size)
    resized = _resize(image, height, width, _PILLOW[how.resample])
    top, left = (size - height) // 2, (size - width) // 2
    canvas = np.full((size, size, 3), how.fill, np.uint8)
    canvas[top : top + height, left : left + width] = resized
    return canvas


def centre_crop(image: RgbImage, size: int) -> Square:
    """The central square of an image that is no smaller than `size` on either side."""
    height, width, _ = image.shape
    top, left = _middle(height, width, size)
    return image[top : top + size, left : left + size]


def make_transform(
    augment: Augment, size: int, how: Resizing = BICUBIC
) -> Callable[[RgbImage, np.random.Generator], Square]:
    """The function of `(image, rng)` that an `Augment` names; of CLIP's, `how` says the rest."""
    if augment in _DALLE:
        return lambda image, rng: _DALLE[augment](image, size, rng)
    if augment in _CLIP:
        return lambda image, rng: _CLIP[augment](image, size, rng, how)
    transform = inference_transform(augment, size, how)
    return lambda image, rng: transform(image)


def inference_transform(augment: Augment, size: int, how: Resizing = BICUBIC) -> Callable[[RgbImage], Square]:
    """The function of an image that an `Augment` names, one of those in which nothing is random."""
    if augment is Augment.NONE:
        return functools.partial(dalle_inference, size=size)
    return functools.partial(_CLIP_INFERENCE[augment], size=size, how=how)


def shrink_to(augment: Augment, size: int) -> int | None:
    """The short side below which decoding a JPEG at reduced size would change the augmentation; None: not at all."""
    largest = {Augment.DVAE: round(12 / 8 * size), Augment.DALLE: round(9 / 8 * size), Augment.CLIP: size}
    return largest.get(augment)


_DALLE = {Augment.DVAE: dvae_augment, Augment.DALLE: dalle_augment}

_CLIP = {Augment.CLIP: clip_augment, Augment.CROP_AND_MIRROR: crop_and_mirror}

_CLIP_INFERENCE = {
    Augment.CLIP_INFERENCE: clip_inference,
    Augment.SQUARE: square,
    Augment.LETTERBOX: letterbox,
}

_PILLOW = {filter_: Image.Resampling[filter_.name] for filter_ in Resample}


def _centre_of_resized(image: RgbImage, size: int, height: int, width: int, filter_: Image.Resampling) -> Square:
    """The central square of an image that is scaled to height x width."""
    if max(height, width) <= _LONG * size:
        return centre_crop(_resize(image, height, width, filter_), size)
    (top, left), rows, columns = _middle(height, width, size), image.shape[0], image.shape[1]
    scale_y, scale_x = rows / height, columns / width
    # Along the rows first, as Pillow goes where there is no box: each pass rounds, so that the order shows.
    image = _resize(image, rows, size, filter_, (left * scale_x, 0.0, (left + size) * scale_x, float(rows)))
    return _resize(image, size, size, filter_, (0.0, top * scale_y, float(size), (top + size) * scale_y))


def _middle(height: int, width: int, size: int) -> tuple[int, int]:
    """(top, left) of the central square."""
    return round((height - size) / 2), round((width - size) / 2)  # to even, as torchvision rounds


def _without_far_ends(image: RgbImage) -> Resized:
    """Cuts what lies far from the centre of a very long image."""
    height, width, _ = image.shape
    reach = _LONG * min(height, width)
    top, left = max(0, (height - reach) // 2), max(0, (width - reach) // 2)
    return image[top : top + reach, left : left + reach]


def _uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def _near_centre(rng: np.random.Generator, slack: int) -> int:
    low = 3 * slack // 8
    return int(rng.integers(low, max(low + 1, 5 * slack // 8)))


def _scaled_crop(
    image: RgbImage, top: int, left: int, side: int, target: int, size: int, rng: np.random.Generator
) -> Square:
    """Scales the square at (top, left) to target x target and takes a random size x size crop of that."""
    filter_ = Image.Resampling.BOX if target <= side else Image.Resampling.BICUBIC
    square = _resize(image[top : top + side, left : left + side], target, target, filter_)
    down, right = rng.integers(target - size + 1), rng.integers(target - size + 1)
    return square[down : down + size, right : right + size]


def short_side_to(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) as torchvision's `Resize(size)` computes them: the long side is cut to an integer."""
    return (size, size * width // height) if height <= width else (size * height // width, size)


def long_side_to(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) as open_clip's `resize_mode="longest"` computes them; a line of pixels stays one."""
    ratio = max(height, width) / size
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _short_side_to(image: RgbImage, size: int) -> tuple[int, int]:
    height, width, _ = image.shape
    return short_side_to(height, width, size)


def _resize(image: RgbImage, height: int, width: int, filter_: Image.Resampling, box: Box | None = None) -> Resized:
    if filter_ is Image.Resampling.BOX:
        assert box is None
        return resize_area(image, height, width)  # Pillow's box filter counts whole pixels alone
    if box is not None:
        # Rounding may put an edge of the box outside the image by a hair, which Pillow refuses.
        box = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], image.shape[1]), min(box[3], image.shape[0]))
    return np.asarray(Image.fromarray(image).resize((width, height), filter_, box))
