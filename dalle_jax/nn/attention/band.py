"""Patterns that are bands: every position sees the same raster offsets behind it."""

import abc

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from dalle_jax.nn.attention.base import AttentionPattern, Grid, KeyValue, two_part_attention


class Band(AttentionPattern):
    """All of it follows from its offsets. The cache is a ring as long as the largest of them."""

    @abc.abstractmethod
    def offsets(self, grid: Grid) -> tuple[int, ...]:
        """Allowed `query - key` between image positions in raster order: ascending, 0 (itself) and 1 or more others.

        Raises:
          ValueError: there are none on this grid.
        """

    def mask(self, grid):
        """The diagonals of the offsets."""
        offset = np.arange(grid.length)[:, None] - np.arange(grid.length)[None, :]
        return np.isin(offset, self.offsets(grid))

    def attend(self, q, text_kv, image_kv, grid):
        """Gives each grid row its own keys and those of the rows above that the band can reach."""
        offsets = self.offsets(grid)
        rows_above = min(-(-max(offsets) // grid.width), grid.height - 1)

        def windows(x):
            rows = x.reshape(*x.shape[:2], grid.height, grid.width, -1)
            padded = jnp.pad(rows, ((0, 0), (0, 0), (rows_above, 0), (0, 0), (0, 0)))
            return jnp.concatenate([padded[:, :, i : i + grid.height] for i in range(rows_above + 1)], axis=3)

        k, v = map(windows, image_kv)
        rows = q.reshape(*q.shape[:2], grid.height, grid.width, -1)
        return two_part_attention(rows, text_kv, (k, v), _window_mask(grid, rows_above, offsets)).reshape(q.shape)

    def slots(self, grid):
        """As many as the band reaches back."""
        return min(max(self.offsets(grid)), grid.length)

    def slot(self, position, grid):
        """The next of the ring."""
        return position % self.slots(grid)

    def read(self, image: KeyValue, position, grid: Grid):
        """The whole ring: slot s holds the last position that is congruent to s, 1 to `slots` positions back."""
        slots = self.slots(grid)
        offset = (position - 1 - jnp.arange(slots)) % slots + 1
        allowed = np.isin(np.arange(slots + 1), self.offsets(grid))
        return image, jnp.asarray(allowed)[offset] & (offset <= position)


class Row(Band):
    """The last `width` positions in raster order, and itself (Fig. 11 a)."""

    def offsets(self, grid):
        """0 to the width."""
        return tuple(range(grid.width + 1))


class Conv(Band):
    """A causal window that wraps around the grid's sides (Fig. 11 d)."""

    def offsets(self, grid):
        """`conv_offsets` of the grid."""
        return conv_offsets(grid.width, grid.kernel)


def conv_offsets(width: int, kernel: int = 11) -> tuple[int, ...]:
    """Raster offsets of the convolutional pattern, ascending.

    The published figure (width 4, kernel 3) allows {0, 1, 3, 4, 5, 7} for every query: the union, over all columns, of
    the causal half of a centred window whose columns wrap around the grid. The same rule at width 32 and kernel 11
    gives 66 offsets; the paper does not print those.

    Args:
      width: of the grid, in tokens.
      kernel: side of the window, odd, 3 or more.

    Raises:
      ValueError: there is no window of that side.
    """
    if kernel < 3 or kernel % 2 == 0:
        raise ValueError(f"the conv pattern needs an odd kernel of 3 or more, not {kernel}")
    reach = range(-(kernel // 2), kernel // 2 + 1)
    offsets = {column - (column + b) % width - a * width for column in range(width) for a in reach for b in reach}
    return tuple(sorted(offset for offset in offsets if offset >= 0))


def _window_mask(grid: Grid, rows_above: int, offsets: tuple[int, ...]) -> Bool[np.ndarray, "height width keys"]:
    """Which keys of its window each query sees; the rows above the first are padding."""
    key = np.arange((rows_above + 1) * grid.width) - rows_above * grid.width
    allowed = np.isin(np.arange(grid.width)[:, None] - key[None, :], offsets)
    exists = np.arange(grid.height)[:, None] * grid.width + key[None, :] >= 0
    return allowed[None] & exists[:, None]
