"""Contrastive gradients of a batch too large to be held at once (Gao et al. 2021, "GradCache")."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.config import ClipStage, Lock, VisionTower
from dalle_jax.errors import UserError
from dalle_jax.training.task import Batch, Params

Encode = Callable[[Params, Batch, jax.Array], Any]
"""Features of a batch, under a key of its own: a tree of arrays with the batch first."""


def check_accumulation(stage: ClipStage, micro_batches: int) -> None:
    """Raises: UserError: the features of a row depend on the others of its batch, so that parts are no whole."""
    resnet = stage.model.vision.tower is VisionTower.RESNET
    if micro_batches > 1 and resnet and stage.trains(Lock.IMAGE):
        raise UserError(
            f"config.clip.train.micro_batches is {micro_batches}, and a ResNet normalises by the statistics of its "
            "whole batch, which parts of it do not have: set it to 1, and use more devices, remat or a smaller batch"
        )


def accumulated_gradients(
    encode: Encode,
    objective: Callable[[Params, Any], tuple[jax.Array, Any]],
    params: Params,
    batch: Batch,
    key: jax.Array,
    parts: int,
) -> tuple[Params, tuple[jax.Array, Any]]:
    """The gradients of `objective(params, encode(params, batch))`, one part of the batch in memory at a time.

    A mean over micro-batches would miss the negatives that stand in other parts. Here the features of all parts come
    first, without what the backward pass would keep of them; the objective sees them together; then each part is
    encoded again and takes back its share of the gradient. The price is one more forward pass.

    Args:
      encode: each row's features must depend on that row alone (no batch statistics), and on the key. It is called
        twice for each part, with the same key, so that what the first call drops the second drops too.
      objective: of the parameters that it uses itself and all features; returns (value, auxiliary).
      params: differentiated.
      batch: arrays whose first axis divides by `parts`.
      key: split into one for each part.
      parts: how many.

    Returns:
      (gradients, (value, auxiliary)), up to rounding those of one big batch, where nothing is random.
    """
    micro = jax.tree.map(lambda x: _split(x, parts), batch)
    keys = jax.random.split(key, parts)
    features = jax.lax.map(lambda part: encode(params, *part), (micro, keys))
    merged = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), features)
    value_and_grad = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
    (value, auxiliary), (gradients, cotangents) = value_and_grad(params, merged)

    def add(total, part_and_cotangents):
        part, part_key, cotangent = part_and_cotangents
        _, pull_back = jax.vjp(lambda p: encode(p, part, part_key), params)
        return jax.tree.map(jnp.add, total, pull_back(cotangent)[0]), None

    cotangents = jax.tree.map(lambda x: _split(x, parts), cotangents)
    gradients, _ = jax.lax.scan(add, gradients, (micro, keys, cotangents))
    return gradients, (value, auxiliary)


# Part i holds the rows i, i + parts, i + 2 parts...: a batch whose contiguous blocks lie on different devices is cut
# into parts that lie on all of them.
def _split(x: jax.Array, parts: int) -> jax.Array:
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
