"""A trained codec as others use it: pictures to tokens in raster order, and back."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt8

from dalle_jax.codec.codec_task import CodecStage
from dalle_jax.codec.config import CodecConfig
from dalle_jax.codec.model import decode, encode
from dalle_jax.config import from_config_dict
from dalle_jax.errors import UserError
from dalle_jax.training.checkpoint import load_params
from dalle_jax.training.workdir import read_workdir


class FrozenCodec:
    """A codec with its weights, which are arguments of the compiled functions, not constants in them.

    Attributes:
      config: of the model.
      codebook_size: how many values a token has.
      image_size: pixels a side.
      grid_size: tokens a side.
    """

    def __init__(self, config: CodecConfig, params: Any, model_state: Any, image_size: int):
        self.config = config
        self.codebook_size = config.codebook_size
        self.image_size = image_size
        self.grid_size = config.grid_size(image_size)
        self._weights = (params, model_state)
        self._placed: dict[Any, Any] = {}

    def encode(self, images: UInt8[Array | np.ndarray, "B height width 3"]) -> Int[Array, "B tokens"]:
        """The most likely code of every cell, in raster order, int32.

        Raises:
          ValueError: the pictures are not of `image_size`.
        """
        if images.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(f"the codec takes pictures of {self.image_size} pixels a side, not {images.shape[1:3]}")
        return _encode(self.config, *self._weights_beside(images), images)

    def decode(self, tokens: Int[Array | np.ndarray, "B tokens"]) -> UInt8[Array, "B height width 3"]:
        """Pictures of tokens.

        Raises:
          ValueError: there are not `grid_size ** 2` of them a picture.
        """
        if tokens.shape[1] != self.grid_size**2:
            raise ValueError(f"a picture has {self.grid_size**2} tokens, not {tokens.shape[1]}")
        return _decode(self.config, *self._weights_beside(tokens), tokens)

    def _weights_beside(self, x: Any) -> tuple[Any, Any]:
        """The weights, copied once to every device of the mesh that `x` lies on."""
        sharding = getattr(x, "sharding", None)
        place = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
        if place not in self._placed:
            self._placed[place] = jax.device_put(self._weights, place)
        return self._placed[place]


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: CodecConfig, params: Any, model_state: Any, images: Array) -> Array:
    tokens = encode(config, params, model_state, images)
    return tokens.reshape(len(tokens), -1)


@functools.partial(jax.jit, static_argnums=0)
def _decode(config: CodecConfig, params: Any, model_state: Any, tokens: Array) -> Array:
    side = round(tokens.shape[1] ** 0.5)
    return decode(config, params, model_state, jnp.reshape(tokens, (-1, side, side)))


def load_codec(workdir: epath.PathLike, *, step: int | None = None) -> FrozenCodec:
    """Loads the codec of a run, its averaged weights where it kept them.

    Args:
      workdir: of `launch.train`.
      step: of the checkpoint; None: the newest.

    Raises:
      UserError: the directory is missing, of another format version, or has no trained codec.
    """
    workdir = epath.Path(workdir)
    run = read_workdir(workdir)
    if not run.get("codec"):
        raise UserError(f"{workdir} has no codec: train one with a config that has a `codec` section, or name another")
    stage = from_config_dict(CodecStage, run["codec"], "config.codec")
    loaded = load_params(workdir / "codec", step=step)
    return FrozenCodec(stage.model, loaded.params, loaded.model_state or {}, run["data"]["image_size"])
