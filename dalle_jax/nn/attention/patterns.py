"""The attention patterns of DALL·E, each defined once as a boolean mask (App. B.1, Fig. 11).

A sequence is `text_length` text positions followed by `height * width` image positions in raster order. Text attends
causally to text. Image positions attend to all text and, among image positions, to the offsets `query - key` that the
pattern allows.
"""

import enum
from collections.abc import Sequence

import numpy as np

from dalle_jax.errors import UserError, closest


class Pattern(enum.Enum):
    """What an image position sees among the image positions; a config holds one per layer."""

    FULL = "full"  # every position before it, and itself
    ROW = "row"  # the last `width` positions in raster order, and itself
    COLUMN = "column"  # its own column, upwards
    CONV = "conv"  # a causal window that wraps around the grid's sides

    @property
    def is_band(self) -> bool:
        """Whether the same raster offsets are allowed at every position (`band_offsets`)."""
        return self not in (Pattern.FULL, Pattern.COLUMN)

    @classmethod
    def of(cls, pattern: "Pattern | str") -> "Pattern":
        """The member of that name; a `UserError` names the nearest one where there is none."""
        try:
            return cls(pattern)
        except ValueError:
            names = [member.value for member in cls]
            raise UserError(
                f"unknown attention pattern {pattern!r}{closest(str(pattern), names)} (known: {', '.join(names)})"
            ) from None


def conv_offsets(width: int, kernel: int = 11) -> tuple[int, ...]:
    """Raster offsets of the convolutional pattern, ascending.

    The published figure (width 4, kernel 3) allows {0, 1, 3, 4, 5, 7} for every query: the union, over all columns, of
    the causal half of a centred window whose columns wrap around the grid. The same rule at width 32 and kernel 11
    gives 66 offsets; the paper does not print those.

    Args:
      width: of the grid, in tokens.
      kernel: side of the window, odd, 3 or more.
    """
    if kernel < 3 or kernel % 2 == 0:
        raise UserError(f"the conv pattern needs an odd kernel of 3 or more, not {kernel}")
    reach = range(-(kernel // 2), kernel // 2 + 1)
    offsets = {column - (column + b) % width - a * width for column in range(width) for a in reach for b in reach}
    return tuple(sorted(offset for offset in offsets if offset >= 0))


def band_offsets(pattern: Pattern, width: int, kernel: int = 11) -> tuple[int, ...]:
    """Allowed raster offsets of a pattern that is a band: of `row` 0 to `width`."""
    if pattern is Pattern.ROW:
        return tuple(range(width + 1))
    if pattern is Pattern.CONV:
        return conv_offsets(width, kernel)
    raise ValueError(f"{pattern} is no band")


def pattern_mask(pattern: Pattern | str, text_length: int, height: int, width: int, kernel: int = 11) -> np.ndarray:
    """The definition of a pattern.

    Args:
      pattern: its name or enum member.
      text_length: number of text positions, 0 or more.
      height: of the image grid, in tokens.
      width: of the image grid, in tokens.
      kernel: side of the convolutional window, odd; used by `conv` alone.

    Returns:
      bool [T, T] with T = text_length + height * width: entry (q, k) is True where q attends to k.
    """
    pattern = Pattern.of(pattern)
    image_length = height * width
    offset = np.arange(image_length)[:, None] - np.arange(image_length)[None, :]
    causal = offset >= 0
    if pattern is Pattern.FULL:
        image = causal
    elif pattern is Pattern.COLUMN:
        image = causal & (offset % width == 0)
    else:
        image = np.isin(offset, band_offsets(pattern, width, kernel))
    mask = np.zeros((text_length + image_length,) * 2, bool)
    mask[:text_length, :text_length] = np.tril(np.ones((text_length, text_length), bool))
    mask[text_length:, :text_length] = True
    mask[text_length:, text_length:] = image
    return mask


def published_schedule(num_layers: int) -> tuple[Pattern, ...]:
    """The published pattern of each layer: `column` at layers 2, 6, 10, ..., `conv` at the last, `row` elsewhere.

    Layers count from 1, as in App. B.1; 64 layers have 47 row, 16 column and 1 convolutional layer.
    """
    patterns = [Pattern.COLUMN if layer % 4 == 2 else Pattern.ROW for layer in range(1, num_layers)]
    return (*patterns, Pattern.CONV)


def attended_pairs(patterns: Sequence[Pattern], text_length: int, height: int, width: int, kernel: int = 11) -> int:
    """Number of (query, key) pairs over all layers: what attention's useful FLOPs are counted from."""
    pairs = {pattern: int(pattern_mask(pattern, text_length, height, width, kernel).sum()) for pattern in set(patterns)}
    return sum(pairs[pattern] for pattern in patterns)
