"""One image position at a time, against caches that hold only what each pattern can reach.

The caches of one layer, for P prompts and C candidates of each:

    text:  k and v [P, N, text_length, H], one copy for all candidates of a prompt
    image: k and v [C, P, N, slots, H], where `slots` is what the pattern reaches behind the current position:
           row     width            a ring
           conv    largest offset   a ring
           column  height * width   column by column, so that one column is one slice
           full    height * width   in raster order

Candidates come first, so that flattening (C, P) keeps a mesh axis over the candidates in one piece. The current
position's own key and value are not in the cache while it attends: a step returns them, and `write` stores those of
all layers at once, in place. A scan over layers that returned whole caches would copy them at every step.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dalle_jax.nn.attention.patterns import Pattern, band_offsets
from dalle_jax.nn.precision import einsum


class KeyValue(NamedTuple):
    """Keys and values of the same positions."""

    k: Array
    v: Array


class LayerCache(NamedTuple):
    """Caches of one layer, or of several with a leading `layers` axis."""

    text: KeyValue
    image: KeyValue


@dataclasses.dataclass(frozen=True)
class CacheLayout:
    """Where a pattern keeps image position p, and which slots the next position reads."""

    pattern: Pattern
    height: int
    width: int
    kernel: int = 11

    @property
    def slots(self) -> int:
        """Image positions that the cache holds."""
        if self.pattern.is_band:
            return min(max(self._offsets), self.height * self.width)
        return self.height * self.width

    @property
    def slots_read(self) -> int:
        """Of them, those that one position reads."""
        return self.height if self.pattern is Pattern.COLUMN else self.slots

    @property
    def _offsets(self) -> tuple[int, ...]:
        return band_offsets(self.pattern, self.width, self.kernel)

    def slot(self, position: Int[Array, ""]) -> Int[Array, ""]:
        """The slot that image position `position` is written to."""
        if self.pattern.is_band:
            return position % self.slots
        if self.pattern is Pattern.COLUMN:
            return position % self.width * self.height + position // self.width
        return position

    def read(self, image: KeyValue, position: Int[Array, ""]) -> tuple[KeyValue, Array]:
        """The keys and values behind `position`, [C, P, N, K, H], and a bool [K] of those it sees."""
        if self.pattern is Pattern.COLUMN:
            start = position % self.width * self.height
            column = KeyValue(*(jax.lax.dynamic_slice_in_dim(x, start, self.height, axis=3) for x in image))
            return column, jnp.arange(self.height) < position // self.width
        slot = jnp.arange(self.slots)
        if self.pattern is Pattern.FULL:
            return image, slot < position
        # Slot s holds the last position before this one that is congruent to s: 1 to `slots` positions back.
        offset = (position - 1 - slot) % self.slots + 1
        allowed = np.isin(np.arange(self.slots + 1), self._offsets)
        return image, jnp.asarray(allowed)[offset] & (offset <= position)

    def empty(self, candidates: int, prompts: int, num_heads: int, head_dim: int, dtype) -> KeyValue:
        """A cache before the first image position."""
        shape = (candidates, prompts, num_heads, self.slots, head_dim)
        return KeyValue(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def write(self, image: KeyValue, new: KeyValue, position: Int[Array, ""]) -> KeyValue:
        """Stores a position's key and value [..., C, P, N, H]; any number of leading axes (layers)."""

        def store(cache, entry):
            return jax.lax.dynamic_update_slice_in_dim(
                cache, entry[..., None, :].astype(cache.dtype), self.slot(position), axis=cache.ndim - 2
            )

        return KeyValue(*map(store, image, new))


def cached_attention(
    layout: CacheLayout,
    q_CPNH: Float[Array, "C P N H"],
    own: KeyValue,
    cache: LayerCache,
    position: Int[Array, ""],
) -> Float[Array, "C P N H"]:
    """Attention of one image position to all text, to what its pattern reaches, and to itself.

    Args:
      layout: of the layer's pattern.
      q_CPNH: queries, unscaled.
      own: key and value of the position, [C, P, N, H] each.
      cache: of the positions before it.
      position: image position, 0 to height * width - 1.
    """
    past, seen = layout.read(cache.image, position)
    q = q_CPNH * q_CPNH.shape[-1] ** -0.5
    text = einsum("cpnh,pnsh->cpns", q, cache.text.k, preferred_element_type=jnp.float32)
    image = einsum("cpnh,cpnkh->cpnk", q, past.k, preferred_element_type=jnp.float32)
    itself = einsum("cpnh,cpnh->cpn", q, own.k, preferred_element_type=jnp.float32)[..., None]
    image = jnp.where(seen, image, -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([text, image, itself], axis=-1), axis=-1).astype(own.v.dtype)
    text, image, itself = jnp.split(weights, [text.shape[-1], weights.shape[-1] - 1], axis=-1)
    out = einsum("cpns,pnsh->cpnh", text, cache.text.v, preferred_element_type=jnp.float32)
    out += einsum("cpnk,cpnkh->cpnh", image, past.v, preferred_element_type=jnp.float32)
    return (out + itself * own.v).astype(own.v.dtype)
