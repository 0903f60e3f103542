"""Parts of the codec's objective; each is a sum over one image, as in the evidence lower bound they come from."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dalle_jax.codec.config import Reconstruction


def logit_laplace_log_prob(
    x: Float[Array, "*shape"], mean: Float[Array, "*shape"], log_scale: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Log density of the sigmoid of a Laplace variable (DALL·E App. A.3, Eq. 2).

    Args:
      x: in (0, 1).
      mean: of the Laplace variable, in logits.
      log_scale: natural logarithm of its scale b.

    Returns:
      -ln 2 - ln b - ln x - ln(1 - x) - |logit(x) - mean| / b, elementwise.
    """
    log_x, log_1mx = jnp.log(x), jnp.log1p(-x)
    distance = jnp.abs(log_x - log_1mx - mean)
    return -jnp.log(2.0) - log_scale - log_x - log_1mx - distance * jnp.exp(-log_scale)


def reconstruction_loss(
    kind: Reconstruction,
    x: Float[Array, "B height width 3"],
    maps: Float[Array, "B height width 6"],
    min_log_scale: float | None = None,
) -> Float[Array, " B"]:
    """Summed over the values of each image.

    Args:
      kind: which loss.
      x: the images, mapped to [0.1, 0.9].
      maps: the decoder's output; first the three means in logits, then the three log scales.
      min_log_scale: of the likelihood's scales; None: any.
    """
    mean, log_scale = jnp.split(maps, 2, axis=-1)
    if kind is Reconstruction.LOGIT_LAPLACE:
        log_scale = log_scale if min_log_scale is None else jnp.maximum(log_scale, min_log_scale)
        loss = -logit_laplace_log_prob(x, mean, log_scale)
    else:
        error = jax.nn.sigmoid(mean) - x
        loss = jnp.abs(error) + PIXEL_SQUARE_WEIGHT * jnp.square(error)
    return jnp.sum(loss, axis=(1, 2, 3))


PIXEL_SQUARE_WEIGHT = 4.0
"""Of the squared error in the pixel loss: at an error of a quarter it weighs as much as the absolute one."""


def kl_to_uniform(logits: Float[Array, "B height width K"]) -> Float[Array, " B"]:
    """KL divergence of each cell's categorical distribution from the uniform one over the codes, summed over cells.

    It is that of the logits themselves, whatever the temperature of the relaxation.
    """
    log_q = jax.nn.log_softmax(logits)
    kl = jnp.sum(jnp.exp(log_q) * (log_q + jnp.log(float(logits.shape[-1]))), axis=-1)
    return jnp.sum(kl, axis=(1, 2))


def commitment_loss(
    vectors: Float[Array, "B height width E"], codes: Float[Array, "B height width E"]
) -> Float[Array, " B"]:
    """Squared distance from vectors to their (constant) codes, summed over cells."""
    return jnp.sum(jnp.square(vectors - jax.lax.stop_gradient(codes)), axis=(1, 2, 3))
