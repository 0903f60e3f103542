"""The attention patterns of DALL·E by name, their masks over a whole sequence, and which layer has which (App. B.1)."""

import enum
import warnings
from collections.abc import Sequence

import numpy as np

from dalle_jax.errors import closest
from dalle_jax.nn.attention.band import Band, Conv, Row
from dalle_jax.nn.attention.base import AttentionPattern, Grid
from dalle_jax.nn.attention.column import Column
from dalle_jax.nn.attention.full import Full


class Pattern(enum.StrEnum):
    """The published names; a config holds one name of `PATTERNS` per layer."""

    FULL = "full"
    ROW = "row"
    COLUMN = "column"
    CONV = "conv"


PATTERNS: dict[str, AttentionPattern] = {
    Pattern.FULL.value: Full(),
    Pattern.ROW.value: Row(),
    Pattern.COLUMN.value: Column(),
    Pattern.CONV.value: Conv(),
}
"""By the name that a config has; another one is added here, or from outside before a config names it."""


def find_pattern(name: str) -> AttentionPattern:
    """The pattern of that name.

    Raises:
      ValueError: there is none; it names the nearest.
    """
    if name not in PATTERNS:
        raise ValueError(f"unknown attention pattern '{name}'{closest(name, PATTERNS)} (known: {', '.join(PATTERNS)})")
    return PATTERNS[name]


def pattern_mask(pattern: str, text_length: int, height: int, width: int, kernel: int = 11) -> np.ndarray:
    """The definition of a pattern, over text and image.

    Args:
      pattern: its name.
      text_length: number of text positions, 0 or more.
      height: of the image grid, in tokens.
      width: of the image grid, in tokens.
      kernel: side of the convolutional window, odd; used by `conv` alone.

    Returns:
      bool [T, T] with T = text_length + height * width: entry (q, k) is True where q attends to k.
    """
    grid = Grid(height, width, kernel)
    mask = np.zeros((text_length + grid.length,) * 2, bool)
    mask[:text_length, :text_length] = np.tril(np.ones((text_length, text_length), bool))
    mask[text_length:, :text_length] = True
    mask[text_length:, text_length:] = find_pattern(pattern).mask(grid)
    return mask


def published_schedule(num_layers: int) -> tuple[Pattern, ...]:
    """The published pattern of each layer: `column` at layers 2, 6, 10, ..., `conv` at the last, `row` elsewhere.

    Layers count from 1, as in App. B.1; 64 layers have 47 row, 16 column and 1 convolutional layer.
    """
    patterns = [Pattern.COLUMN if layer % 4 == 2 else Pattern.ROW for layer in range(1, num_layers)]
    return (*patterns, Pattern.CONV)


def attended_pairs(patterns: Sequence[str], text_length: int, height: int, width: int, kernel: int = 11) -> int:
    """Number of (query, key) pairs over all layers: what attention's useful FLOPs are counted from."""
    pairs = {pattern: int(pattern_mask(pattern, text_length, height, width, kernel).sum()) for pattern in set(patterns)}
    return sum(pairs[pattern] for pattern in patterns)


def band_offsets(pattern: str, width: int, kernel: int = 11) -> tuple[int, ...]:
    """Deprecated: `find_pattern(pattern).offsets(grid)`."""
    warnings.warn("band_offsets is the method `offsets` of a pattern now", FutureWarning, stacklevel=2)
    band = find_pattern(pattern)
    if not isinstance(band, Band):
        raise ValueError(f"{pattern} is not a band")
    return band.offsets(Grid(1, width, kernel))
