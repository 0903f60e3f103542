"""Reads an image back into the scene it shows, from pixels alone: image analysis, no trained model.

The background is the median colour. What remains is explained by templates, one for each shape and size, by least
squares: at every position the best colour for the template, and how much of the remainder it explains. The template,
position and colour that explain most are the object; its surroundings are cleared before the next one is looked for.
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from dalle_jax.data.shapes.scenes import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Object, Scene, draw_shape

ATTRIBUTES = ("background", "color", "shape", "size", "place")
CHANCE = {
    "background": 1 / len(BACKGROUNDS),
    "color": 1 / len(COLORS),
    "shape": 1 / len(SHAPES),
    "size": 1 / len(SIZES),
    "place": 1 / len(PLACES),
}
"""Accuracy of a guess that does not look."""

NONE = "none"
"""In place of an attribute that the image does not show."""

_SIDE = 64
_NOISE = 24.0  # Euclidean distances in RGB; the palest object is 90 away from its background
_NEAR = 60.0  # a background further than this from all of the known ones is none of them
_COVERED = 0.4  # of the pixels are to be like the background; two large objects leave 0.65
_EXPLAINED = 0.4  # share of the remainder that an object must explain to be one
_PLACE_TOLERANCE = 7 / 64  # of the side; jitter reaches 2.9 / 64, half-way between two places is 11.3 / 64


def judge(images: UInt8[np.ndarray, "B height width 3"], num_objects: int = 1) -> list[Scene]:
    """Reads the scenes that images show.

    Args:
      images: square images of any size.
      num_objects: objects to look for, most conspicuous first.

    Returns:
      One scene an image, with exactly `num_objects` objects; `NONE` stands for an attribute that is not recognised.
    """
    return [_judge_one(_at_judged_size(image), num_objects) for image in images]


def accuracy(images: UInt8[np.ndarray, "B height width 3"], scenes: Sequence[Scene]) -> Float[np.ndarray, "B 5"]:
    """Scores images against the scenes they were to show.

    Returns:
      For each image and each of `ATTRIBUTES` (in this order) the share of its objects that have it right: 0 or 1 for
      one object. Two objects are matched to the image's in the order that gives more attributes right.
    """
    scores = np.zeros((len(scenes), len(ATTRIBUTES)))
    for row, image, scene in zip(scores, images, scenes, strict=True):
        (seen,) = judge(image[None], len(scene.objects))
        row[0] = seen.background == scene.background
        row[1:] = max((_agreement(order, scene.objects) for order in itertools.permutations(seen.objects)), key=np.sum)
    return scores


def _agreement(seen: Sequence[Object], wanted: Sequence[Object]) -> np.ndarray:
    """Share of the objects that agree in each attribute but the background."""
    pairs = list(zip(seen, wanted, strict=True))
    return np.mean([[getattr(a, name) == getattr(b, name) for name in ATTRIBUTES[1:]] for a, b in pairs], axis=0)


def _judge_one(image: UInt8[np.ndarray, "64 64 3"], num_objects: int) -> Scene:
    pixels = image.astype(np.float64)
    background = np.median(pixels, axis=(0, 1))
    remainder = pixels - background
    contrast = np.linalg.norm(remainder, axis=-1)
    remainder[contrast < max(_NOISE, 2.0 * np.median(contrast))] = 0.0
    objects = []
    for others in reversed(range(num_objects)):
        thing, remainder = _strongest_object(remainder, background, others)
        objects.append(thing)
    plain = np.mean(contrast < _NEAR) > _COVERED
    return Scene(_nearest(background, BACKGROUNDS, within=_NEAR) if plain else NONE, tuple(objects))


def _strongest_object(
    remainder: Float[np.ndarray, "64 64 3"], background: Float[np.ndarray, "3"], others: int
) -> tuple[Object, Float[np.ndarray, "64 64 3"]]:
    """The object that explains most of the remainder, and the remainder with its surroundings cleared.

    It must explain its share of all that is there, so that an image of clutter shows nothing; where `others` are
    still to be found it is the strongest of `1 + others`.
    """
    names, spectra, norms = _templates()
    correlation = np.fft.irfft2(np.fft.rfft2(remainder, axes=(0, 1)) * spectra, (_SIDE, _SIDE), axes=(1, 2))
    explained = np.sum(correlation**2, axis=-1) / norms[:, None, None]
    best, y, x = np.unravel_index(np.argmax(explained), explained.shape)
    energy = np.sum(remainder**2) / (1 + others)
    if energy == 0.0 or explained[best, y, x] < _EXPLAINED * energy:
        return Object(NONE, NONE, NONE, NONE), remainder
    shape, size = names[best]
    color = _nearest(background + correlation[best, y, x] / norms[best], COLORS)
    rows, columns = np.ogrid[:_SIDE, :_SIDE]
    reach = SIZES[size] * _SIDE / 2 + 2
    elsewhere = np.maximum(abs(rows - y), abs(columns - x)) > reach
    return Object(color, shape, size, _place(x / _SIDE, y / _SIDE)), remainder * elsewhere[..., None]


def _place(x: float, y: float) -> str:
    distances = {name: np.hypot(x - px, y - py) for name, (px, py) in PLACES.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= _PLACE_TOLERANCE else NONE


def _nearest(color: Float[np.ndarray, "3"], palette: dict[str, tuple[int, int, int]], within: float = np.inf) -> str:
    distances = {name: np.linalg.norm(color - np.array(known)) for name, known in palette.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= within else NONE


def _at_judged_size(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "64 64 3"]:
    if image.shape[:2] == (_SIDE, _SIDE):
        return image
    return np.asarray(Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BOX))


@functools.cache
def _templates() -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
    """(shape, size) of each template, the conjugate spectrum of its coverage [n, 64, 33, 1], its squared norm [n]."""
    names = list(itertools.product(SHAPES, SIZES))
    coverage = np.stack([_coverage(shape, SIZES[size]) for shape, size in names])
    return names, np.conj(np.fft.rfft2(coverage, axes=(1, 2)))[..., None], np.sum(coverage**2, axis=(1, 2))


def _coverage(shape: str, diameter: float) -> Float[np.ndarray, "64 64"]:
    """How much of each pixel a shape around the origin covers, in [0, 1]; the image wraps round."""
    finer = 8
    canvas = Image.new("L", (_SIDE * finer, _SIDE * finer), 0)
    middle = _SIDE * finer / 2
    draw_shape(ImageDraw.Draw(canvas), shape, (middle, middle), diameter * _SIDE * finer, 255, 0)
    coverage = np.asarray(canvas.reduce(finer), np.float64) / 255
    return np.roll(coverage, (-_SIDE // 2, -_SIDE // 2), axis=(0, 1))
