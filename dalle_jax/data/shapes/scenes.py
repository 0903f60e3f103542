"""Drawn scenes with captions that name every attribute: a text-to-image task whose answers can be measured.

A scene is a background and one or two objects, each with a colour, a shape, a size and a place. All lengths are in
units of the image's side. Objects never touch each other or the border, whatever the jitter.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

COLORS = {
    "red": (214, 36, 36),
    "orange": (247, 142, 22),
    "yellow": (250, 226, 40),
    "green": (38, 158, 64),
    "cyan": (58, 205, 220),
    "blue": (38, 74, 214),
    "purple": (132, 44, 178),
    "pink": (250, 122, 196),
}
BACKGROUNDS = {"white": (246, 246, 246), "gray": (138, 138, 138), "black": (18, 18, 18), "beige": (208, 188, 152)}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = {"small": 0.25, "large": 0.42}
PLACES = {
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
    "center": (0.5, 0.5),
}
"""Where an object's middle is, (x, y) from the top left."""

POSITION_JITTER = 1 / 32
SIZE_JITTER = 0.04

UNSEEN_PAIRS = frozenset(
    (color, SHAPES[(i + 2) % len(SHAPES)])
    for i, color in enumerate(COLORS)
    if i < round(0.15 * len(COLORS) * len(SHAPES))
)
"""The 15% of (colour, shape) that no training object has; each colour and each shape remains in five others or more."""

_CORNERS = tuple(place for place in PLACES if place != "center")
_SUPERSAMPLING = 4


@dataclasses.dataclass(frozen=True)
class Object:
    """One drawn thing, each attribute a key of the tables above."""

    color: str
    shape: str
    size: str
    place: str


@dataclasses.dataclass(frozen=True)
class Scene:
    """What an image shows and its caption says."""

    background: str
    objects: tuple[Object, ...]


def random_scene(rng: np.random.Generator, *, unseen: bool = False, num_objects: int = 1) -> Scene:
    """Draws the attributes of a scene, uniformly.

    Args:
      rng: the only source of randomness.
      unseen: every object's colour and shape from `UNSEEN_PAIRS`, or no object's.
      num_objects: 1, or 2 objects of different colours in different corners (in the centre they would overlap).
    """
    pairs = [(color, shape) for color in COLORS for shape in SHAPES if ((color, shape) in UNSEEN_PAIRS) == unseen]
    places = list(PLACES) if num_objects == 1 else rng.permutation(_CORNERS).tolist()
    objects: list[Object] = []
    while len(objects) < num_objects:
        color, shape = pairs[rng.integers(len(pairs))]
        if color in [other.color for other in objects]:
            continue
        place = places[rng.integers(len(places))]
        places.remove(place)
        objects.append(Object(color, shape, str(rng.choice(list(SIZES))), place))
    return Scene(str(rng.choice(list(BACKGROUNDS))), tuple(objects))


def draw(
    scene: Scene, image_size: int = 64, rng: np.random.Generator | None = None
) -> UInt8[np.ndarray, "size size 3"]:
    """Draws a scene, antialiased.

    Args:
      scene: what to draw.
      image_size: pixels a side.
      rng: shifts each object by up to `POSITION_JITTER` along both axes and scales it by up to `SIZE_JITTER`, so that
        images of one caption differ; None draws it exactly in place.

    Returns:
      Pixels in [0, 255].
    """
    side = image_size * _SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(canvas)
    for thing in scene.objects:
        dx, dy, scale = (0.0, 0.0, 0.0) if rng is None else rng.uniform(-1.0, 1.0, 3)
        x, y = PLACES[thing.place]
        center = ((x + dx * POSITION_JITTER) * side, (y + dy * POSITION_JITTER) * side)
        diameter = SIZES[thing.size] * (1.0 + scale * SIZE_JITTER) * side
        hole = BACKGROUNDS[scene.background]
        draw_shape(pen, thing.shape, center, diameter, COLORS[thing.color], hole)
    return np.asarray(canvas.reduce(_SUPERSAMPLING))


def draw_shape(
    pen: ImageDraw.ImageDraw, shape: str, center: tuple[float, float], diameter: float, fill, background
) -> None:
    """Fills one shape. Their bounding boxes are alike, so that `small` and `large` mean the same for all."""
    x, y = center
    r = diameter / 2

    def polygon(points: Iterator[tuple[float, float]]) -> None:
        pen.polygon([(x + r * px, y + r * py) for px, py in points], fill)

    def disc(radius: float, color) -> None:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), color)

    if shape == "circle":
        disc(r, fill)
    elif shape == "ring":
        disc(r, fill)
        disc(0.55 * r, background)
    elif shape == "square":
        polygon(iter([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]))
    elif shape == "triangle":
        polygon(iter([(0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)]))
    elif shape == "star":
        radii = (1.0, 0.42)
        angles = [math.pi * i / 5 for i in range(10)]
        polygon((radii[i % 2] * math.sin(a), -radii[i % 2] * math.cos(a)) for i, a in enumerate(angles))
    else:
        for w, h in ((1.0, 0.32), (0.32, 1.0)):
            polygon(iter([(-w, -h), (w, -h), (w, h), (-w, h)]))


def captions(scene: Scene) -> tuple[str, ...]:
    """Several phrasings of a scene, each naming all of its attributes."""
    background = scene.background
    if len(scene.objects) == 1:
        (thing,) = scene.objects
        noun = f"{thing.size} {thing.color} {thing.shape}"
        where = _where(thing)
        return (
            f"a {noun} {where} on a {background} background",
            f"on a {background} background, a {noun} {where}",
            f"a {background} picture with a {noun} {where}",
            f"{noun}, {thing.place}, {background} background",
            f"a {thing.color} {thing.shape}, {thing.size}, {where}, on {background}",
            f"there is a {noun} {where} of a {background} picture",
        )
    first, second = (f"a {thing.size} {thing.color} {thing.shape} {_where(thing)}" for thing in scene.objects)
    return (
        f"{first} and {second} on a {background} background",
        f"{second} and {first} on a {background} background",
        f"on a {background} background, {first} and {second}",
        f"a {background} picture with {first} and {second}",
    )


def _where(thing: Object) -> str:
    return f"in the {thing.place}" if thing.place == "center" else f"at the {thing.place}"
