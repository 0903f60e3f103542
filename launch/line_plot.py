"""A plain line plot as a picture, drawn with Pillow: the core brings no plotting library."""

import dataclasses
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

COLOURS = ((31, 119, 180), (44, 160, 44), (214, 39, 40), (148, 103, 189))


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve of (x, y)."""

    label: str
    colour: tuple[int, int, int]
    points: Sequence[tuple[float, float]]
    bold: bool = True


@dataclasses.dataclass(frozen=True)
class Span:
    """A double arrow from one x to another at a height, with words over it."""

    text: str
    start: float
    end: float
    y: float


def draw_lines(
    lines: Sequence[Line], spans: Sequence[Span], x_label: str, y_label: str, width: int = 900, height: int = 600
) -> Image.Image:
    """Both axes start at 0; the legend names the bold lines."""
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    left, right, top, bottom = 80, width - 30, 30, height - 60
    x_end = max([x for line in lines for x, _ in line.points], default=1) or 1
    y_end = math.ceil(21 * max([y for line in lines for _, y in line.points], default=1)) / 20 or 1  # whole 5%

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x / x_end * (right - left), bottom - y / y_end * (bottom - top)

    pen.line([(left, top), (left, bottom), (right, bottom)], fill="black")
    for i in range(6):
        x, y = x_end * i / 5, y_end * i / 5
        pen.text((at(x, 0)[0], bottom + 8), f"{x:,.0f}", fill="black", font=font, anchor="ma")
        pen.text((left - 8, at(0, y)[1]), f"{100 * y:.0f}", fill="black", font=font, anchor="rm")
        pen.line([at(0, y), at(x_end, y)], fill=(225, 225, 225))
    pen.text(((left + right) / 2, height - 24), x_label, fill="black", font=font, anchor="ma")
    pen.text((left, 6), y_label, fill="black", font=font)
    for line in lines:
        faded = tuple((channel + 2 * 255) // 3 for channel in line.colour)
        pen.line(
            [at(*point) for point in line.points], fill=line.colour if line.bold else faded, width=1 + 2 * line.bold
        )
    for i, line in enumerate(line for line in lines if line.bold):
        pen.line([(left + 16, top + 16 + 20 * i), (left + 44, top + 16 + 20 * i)], fill=line.colour, width=3)
        pen.text((left + 52, top + 16 + 20 * i), line.label, fill="black", font=font, anchor="lm")
    for i, span in enumerate(spans):
        (x_0, y), (x_1, _) = at(span.start, span.y), at(span.end, span.y)
        pen.line([(x_0, y), (x_1, y)], fill="black", width=2)
        for x, turn in ((x_0, 6), (x_1, -6)):
            pen.line([(x + turn, y - 4), (x, y), (x + turn, y + 4)], fill="black", width=2)
        # Neighbours may lie at one height: their words take turns above and below, and stay on the sheet.
        middle = min((x_0 + x_1) / 2, width - 6 - pen.textlength(span.text, font) / 2)
        pen.text((middle, y + (8 if i % 2 else -6)), span.text, fill="black", font=font, anchor="ma" if i % 2 else "md")
    return sheet
