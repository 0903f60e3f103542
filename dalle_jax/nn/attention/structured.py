"""The patterns computed on the pairs they need: nothing whose size grows as the square of the sequence is made.

Image queries score all text keys and, in a second product, the few image keys that their pattern can reach, which a
reshape or a shift of the grid brings together. One softmax runs over both parts ("better than separate attention
operations that are independently normalized", DALL·E footnote 7).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dalle_jax.nn.attention.dense import causal_attention
from dalle_jax.nn.attention.patterns import Pattern, band_offsets
from dalle_jax.nn.precision import einsum

QUERY_CHUNK = 128
"""Image queries of a `full` layer scored at a time: the largest array grows with the length, not with its square."""


def structured_attention(
    pattern: Pattern | str,
    q_BTNH: Float[Array, "B T N H"],
    k_BTNH: Float[Array, "B T N H"],
    v_BTNH: Float[Array, "B T N H"],
    *,
    text_length: int,
    height: int,
    width: int,
    kernel: int = 11,
) -> Float[Array, "B T N H"]:
    """Equals `dense_attention` under `pattern_mask(pattern, text_length, height, width, kernel)`.

    Args:
      pattern: name or enum member.
      q_BTNH: queries, unscaled; T = text_length + height * width.
      k_BTNH: keys.
      v_BTNH: values.
      text_length: number of text positions, 1 or more.
      height: of the image grid.
      width: of the image grid.
      kernel: side of the convolutional window.
    """
    pattern = Pattern.of(pattern)
    text, image = slice(None, text_length), slice(text_length, None)
    attended_text = causal_attention(q_BTNH[:, text], k_BTNH[:, text], v_BTNH[:, text])

    # Heads before positions, once: every product below is then a batch of plain matrices.
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BTNH[:, image] * q_BTNH.shape[-1] ** -0.5, k_BTNH, v_BTNH))
    text_kv, image_kv = (k[:, :, text], v[:, :, text]), (k[:, :, image], v[:, :, image])
    if pattern is Pattern.FULL:
        attended = _full(q, text_kv, image_kv)
    elif pattern is Pattern.COLUMN:
        attended = _column(q, text_kv, image_kv, height, width)
    else:
        attended = _band(q, text_kv, image_kv, height, width, band_offsets(pattern, width, kernel))
    return jnp.concatenate([attended_text, jnp.swapaxes(attended, 1, 2)], axis=1)


def _two_part_attention(
    q: Array, text_kv: tuple[Array, Array], local_kv: tuple[Array, Array], mask: Bool[np.ndarray, "..."]
) -> Array:
    """Attention with one softmax over text keys and a group's own keys.

    Args:
      q: scaled queries [B, N, G, Q, H]: G groups of Q queries that share their image keys.
      text_kv: [B, N, S, H] each, seen by every query.
      local_kv: [B, N, G, K, H] each.
      mask: bool, broadcastable to [G, Q, K]; every query sees at least one key.
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


def _column(q: Array, text_kv: tuple[Array, Array], image_kv: tuple[Array, Array], height: int, width: int) -> Array:
    """Transposes the grid, so that each column is a block of consecutive positions (Fig. 11 c)."""

    def to_columns(x):
        return jnp.swapaxes(x.reshape(*x.shape[:2], height, width, -1), 2, 3)

    k, v = map(to_columns, image_kv)
    attended = _two_part_attention(to_columns(q), text_kv, (k, v), np.tril(np.ones((height, height), bool)))
    attended = attended.reshape(*q.shape[:2], width, height, -1)
    return jnp.swapaxes(attended, 2, 3).reshape(q.shape)


def _band(
    q: Array,
    text_kv: tuple[Array, Array],
    image_kv: tuple[Array, Array],
    height: int,
    width: int,
    offsets: tuple[int, ...],
) -> Array:
    """Gives each grid row its own keys and those of the rows above that the band can reach."""
    rows_above = min(-(-max(offsets) // width), height - 1)

    def windows(x):
        grid = x.reshape(*x.shape[:2], height, width, -1)
        padded = jnp.pad(grid, ((0, 0), (0, 0), (rows_above, 0), (0, 0), (0, 0)))
        return jnp.concatenate([padded[:, :, i : i + height] for i in range(rows_above + 1)], axis=3)

    k, v = map(windows, image_kv)
    rows = q.reshape(*q.shape[:2], height, width, -1)
    mask = _band_mask(height, width, rows_above, offsets)
    return _two_part_attention(rows, text_kv, (k, v), mask).reshape(q.shape)


def _band_mask(
    height: int, width: int, rows_above: int, offsets: tuple[int, ...]
) -> Bool[np.ndarray, "height width keys"]:
    """Which keys of its window each query sees; the rows above the first are padding."""
    key = np.arange((rows_above + 1) * width) - rows_above * width
    allowed = np.isin(np.arange(width)[:, None] - key[None, :], offsets)
    exists = np.arange(height)[:, None] * width + key[None, :] >= 0
    return allowed[None] & exists[:, None]


def _full(q: Array, text_kv: tuple[Array, Array], image_kv: tuple[Array, Array]) -> Array:
    """Chunks of queries, each with the prefix of keys before its end; the backward pass computes its scores again."""
    length = q.shape[2]
    chunks = []
    for start in range(0, length, QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, length)
        mask = np.arange(start, stop)[:, None] >= np.arange(stop)[None, :]
        prefix_kv = tuple(x[:, :, None, :stop] for x in image_kv)
        attend = jax.checkpoint(functools.partial(_two_part_attention, mask=mask))
        chunks.append(attend(q[:, :, None, start:stop], text_kv, prefix_kv))
    return jnp.concatenate(chunks, axis=2)
