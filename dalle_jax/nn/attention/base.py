"""What an attention pattern owes to the model: its mask, and, where it can be had for less, its products and its cache.

A sequence is text followed by an image, `height * width` positions in raster order. Text attends causally to text, and
image positions attend to all text, whatever the pattern; it says which image positions an image position sees.
"""

import abc
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dalle_jax.nn.precision import einsum


@dataclasses.dataclass(frozen=True)
class Grid:
    """The image part of a sequence."""

    height: int
    """In tokens."""
    width: int
    """In tokens."""
    kernel: int = 11
    """Side of the window of `conv`, in tokens."""

    @property
    def length(self) -> int:
        """Image positions."""
        return self.height * self.width


class KeyValue(NamedTuple):
    """Keys and values of the same positions."""

    k: Array
    v: Array


class AttentionPattern(abc.ABC):
    """A rule of what an image position sees among the image positions.

    Its mask is all that one needs. The other methods are right for every mask, at the cost of attention to all
    positions; a pattern overrides them where it can do with less. One is added by an entry in `PATTERNS`.
    """

    @abc.abstractmethod
    def mask(self, grid: Grid) -> Bool[np.ndarray, "G G"]:
        """The definition: (q, k) is True where image position q sees k; causal, and True where q is k.

        Raises:
          ValueError: the pattern has no mask on this grid.
        """

    def attend(self, q: Float[Array, "B N G H"], text_kv: KeyValue, image_kv: KeyValue, grid: Grid) -> Array:
        """Attention of all image positions to all text and to what the mask allows, one softmax over both.

        Args:
          q: queries, scaled.
          text_kv: [B, N, S, H] each.
          image_kv: [B, N, G, H] each.
          grid: of the image positions.

        Returns:
          Attended values [B, N, G, H], in the dtype of the values.
        """
        groups = KeyValue(*(x[:, :, None] for x in image_kv))
        return two_part_attention(q[:, :, None], text_kv, groups, self.mask(grid))

    def slots(self, grid: Grid) -> int:
        """Image positions that the cache of sampling holds."""
        return grid.length

    def slots_read(self, grid: Grid) -> int:
        """Of them, those that one position reads."""
        return self.slots(grid)

    def slot(self, position: Int[Array, ""], grid: Grid) -> Int[Array, ""]:
        """The slot that an image position is written to."""
        del grid
        return position

    def read(self, image: KeyValue, position: Int[Array, ""], grid: Grid) -> tuple[KeyValue, Bool[Array, " S"]]:
        """What a position finds in the cache.

        Args:
          image: the cache, [C, P, N, slots, H] each.
          position: from 0 on; it is not in the cache itself.
          grid: of the image positions.

        Returns:
          Keys and values [C, P, N, S, H], S of `slots_read`, and which of them the position sees.
        """
        seen = jnp.asarray(np.tril(self.mask(grid), -1))
        return image, seen[position]


def two_part_attention(
    q: Array, text_kv: tuple[Array, Array], local_kv: tuple[Array, Array], mask: Bool[np.ndarray, "..."]
) -> Array:
    """Attention with one softmax over text keys and a group's own keys.

    Args:
      q: scaled queries [B, N, G, Q, H]: G groups of Q queries that share their image keys.
      text_kv: [B, N, S, H] each, seen by every query.
      local_kv: [B, N, G, K, H] each.
      mask: bool, broadcastable to [G, Q, K]; every query sees at least one key.

    Returns:
      Attended values [B, N, G * Q, H].
    """
    B, N, G, Q, H = q.shape
    (k_text, v_text), (k_local, v_local) = text_kv, local_kv
    flat = q.reshape(B, N, G * Q, H)
    text = einsum("bnqh,bnsh->bnqs", flat, k_text, preferred_element_type=jnp.float32)
    local = einsum("bngqh,bngkh->bngqk", q, k_local, preferred_element_type=jnp.float32)
    local = jnp.where(mask, local, -jnp.inf).reshape(B, N, G * Q, -1)
    # The maximum only guards against overflow: the result does not depend on it, so neither does the gradient.
    top = jax.lax.stop_gradient(jnp.maximum(text.max(-1, keepdims=True), local.max(-1, keepdims=True)))
    text, local = jnp.exp(text - top), jnp.exp(local - top)
    total = text.sum(-1, keepdims=True) + local.sum(-1, keepdims=True)
    dtype = v_text.dtype
    local = local.astype(dtype).reshape(B, N, G, Q, -1)
    out = einsum("bnqs,bnsh->bnqh", text.astype(dtype), v_text, preferred_element_type=jnp.float32)
    out += einsum("bngqk,bngkh->bngqh", local, v_local, preferred_element_type=jnp.float32).reshape(out.shape)
    return (out / total).astype(dtype)
