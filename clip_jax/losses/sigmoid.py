"""SigLIP's objective over the global batch (Zhai et al. 2023, §3.2, 3.3): captions go round the devices in a ring."""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from clip_jax.losses.base import Best, ContrastiveLoss, ContrastiveObjective, Mask, chunk_of, normalize
from dalle_jax.nn.precision import matmul

Gradients = tuple[Float[Array, "B E"], Float[Array, "B E"], Float[Array, ""], Float[Array, ""]]
"""With respect to image, text, scale and bias."""


class SigmoidObjective(ContrastiveObjective):
    """Each pair by itself: do the two belong together (Zhai et al. 2023)? The scale has no bound."""

    has_bias = True
    scores_pairs = True

    def __call__(
        self,
        image: Float[Array, "B E"],
        text: Float[Array, "B E"],
        params: Any,
        *,
        chunk: int = 0,
        mask: Mask = None,
    ) -> ContrastiveLoss:
        """See `sigmoid_loss`."""
        scale = jnp.exp(params["logit_scale"])
        return sigmoid_loss(image, text, scale, params["logit_bias"], chunk=chunk, mask=mask)


def sigmoid_loss(
    image: Float[Array, "B E"],
    text: Float[Array, "B E"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
    *,
    chunk: int = 0,
    mask: Mask = None,
) -> ContrastiveLoss:
    """-sum of log sigmoid(z * logit) over all pairs, per image; z is 1 for an image and its caption, -1 otherwise.

    Each device keeps its images and meets the captions of one device after the other, so that it never holds more
    than [B on this device, B on this device] logits. Their gradients are computed with them, and the backward pass only
    multiplies these by the loss's own: it holds no logits, and nothing is computed twice.

    Args:
      image: projected features, not normalised; row i belongs with row i of `text`.
      text: likewise.
      logit_scale: factor on cosines.
      logit_bias: added to them.
      chunk: captions of a device whose logits are held at once; 0: all.
      mask: the pairs that count.

    Returns:
      The loss, float32, and the winners.

    Raises:
      UserError: `chunk` does not divide the captions of a device.
    """
    return _loss(normalize(image), normalize(text), logit_scale, logit_bias, mask, chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _loss(image: Array, text: Array, scale: Array, bias: Array, mask: Mask, chunk: int) -> ContrastiveLoss:
    return _with_gradients(image, text, scale, bias, mask, chunk)[0]


def _with_gradients(
    image: Array, text: Array, scale: Array, bias: Array, mask: Mask, chunk: int
) -> tuple[ContrastiveLoss, Gradients]:
    """One ring over the mesh axes that the sharding rules give to `batch`."""
    axes, size = _batch_axes()
    chunk = chunk_of(len(text) // size, chunk, "a device")
    ring = functools.partial(_ring, axes=axes, size=size, chunk=chunk)
    if size > 1:
        rows, copies = PartitionSpec(axes), PartitionSpec()
        arguments = (rows, rows, copies, copies)
        results = ((copies, rows, rows), arguments)
        ring = jax.shard_map(ring, in_specs=(*arguments, rows), out_specs=results, check_vma=False)
    result, gradients = ring(image, text, scale, bias, mask)
    return ContrastiveLoss(*result), gradients


def _backward(chunk: int, gradients: Gradients, cotangents: ContrastiveLoss) -> tuple[*Gradients, None]:
    del chunk  # the winners have no gradient
    image, text, scale, bias = (cotangents.loss * gradient for gradient in gradients)
    return image, text, scale, bias, None


_loss.defvjp(_with_gradients, _backward)


def _batch_axes() -> tuple[tuple[str, ...], int]:
    """The mesh axes of the batch, and the number of devices along them."""
    mesh, spec = jax.sharding.get_abstract_mesh(), nn.logical_to_mesh_axes(("batch",))
    if mesh.empty or spec is None or spec[0] is None:
        return (), 1
    axes = (spec[0],) if isinstance(spec[0], str) else tuple(spec[0])
    return axes, math.prod(mesh.shape[axis] for axis in axes)


class _Home(NamedTuple):
    """What stays on a device."""

    sums: tuple[Float[Array, ""], Float[Array, "B E"], Float[Array, ""], Float[Array, ""]]
    """Of the loss and of its gradients with respect to image, scale and bias."""
    best_text: Best


class _Visitor(NamedTuple):
    """Captions on their way, with what they gather."""

    text: Float[Array, "B E"]
    mask: Mask
    gradient: Float[Array, "B E"]
    best_image: Best


def _ring(
    image: Array, text: Array, scale: Array, bias: Array, mask: Mask, *, axes: tuple[str, ...], size: int, chunk: int
) -> tuple[tuple[Float[Array, ""], Int[Array, " B"], Int[Array, " B"]], Gradients]:
    """One device's part; `image` and `text` are its own. Returns the fields of a `ContrastiveLoss`, and gradients."""
    count, here = len(image), jax.lax.axis_index(axes) if size > 1 else 0
    rows = here * count + jnp.arange(count, dtype=jnp.int32)
    zero = jnp.float32(0)
    home = _Home((zero, jnp.zeros_like(image), zero, zero), Best.none_yet(count))
    visitor = _Visitor(text, mask, jnp.zeros_like(text), Best.none_yet(count))

    def meet(home: _Home, part: tuple[_Visitor, Array]) -> tuple[_Home, tuple[Array, Best]]:
        visitor, columns = part
        block = jax.value_and_grad(_block, argnums=(0, 1, 2, 3), has_aux=True)
        (loss, logits), found = block(
            image, visitor.text, scale, bias, rows=rows, columns=columns, row_mask=mask, column_mask=visitor.mask
        )
        sums = jax.tree.map(jnp.add, home.sums, (loss, found[0], *found[2:]))
        best_image = visitor.best_image.update(logits.T, rows[0])
        return _Home(sums, home.best_text.update(logits, columns[0])), (visitor.gradient + found[1], best_image)

    def hop(carry: tuple[_Home, _Visitor], step: Array) -> tuple[tuple[_Home, _Visitor], None]:
        home, visitor = carry
        columns = (here + step) % size * count + jnp.arange(count, dtype=jnp.int32)
        parts = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), (visitor, columns))
        home, gathered = jax.lax.scan(meet, home, parts)
        gradient, best_image = jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), gathered)
        visitor = visitor._replace(gradient=gradient, best_image=best_image)
        return (home, _to_the_next(visitor, axes, size)), None

    (home, visitor), _ = jax.lax.scan(hop, (home, visitor), jnp.arange(size, dtype=jnp.int32))
    loss, of_image, of_scale, of_bias = home.sums
    if size > 1:
        loss, of_scale, of_bias = jax.lax.psum((loss, of_scale, of_bias), axes)
    total = size * count if mask is None else mask.sum(dtype=jnp.float32)
    if size > 1 and mask is not None:
        total = jax.lax.psum(total, axes)
    result = (loss / total, home.best_text.index, visitor.best_image.index)
    return result, (of_image / total, visitor.gradient / total, of_scale / total, of_bias / total)


def _to_the_next(visitor: _Visitor, axes: tuple[str, ...], size: int) -> _Visitor:
    """After `size` hops all captions are at home again."""
    if size == 1:
        return visitor
    ring = [(i, (i - 1) % size) for i in range(size)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axes, ring), visitor)


def _block(
    image: Float[Array, "B E"],
    text: Float[Array, "columns E"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    rows: Int[Array, " B"],
    columns: Int[Array, " columns"],
    row_mask: Mask,
    column_mask: Mask,
) -> tuple[Float[Array, ""], Float[Array, "B columns"]]:
    """The summed loss of some images with some captions, and their logits.

    Args:
      rows: of the images in the global batch.
      columns: of the captions.
      row_mask: of the images that count.
      column_mask: of the captions; those that do not count win nowhere.
    """
    logits = matmul(scale * image, text.T) + bias
    signs = jnp.where(rows[:, None] == columns, 1.0, -1.0)
    log_likelihoods = jax.nn.log_sigmoid(signs * logits)
    if row_mask is None or column_mask is None:
        return -jnp.sum(log_likelihoods), logits
    counted = row_mask[:, None] & column_mask
    return -jnp.sum(log_likelihoods, where=counted), jnp.where(counted, logits, -jnp.inf)
