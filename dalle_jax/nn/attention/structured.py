"""Attention of a whole sequence on the pairs that its pattern needs: nothing grows as the square of the sequence.

Image queries score all text keys and, in a second product, the few image keys that their pattern can reach. One softmax
runs over both parts ("better than separate attention operations that are independently normalized", DALL·E footnote 7).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dalle_jax.nn.attention.base import Grid, KeyValue
from dalle_jax.nn.attention.dense import causal_attention
from dalle_jax.nn.attention.patterns import find_pattern


def structured_attention(
    pattern: str,
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
      pattern: its name.
      q_BTNH: queries, unscaled; T = text_length + height * width.
      k_BTNH: keys.
      v_BTNH: values.
      text_length: number of text positions, 1 or more.
      height: of the image grid.
      width: of the image grid.
      kernel: side of the convolutional window.
    """
    text, image = slice(None, text_length), slice(text_length, None)
    attended_text = causal_attention(q_BTNH[:, text], k_BTNH[:, text], v_BTNH[:, text])

    # Heads before positions, once: every product of a pattern is then a batch of plain matrices.
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BTNH[:, image] * q_BTNH.shape[-1] ** -0.5, k_BTNH, v_BTNH))
    text_kv, image_kv = KeyValue(k[:, :, text], v[:, :, text]), KeyValue(k[:, :, image], v[:, :, image])
    attended = find_pattern(pattern).attend(q, text_kv, image_kv, Grid(height, width, kernel))
    return jnp.concatenate([attended_text, jnp.swapaxes(attended, 1, 2)], axis=1)
