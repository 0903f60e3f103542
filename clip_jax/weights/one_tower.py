"""Folders of Hugging Face's that hold one tower of a CLIP, and what can be asked of that."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jaxtyping import Float

from clip_jax.clip import Clip, Images
from clip_jax.config import ClipConfig, TextConfig, VisionConfig, tower_config
from dalle_jax.errors import UserError
from dalle_jax.weights import Names, Tensor


class Side(enum.Enum):
    """A tower, by the section of a `config.json` that it has."""

    IMAGE = "vision"
    TEXT = "text"

    @property
    def word(self) -> str:
        """What a message calls it."""
        return {Side.IMAGE: "image", Side.TEXT: "text"}[self]


ONE_TOWER = {
    "clip_text_model": Side.TEXT,
    "clip_vision_model": Side.IMAGE,
    "siglip_text_model": Side.TEXT,
    "siglip_vision_model": Side.IMAGE,
}
"""By `model_type`, which begins with that of the whole model."""


def whole_settings(settings: Mapping[str, Any], side: Side) -> dict[str, Any]:
    """The `config.json` of a whole model that one of a tower is part of; sizes of the other tower are any that fit."""
    width = settings.get("projection_size") or settings.get("hidden_size", 768)
    other = {"text_config": {"projection_size": width}}
    if side is Side.TEXT:
        other = {"vision_config": {"hidden_size": width, "num_attention_heads": 1}}
    return {"projection_dim": settings.get("projection_dim", 512), f"{side.value}_config": dict(settings), **other}


def whole_names(tensors: Mapping[str, Tensor], side: Side) -> dict[str, Tensor]:
    """Tensors by the names that a whole model gives them; newer files of a tower alone leave its own name out."""
    if "embeddings.position_embedding.weight" not in tensors:
        return dict(tensors)
    start = f"{side.value}_model."
    return {name if "_projection." in name else f"{start}{name}": tensor for name, tensor in tensors.items()}


def one_tower(config: ClipConfig, names: Names, tensors: Mapping[str, Tensor], side: Side) -> tuple[ClipConfig, Names]:
    """Config and names of one tower of a model.

    Args:
      config: of the whole model.
      names: of the whole model.
      tensors: of the tower, by the names of the whole model.
      side: which tower it is.

    Returns:
      A config whose other tower is the smallest there is, and which is as wide as the tower where the file has no
      projection; and the names of what the file has.
    """
    ours = f"params/{side.value}"
    projection = names.get(f"{ours}_projection/kernel", [])
    left_out = {f"{ours}_projection/kernel"} if projection and projection[0].name not in tensors else set()
    kept = Names({name: pieces for name, pieces in names.items() if name.startswith(ours) and name not in left_out})
    width = config.text.transformer.embed_dim if side is Side.TEXT else config.vision.embed_dim
    changes: dict[str, Any] = {"text": TextConfig(1, 1, 0, tower_config(1, 64))}
    if side is Side.TEXT:
        changes = {"vision": VisionConfig(1, 1, tower_config(1, 64))}
    if left_out:
        changes["embed_dim"] = width
    return dataclasses.replace(config, **changes), kept


def kept_shapes(shapes: Any, names: Names) -> Any:
    """The part of a tree of variables that some names are for."""
    return {
        kind: {module: tree for module, tree in modules.items() if any(n.startswith(f"{kind}/{module}") for n in names)}
        for kind, modules in shapes.items()
    }


def completed(params: dict[str, Any], config: ClipConfig, side: Side) -> dict[str, Any]:
    """Parameters of a tower with what a `Clip` needs beside: a scale of 1, no bias, and a projection that changes
    nothing where the file has none."""
    params = params | {"logit_scale": np.float32(0)}
    if config.objective.has_bias:
        params["logit_bias"] = np.float32(0)
    projects = side is Side.TEXT or not config.vision.tower.projects
    if projects and f"{side.value}_projection" not in params:
        params[f"{side.value}_projection"] = {"kernel": np.eye(config.embed_dim, dtype=np.float32)}
    return params


class OneTower(Clip):
    """The handle of a tower alone: methods that need the other one raise a `UserError` that says so.

    Features of a tower without a projection are those that the projection would be given. The other tower's sizes in
    `config` mean nothing.
    """

    def __init__(self, path: str, side: Side, *args: Any, **kwargs: Any):
        """Args: path: for messages; side: the tower that is there; others: of `Clip`."""
        super().__init__(*args, **kwargs)
        self.path, self.side = path, side

    def encode_text(self, texts: Any, *, truncate: bool | None = None) -> Float[np.ndarray, "B E"]:
        """As of `Clip`. Raises: UserError: the text tower is not there."""
        self._need(Side.TEXT)
        return super().encode_text(texts, truncate=truncate)

    def _encode_images(self, images: Images, method: str) -> jax.Array | np.ndarray:
        self._need(Side.IMAGE)
        return super()._encode_images(images, method)

    def _need(self, side: Side) -> None:
        if side is not self.side:
            refuse_side(self.path, self.side)


def refuse_side(path: str, side: Side) -> NoReturn:
    """Raises `UserError`: what is asked for needs the tower that is not there."""
    (other,) = set(Side) - {side}
    raise UserError(
        f"{path} holds the {side.word} tower alone, and this needs the {other.word} tower: load a whole CLIP"
    )
