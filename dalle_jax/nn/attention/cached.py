"""One image position at a time, against caches that hold only what each pattern can reach.

The caches of one layer, for P prompts and C candidates of each:

    text:  k and v [P, N, text_length, H], one copy for all candidates of a prompt
    image: k and v [C, P, N, slots, H], where `slots`, and what lies in which, is the pattern's choice

Candidates come first, so that flattening (C, P) keeps a mesh axis over the candidates in one piece. The current
position's own key and value are not in the cache while it attends: a step returns them, and `write` stores those of
all layers at once, in place. A scan over layers that returned whole caches would copy them at every step.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dalle_jax.nn.attention.base import Grid, KeyValue
from dalle_jax.nn.attention.patterns import find_pattern
from dalle_jax.nn.precision import einsum


class LayerCache(NamedTuple):
    """Caches of one layer, or of several with a leading `layers` axis."""

    text: KeyValue
    image: KeyValue


@dataclasses.dataclass(frozen=True)
class CacheLayout:
    """The image cache of a layer."""

    pattern: str
    grid: Grid

    @property
    def slots(self) -> int:
        """Image positions that the cache holds."""
        return find_pattern(self.pattern).slots(self.grid)

    @property
    def slots_read(self) -> int:
        """Of them, those that one position reads."""
        return find_pattern(self.pattern).slots_read(self.grid)

    def empty(self, candidates: int, prompts: int, num_heads: int, head_dim: int, dtype) -> KeyValue:
        """A cache before the first image position."""
        shape = (candidates, prompts, num_heads, self.slots, head_dim)
        return KeyValue(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def write(self, image: KeyValue, new: KeyValue, position: Int[Array, ""]) -> KeyValue:
        """Stores a position's key and value [..., C, P, N, H]; any number of leading axes (layers)."""

        slot = find_pattern(self.pattern).slot(position, self.grid)

        def store(cache, entry):
            entry = entry[..., None, :].astype(cache.dtype)
            return jax.lax.dynamic_update_slice_in_dim(cache, entry, slot, axis=cache.ndim - 2)

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
    past, seen = find_pattern(layout.pattern).read(cache.image, position, layout.grid)
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
