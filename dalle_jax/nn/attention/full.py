"""Every position before a position, and itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.nn.attention.base import AttentionPattern, Grid, KeyValue, two_part_attention

QUERY_CHUNK = 128
"""Image queries scored at a time: the largest array grows with the length, not with its square."""


class Full(AttentionPattern):
    """Causal attention without a pattern."""

    def mask(self, grid):
        """All positions up to each one."""
        return np.tril(np.ones((grid.length, grid.length), bool))

    def attend(self, q, text_kv, image_kv, grid):
        """In chunks of queries, each with the keys before its end; the backward pass computes the scores again."""
        chunks = []
        for start in range(0, grid.length, QUERY_CHUNK):
            stop = min(start + QUERY_CHUNK, grid.length)
            mask = np.arange(start, stop)[:, None] >= np.arange(stop)[None, :]
            prefix_kv = tuple(x[:, :, None, :stop] for x in image_kv)
            attend = jax.checkpoint(functools.partial(two_part_attention, mask=mask))
            chunks.append(attend(q[:, :, None, start:stop], text_kv, prefix_kv))
        return jnp.concatenate(chunks, axis=2)

    def read(self, image: KeyValue, position, grid: Grid):
        """The whole cache, in raster order."""
        return image, jnp.arange(grid.length) < position
