"""Axes of a plot: which part of the numbers is shown, where the ticks are, and how they read."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from dalle_jax.training.telemetry.attempts import duration


def plain(value: float) -> str:
    """`0.25`, `1,500`, `2.5M`: short, and never rounded to another number of four digits."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.6g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 and value == round(value) else f"{value:.4g}"


def percent(value: float) -> str:
    """A share, without the sign: the label says so."""
    return f"{100 * value:.4g}"


def seconds(value: float) -> str:
    """`2h30m`"""
    return duration(value).removesuffix("00m").removesuffix("00s") if value else "0"


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis before the numbers are known."""

    label: str
    log: bool = False
    start: float | None = None
    """Where it begins; None: at the lowest number."""
    form: Callable[[float], str] = plain
    robust: bool = False
    """Leave out the few highest numbers where they would flatten the rest, as of a loss that falls steeply at first."""
    tight: bool = False
    """No room beyond the numbers: of time and steps."""
    whole: bool = False
    """Ticks at whole numbers alone."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """An axis with its ends and ticks."""

    axis: Axis
    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one; outside of these beyond."""
        if self.axis.log:
            value = max(value, 1e-300)
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def scale(axis: Axis, values: Sequence[float], shown: Sequence[float] = (), count: int = 6) -> Scale:
    """Fits an axis to numbers, of which a logarithmic one shows the positive ones alone.

    Args:
      axis: what is wanted.
      values: finite numbers; may be empty.
      shown: those of them that a robust axis does not leave out.
      count: about so many ticks.
    """
    if axis.log:
        values = [value for value in values if value > 0]
    ordered = sorted(values) or [1.0]
    low, high = ordered[0] if axis.start is None else axis.start, ordered[-1]
    if axis.robust and not axis.log:
        bulk = ordered[int(0.97 * (len(ordered) - 1))]
        if high - low > 2 * (bulk - low) > 0:
            high = max([bulk + 0.15 * (bulk - low), *shown])
    if axis.log:
        low, high = (low / 1.05, high * 1.05) if high > low else (low / 2, high * 2)
        return Scale(axis, low, high, _log_ticks(low, high, count, axis))
    if high <= low:
        high = low + (abs(low) * 0.1 or 1.0)
    room = 0.0 if axis.tight else 0.05 * (high - low)  # so that no curve runs along the frame
    low, high = low - (room if axis.start is None else 0.0), high + room
    return Scale(axis, low, high, _ticks(low, high, count, axis))


def _ticks(low: float, high: float, count: int, axis: Axis) -> tuple[float, ...]:
    """Round numbers between two ends, evenly apart; of a clock round minutes and hours."""
    rough = (high - low) / count
    if axis.whole:
        rough = max(rough, 1.0)
    if axis.form is seconds and rough >= 1:
        steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400]
        step = next((step for step in steps if step >= 0.75 * rough), 86400 * math.ceil(rough / 86400))
    else:
        size = 10 ** math.floor(math.log10(rough))
        step = size * next(digit for digit in (1, 2, 2.5, 5, 10) if digit * size >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(i * step, 12) for i in range(first, last + 1))


def _log_ticks(low: float, high: float, count: int, axis: Axis) -> tuple[float, ...]:
    """Powers of ten, with 2 and 5 between them or round numbers where there are too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if len(decades) > count + 1:
        decades = decades[:: math.ceil(len(decades) / count)]
    for digits in ((1,), (1, 3), (1, 2, 5)):
        ticks = tuple(digit * 10.0**decade for decade in decades for digit in digits)
        ticks = tuple(tick for tick in ticks if low <= tick <= high)
        if len(ticks) >= 3:
            return ticks
    return _ticks(low, high, count, axis)
