"""The contrastive objective over the global batch (Radford et al. 2021, Fig. 3)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from clip_jax.losses.base import Best, ContrastiveLoss, ContrastiveObjective, Mask, chunk_of, normalize
from dalle_jax.nn.layers import constrain_activations
from dalle_jax.nn.precision import matmul


class SoftmaxObjective(ContrastiveObjective):
    """Each image among all captions, each caption among all images (Radford et al. 2021)."""

    logit_products = 2  # each direction makes its own

    def __call__(
        self,
        image: Float[Array, "B E"],
        text: Float[Array, "B E"],
        params: Any,
        *,
        chunk: int = 0,
        mask: Mask = None,
    ) -> ContrastiveLoss:
        """See `contrastive_loss`."""
        return contrastive_loss(image, text, jnp.exp(params["logit_scale"]), chunk=chunk, mask=mask)

    def constrain(self, params: Any, max_logit_scale: float) -> Any:
        """Clips the scale on the parameter, after the update: the paper says at what, not where."""
        limit = jnp.log(jnp.float32(max_logit_scale))
        return {**params, "logit_scale": jnp.minimum(params["logit_scale"], limit)}


def contrastive_loss(
    image: Float[Array, "B E"],
    text: Float[Array, "B E"],
    logit_scale: Float[Array, ""],
    *,
    chunk: int = 0,
    mask: Mask = None,
) -> ContrastiveLoss:
    """Symmetric cross-entropy: each image against all captions, each caption against all images.

    Each direction is one block of logits, [B on this device, B]: rows stay where their images (captions) are, and
    the other side's features, which are small, are gathered. No device holds a matrix of B x B.

    Args:
      image: projected features, not normalised; row i belongs with row i of `text`.
      text: likewise.
      logit_scale: factor on cosines.
      chunk: columns whose logits are held at once, in the backward pass too, which computes them again; 0: all.
      mask: the pairs that count.

    Returns:
      The mean of both directions, float32, and the winners.

    Raises:
      UserError: `chunk` does not divide the batch.
    """
    image, text = constrain_activations(normalize(image)), constrain_activations(normalize(text))
    positives = logit_scale * jnp.sum(image * text, axis=-1)
    chunk = chunk_of(len(text), chunk, "the batch")
    image_loss, best_text = _one_direction(image, text, positives, logit_scale, chunk, mask)
    text_loss, best_image = _one_direction(text, image, positives, logit_scale, chunk, mask)
    return ContrastiveLoss((image_loss + text_loss) / 2, best_text, best_image)


def _one_direction(
    queries: Float[Array, "B E"],
    keys: Float[Array, "B E"],
    positives: Float[Array, " B"],
    logit_scale: Float[Array, ""],
    chunk: int,
    mask: Mask,
) -> tuple[Float[Array, ""], Int[Array, " B"]]:
    gathered = nn.with_logical_constraint(keys, (None, None))
    columns = None if mask is None else nn.with_logical_constraint(mask, (None,))
    if chunk == len(keys):
        logits = _logits(logit_scale * queries, gathered, columns)
        total, best = jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1)
    else:
        total, best = _in_chunks(logit_scale * queries, gathered, columns, chunk)
    return jnp.mean(total - positives, where=mask), best


def _logits(queries: Float[Array, "B E"], keys: Float[Array, "columns E"], mask: Mask) -> Float[Array, "B columns"]:
    logits = constrain_activations(matmul(queries, keys.T))
    return logits if mask is None else jnp.where(mask, logits, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _in_chunks(
    queries: Float[Array, "B E"], keys: Float[Array, "columns E"], mask: Mask, chunk: int
) -> tuple[Float[Array, " B"], Int[Array, " B"]]:
    """Log-sum-exp and winner of each row of `queries @ keys.T`, `chunk` columns at a time.

    Differentiated by hand: the backward pass needs the final sums alone, where differentiating the loop would keep the
    running ones of every step, B x B / chunk of them.
    """

    def step(carry: tuple[Array, Best], part: tuple[Array, Mask, Array]) -> tuple[tuple[Array, Best], None]:
        total, best = carry
        columns, mask, first = part
        logits = _logits(queries, columns, mask)
        total = jnp.logaddexp(total, jax.nn.logsumexp(logits, axis=-1))
        return (total, best.update(logits, first)), None

    begin = constrain_activations(jnp.full(len(queries), -jnp.inf)), Best.none_yet(len(queries))
    starts = jnp.arange(0, len(keys), chunk, dtype=jnp.int32)
    (total, best), _ = jax.lax.scan(step, begin, (*_cut(keys, mask, chunk), starts))
    return total, best.index


def _cut(keys: Array, mask: Mask, chunk: int) -> tuple[Array, Array | None]:
    return keys.reshape(-1, chunk, keys.shape[-1]), None if mask is None else mask.reshape(-1, chunk)


def _in_chunks_forward(queries: Array, keys: Array, mask: Mask, chunk: int):
    total, best = _in_chunks(queries, keys, mask, chunk)
    return (total, best), (queries, keys, mask, total)


def _in_chunks_backward(chunk: int, residuals: tuple[Array, Array, Mask, Array], cotangents: tuple[Array, Any]):
    queries, keys, mask, total = residuals
    of_total, _ = cotangents  # the winners have no gradient

    def step(of_queries: Array, part: tuple[Array, Mask]) -> tuple[Array, Array]:
        columns, mask = part
        # The gradient of a log-sum-exp is the softmax.
        of_logits = of_total[:, None] * jnp.exp(_logits(queries, columns, mask) - total[:, None])
        return of_queries + matmul(of_logits, columns), matmul(of_logits.T, queries)

    of_queries, of_parts = jax.lax.scan(step, jnp.zeros_like(queries), _cut(keys, mask, chunk))
    return of_queries, of_parts.reshape(keys.shape), None


_in_chunks.defvjp(_in_chunks_forward, _in_chunks_backward)
