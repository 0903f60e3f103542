"""The pixel map of the discrete VAE (DALL·E App. A.3, Eq. 3)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

EPSILON = 0.1
"""Mapped pixels lie in [EPSILON, 1 - EPSILON], away from the ends where a logit is infinite."""


def map_pixels(images: UInt8[Array, "*batch height width 3"]) -> Float[Array, "*batch height width 3"]:
    """Maps pixels 0..255 to float32 in [0.1, 0.9]."""
    return (1.0 - 2.0 * EPSILON) / 255.0 * images.astype(jnp.float32) + EPSILON


def unmap_pixels(mapped: Float[Array, "*batch height width 3"]) -> Float[Array, "*batch height width 3"]:
    """Maps [0.1, 0.9] back to [0, 1], float32; what lies outside is clipped."""
    return jnp.clip((mapped - EPSILON) / (1.0 - 2.0 * EPSILON), 0.0, 1.0)


def to_uint8(pixels: Float[Array, "*batch height width 3"]) -> UInt8[Array, "*batch height width 3"]:
    """Rounds pixels in [0, 1] to 0..255."""
    return jnp.round(pixels * 255.0).astype(jnp.uint8)
