"""The contrastive objective over the global batch (Radford et al. 2021, Fig. 3)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from clip_jax.model import normalize
from dalle_jax.nn.transformer import constrain_activations


class ContrastiveLoss(NamedTuple):
    """The loss, and which counterpart of the batch wins."""

    loss: Float[Array, ""]
    best_text: Int[Array, " B"]
    """Row of the caption that each picture scores highest."""
    best_image: Int[Array, " B"]
    """Row of the picture that each caption scores highest."""


def contrastive_loss(
    image: Float[Array, "B E"], text: Float[Array, "B E"], logit_scale: Float[Array, ""]
) -> ContrastiveLoss:
    """Symmetric cross-entropy: each picture against all captions, each caption against all pictures.

    Each direction is one block of logits, [B on this device, B]: rows stay where their pictures (captions) are, and
    the other side's features, which are small, are gathered. No device holds a matrix of B x B.

    Args:
      image: projected features, not normalised; row i belongs with row i of `text`.
      text: likewise.
      logit_scale: factor on cosines.

    Returns:
      The mean of both directions, float32, and the winners.
    """
    image, text = constrain_activations(normalize(image)), constrain_activations(normalize(text))
    positives = logit_scale * jnp.sum(image * text, axis=-1)
    image_loss, best_text = _one_direction(image, text, positives, logit_scale)
    text_loss, best_image = _one_direction(text, image, positives, logit_scale)
    return ContrastiveLoss((image_loss + text_loss) / 2, best_text, best_image)


def _one_direction(
    queries: Float[Array, "B E"],
    keys: Float[Array, "B E"],
    positives: Float[Array, " B"],
    logit_scale: Float[Array, ""],
) -> tuple[Float[Array, ""], Int[Array, " B"]]:
    gathered = nn.with_logical_constraint(keys, (None, None))
    logits = constrain_activations(logit_scale * queries @ gathered.T)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - positives), jnp.argmax(logits, axis=-1)
