"""A line plot as an image, drawn with Pillow: the core brings no plotting library."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from launch.monitoring.plot_axes import Axis, Scale, scale

COLOURS = (
    (31, 119, 180),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (255, 127, 14),
    (23, 162, 184),
    (140, 86, 75),
    (227, 119, 194),
    (90, 90, 90),
    (188, 170, 20),
)

FINE = 3
"""Everything is drawn at three times its size and made small again, so that slanted lines are smooth."""

LEFT, RIGHT, TOP, BOTTOM = 80, 30, 30, 60
"""Pixels around the frame."""

GRID, TEXT, FRAME = (230, 230, 230), (40, 40, 40), (0, 0, 0)

Point = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve of (x, y)."""

    label: str
    colour: tuple[int, int, int]
    points: Sequence[Point]
    bold: bool = True
    """Thick and named in the legend; else faint."""


@dataclasses.dataclass(frozen=True)
class Span:
    """A double arrow from one x to another at a height, with words over it."""

    text: str
    start: float
    end: float
    y: float


def draw_lines(
    lines: Sequence[Line], x: Axis, y: Axis, spans: Sequence[Span] = (), width: int = 900, height: int = 600
) -> Image.Image:
    """Curves in a frame. The legend names the bold lines and stands in the corner where it hides least.

    Args:
      lines: drawn in order, the faint ones first.
      x: its label stands below.
      y: its label stands above, at the left.
      spans: arrows over the curves.
      width: of the image, pixels.
      height: of the image, pixels.
    """
    return _Plot(lines, x, y, width, height).draw(spans)


class _Plot:
    """One frame and all that stands in it. Coordinates are pixels of the finished image."""

    def __init__(self, lines: Sequence[Line], x: Axis, y: Axis, width: int, height: int):
        self.lines = sorted(lines, key=lambda line: line.bold)
        self.x = scale(x, [x for line in lines for x, _ in line.points])
        last = [line.points[-1][1] for line in lines if line.points]
        self.y = scale(y, [y for line in lines for _, y in line.points], last)
        self.width, self.height = width, height
        self.left, self.right, self.top, self.bottom = LEFT, width - RIGHT, TOP, height - BOTTOM
        self.sheet = Image.new("RGB", (width * FINE, height * FINE), "white")
        self.pen = ImageDraw.Draw(self.sheet)
        self.font = ImageFont.load_default(size=14 * FINE)

    def draw(self, spans: Sequence[Span]) -> Image.Image:
        self._grid()
        self._curves()
        self._legend()
        for i, span in enumerate(spans):
            self._span(span, below=bool(i % 2))
        return self.sheet.reduce(FINE)

    def at(self, x: float, y: float) -> Point:
        return (
            self.left + self.x.place(x) * (self.right - self.left),
            self.bottom - self.y.place(y) * (self.bottom - self.top),
        )

    def _line(self, points: Sequence[Point], colour: tuple[int, int, int], width: float) -> None:
        self.pen.line(_fine(points), fill=colour, width=round(width * FINE), joint="curve")

    def _text(self, x: float, y: float, text: str, anchor: str) -> None:
        self.pen.text((x * FINE, y * FINE), text, fill=TEXT, font=self.font, anchor=anchor)

    def _length(self, text: str) -> float:
        return self.pen.textlength(text, self.font) / FINE

    def _grid(self) -> None:
        for tick in self.y.ticks:
            height = self.at(self.x.low, tick)[1]
            self._line([(self.left, height), (self.right, height)], GRID, 1)
            self._text(self.left - 8, height, self.y.axis.form(tick), "rm")
        for tick, label in _readable(self.x, self._length, self.right - self.left):
            place = self.at(tick, self.y.low)[0]
            self._line([(place, self.bottom), (place, self.bottom + 4)], FRAME, 1)
            half = self._length(label) / 2
            self._text(min(place, self.width - 6 - half), self.bottom + 8, label, "ma")
        self._text((self.left + self.right) / 2, self.height - 24, self.x.axis.label, "ma")
        self._text(self.left, 6, self.y.axis.label, "la")

    def _curves(self) -> None:
        """On a sheet of their own, of which what lies in the frame is kept."""
        left, top, right, bottom = (round(side * FINE) for side in (self.left, self.top, self.right + 1, self.bottom))
        whole, self.sheet = self.sheet, self.sheet.copy()
        self.pen = ImageDraw.Draw(self.sheet)
        for line in self.lines:
            red, green, blue = ((2 * channel + 3 * 255) // 5 for channel in line.colour)
            points = [self.at(*point) for point in line.points]
            colour, width = (line.colour, 2.5) if line.bold else ((red, green, blue), 1.3)
            if len(points) == 1:
                (x, y), r = points[0], 3
                self.pen.ellipse([(x - r) * FINE, (y - r) * FINE, (x + r) * FINE, (y + r) * FINE], fill=colour)
            elif points:
                self._line(points, colour, width)
        whole.paste(self.sheet.crop((left, top, right, bottom)), (left, top))
        self.sheet, self.pen = whole, ImageDraw.Draw(whole)
        self._line([(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)], FRAME, 1)

    def _legend(self) -> None:
        named = [line for line in self.lines if line.bold and line.label]
        if not named:
            return
        wide = 44 + math.ceil(max(self._length(line.label) for line in named))  # whole pixels: its sides stay sharp
        tall = 20 * len(named) + 8
        boxes = [
            (x, y, x + wide, y + tall)
            for y in (self.top + 8, self.bottom - tall - 8)
            for x in (self.right - wide - 8, self.left + 10)
        ]
        left, top, right, bottom = min(boxes, key=self._hidden)
        self.pen.rectangle([side * FINE for side in (left, top, right, bottom)], fill="white", outline=GRID, width=FINE)
        for i, line in enumerate(named):
            middle = top + 14 + 20 * i
            self._line([(left + 8, middle), (left + 30, middle)], line.colour, 3)
            self._text(left + 38, middle, line.label, "lm")

    def _hidden(self, box: Box) -> int:
        """How many pieces of the bold curves lie in a box."""
        left, top, right, bottom = box
        count = 0
        for line in self.lines:
            points = [self.at(*point) for point in line.points] if line.bold else []
            for (x_0, y_0), (x_1, y_1) in itertools.pairwise(points):
                apart = max(x_0, x_1) < left or min(x_0, x_1) > right or max(y_0, y_1) < top or min(y_0, y_1) > bottom
                count += not apart
        return count

    def _span(self, span: Span, below: bool) -> None:
        """Neighbours may lie at one height: their words take turns above and below, and stay on the sheet."""
        (x_0, y), (x_1, _) = self.at(span.start, span.y), self.at(span.end, span.y)
        self._line([(x_0, y), (x_1, y)], FRAME, 2)
        for x, turn in ((x_0, 6), (x_1, -6)):
            self._line([(x + turn, y - 4), (x, y), (x + turn, y + 4)], FRAME, 2)
        middle = min((x_0 + x_1) / 2, self.width - 6 - self._length(span.text) / 2)
        self._text(middle, y + (8 if below else -6), span.text, "ma" if below else "md")


def _fine(points: Sequence[Point]) -> list[Point]:
    """Middles of pixels on the large sheet, no further outside of it than Pillow draws."""
    return [(x * FINE + FINE // 2, max(-1e5, min(1e5, y * FINE + FINE // 2))) for x, y in points]


def _readable(axis: Scale, length, room: float) -> list[tuple[float, str]]:
    """Ticks with their words, as many as do not run into each other."""
    named = [(tick, axis.axis.form(tick)) for tick in axis.ticks]
    for every in itertools.count(1):
        kept = named[::every]
        places = [axis.place(tick) * room for tick, _ in kept]
        halves = [length(label) / 2 for _, label in kept]
        gaps = [b - a for a, b in itertools.pairwise(places)]
        need = [a + b + 10 for a, b in itertools.pairwise(halves)]
        if all(gap >= wanted for gap, wanted in zip(gaps, need, strict=True)):
            return kept
    return []
