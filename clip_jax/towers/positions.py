"""Positions of an image tower for images of another size than it was trained on (Dosovitskiy et al. 2020, §3.2)."""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from clip_jax.config import VisionConfig, VisionTower
from dalle_jax.training.task import Params

_log = logging.getLogger(__name__)

_TOWER, _NAME = "vision", "position_embedding"


def resize_positions(positions: Float[Array, "T D"], side: int, others: int) -> Float[Array, "T_new D"]:
    """Bicubic interpolation of positions on a square, as open_clip's with its antialiasing.

    Args:
      positions: `others` that stand for no patch (the class token's), which stay, then those of the patches by row.
      side: of the new square, in patches.
      others: how many.
    """
    width, old = positions.shape[1], round((len(positions) - others) ** 0.5)
    patches = positions[others:].reshape(old, old, width)
    resized = jax.image.resize(patches, (side, side, width), "cubic", antialias=True)
    return jnp.concatenate([positions[:others], resized.reshape(side * side, width)])


def can_resize(old: VisionConfig, new: VisionConfig) -> bool:
    """Whether a tower is another one's but for the size of its images: a ViT or SigLIP's."""
    return old.tower is new.tower is not VisionTower.RESNET and old.patch_size == new.patch_size


def as_for(vision: VisionConfig, params: Params) -> Params:
    """Abstract parameters of a run with the positions of another image tower, a copy of which every device holds."""
    ours = params[_TOWER][_NAME]
    shape = (_others(vision) + vision.num_patches, ours.shape[1])
    everywhere = NamedSharding(ours.sharding.mesh, PartitionSpec()) if ours.sharding is not None else None
    return _with(params, jax.ShapeDtypeStruct(shape, ours.dtype, sharding=everywhere))


def fit_positions(params: Params, old: VisionConfig, new: VisionConfig, sharding: Any, where: str) -> Params:
    """Parameters read as `as_for` says, with the positions of `new` under `sharding`; a note says that it was done."""
    positions = params[_TOWER][_NAME]
    side, before = (round(vision.num_patches**0.5) for vision in (new, old))
    resize = functools.partial(resize_positions, side=side, others=_others(new))
    if jax.process_index() == 0:
        _log.info(
            f"{where} was trained on images of {old.image_size} pixels and this run's have {new.image_size}: "
            f"the positions of {before}x{before} patches are interpolated to {side}x{side}"
        )
    return _with(params, jax.jit(resize, out_shardings=sharding)(positions))


def _others(vision: VisionConfig) -> int:
    return 1 if vision.tower is VisionTower.VIT else 0


def _with(params: Params, positions: Any) -> Params:
    return {**params, _TOWER: {**params[_TOWER], _NAME: positions}}
