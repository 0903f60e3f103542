"""A position's own column, upwards."""

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.nn.attention.base import AttentionPattern, Grid, KeyValue, two_part_attention


class Column(AttentionPattern):
    """Fig. 11 c. The cache lies column by column, so that one column is one slice."""

    def mask(self, grid):
        """Multiples of the width backwards."""
        offset = np.arange(grid.length)[:, None] - np.arange(grid.length)[None, :]
        return (offset >= 0) & (offset % grid.width == 0)

    def attend(self, q, text_kv, image_kv, grid):
        """Transposes the grid, so that each column is a block of consecutive positions."""

        def to_columns(x):
            return jnp.swapaxes(x.reshape(*x.shape[:2], grid.height, grid.width, -1), 2, 3)

        k, v = map(to_columns, image_kv)
        upwards = np.tril(np.ones((grid.height, grid.height), bool))
        attended = two_part_attention(to_columns(q), text_kv, (k, v), upwards)
        attended = attended.reshape(*q.shape[:2], grid.width, grid.height, -1)
        return jnp.swapaxes(attended, 2, 3).reshape(q.shape)

    def slots_read(self, grid):
        """One column."""
        return grid.height

    def slot(self, position, grid):
        """The place in the transposed grid."""
        return position % grid.width * grid.height + position // grid.width

    def read(self, image: KeyValue, position, grid: Grid):
        """The position's column."""
        start = position % grid.width * grid.height
        column = KeyValue(*(jax.lax.dynamic_slice_in_dim(x, start, grid.height, axis=3) for x in image))
        return column, jnp.arange(grid.height) < position // grid.width
