"""Masked attention over all pairs: the reference form, and the right one for short sequences."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dalle_jax.nn.precision import einsum


def dense_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSNH: Float[Array, "B S N H"],
    v_BSNH: Float[Array, "B S N H"],
    mask_TS: Bool[Array, "T S"] | None = None,
) -> Float[Array, "B T N H"]:
    """Scaled dot-product attention; scores and softmax in float32.

    Args:
      q_BTNH: queries, unscaled.
      k_BSNH: keys.
      v_BSNH: values.
      mask_TS: True where a query attends to a key; None for all.

    Returns:
      The attended values in the dtype of `v_BSNH`.
    """
    scale = q_BTNH.shape[-1] ** -0.5
    scores_BNTS = einsum("btnh,bsnh->bnts", q_BTNH * scale, k_BSNH, preferred_element_type=jnp.float32)
    if mask_TS is not None:
        scores_BNTS = jnp.where(mask_TS, scores_BNTS, -jnp.inf)
    weights_BNTS = jax.nn.softmax(scores_BNTS, axis=-1).astype(v_BSNH.dtype)
    return einsum("bnts,bsnh->btnh", weights_BNTS, v_BSNH)


def causal_attention(
    q_BTNH: Float[Array, "B T N H"], k_BTNH: Float[Array, "B T N H"], v_BTNH: Float[Array, "B T N H"]
) -> Float[Array, "B T N H"]:
    """Dense attention of each position to those up to itself."""
    length = q_BTNH.shape[1]
    return dense_attention(q_BTNH, k_BTNH, v_BTNH, jnp.tril(jnp.ones((length, length), bool)))
