"""A trained codec as others use it: images to tokens in raster order, and back."""

import dataclasses
import functools
import hashlib
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt8

from dalle_jax.codec import model, vqgan
from dalle_jax.codec.config import CodecConfig
from dalle_jax.codec.task import CodecStage
from dalle_jax.codec.vqgan import VqganConfig
from dalle_jax.codec.weights.dvae import find_dvae, load_dvae, save_dvae
from dalle_jax.codec.weights.vqgan import load_vqgan, save_vqgan
from dalle_jax.config import write_json
from dalle_jax.data.records import CodecSpec, Encoding
from dalle_jax.errors import UserError
from dalle_jax.run_record import RunRecord, read_run
from dalle_jax.storage import as_path, is_remote, path_text
from dalle_jax.training.checkpoints.reader import load_params
from dalle_jax.training.trees import named_leaves
from dalle_jax.weights import read_settings

PUBLISHED_IMAGE_SIZE = 256
"""Pixels a side that the published codecs were trained on."""

_ABOUT = "codec.json"


class FrozenCodec:
    """A codec with its weights, which are arguments of the compiled functions, not constants in them.

    Attributes:
      config: of the model.
      spec: its sizes.
      weights: parameters and model state.
    """

    def __init__(self, config: CodecConfig | VqganConfig, params: Any, model_state: Any, image_size: int):
        self.config = config
        self.spec = CodecSpec(config.codebook_size, config.grid_size(image_size), image_size)
        self.weights = (params, model_state)
        self._placed: dict[Any, Any] = {}

    @property
    def codebook_size(self) -> int:
        """How many values a token has."""
        return self.spec.codebook_size

    @property
    def grid_size(self) -> int:
        """Tokens a side."""
        return self.spec.grid_size

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.spec.image_size

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the weights, the same whatever file they came from; tells what made some tokens."""
        digest = hashlib.sha256()
        for name, leaf in sorted(named_leaves(self.weights).items()):
            array = np.asarray(leaf)
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    @property
    def encoding(self) -> Encoding:
        """What a data set encoded by this codec says of itself."""
        return Encoding(self.fingerprint, **dataclasses.asdict(self.spec))

    def encode(self, images: Array | np.ndarray) -> Int[Array, "B tokens"]:
        """The most likely code of every cell, in raster order, int32, of images uint8 [B, height, width, 3].

        Raises:
          ValueError: they are not uint8, or not of `image_size`.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"the codec takes uint8 [B, height, width, 3], not {images.dtype} of shape {images.shape}")
        if images.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(f"the codec takes images of {self.image_size} pixels a side, not {images.shape[1:3]}")
        return _encode(self.config, *self._weights_beside(images), images)

    def decode(self, tokens: Int[Array | np.ndarray, "B tokens"]) -> UInt8[Array, "B height width 3"]:
        """Images of tokens.

        Raises:
          ValueError: there are not `grid_size ** 2` of them an image.
        """
        if tokens.shape[1] != self.grid_size**2:
            raise ValueError(f"an image has {self.grid_size**2} tokens, not {tokens.shape[1]}")
        return _decode(self.config, *self._weights_beside(tokens), tokens)

    def _weights_beside(self, x: Any) -> tuple[Any, Any]:
        """The weights, copied once to every device of the mesh that `x` lies on."""
        sharding = getattr(x, "sharding", None)
        place = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
        if place not in self._placed:
            with jax.ensure_compile_time_eval():  # inside a caller's jit as well: what is kept must outlive it
                self._placed[place] = jax.device_put(self.weights, place)
        return self._placed[place]


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: CodecConfig | VqganConfig, params: Any, model_state: Any, images: Array) -> Array:
    if isinstance(config, VqganConfig):
        tokens = vqgan.encode(config, params, images)
    else:
        tokens = model.encode(config, params, model_state, images)
    return tokens.reshape(len(tokens), -1)


@functools.partial(jax.jit, static_argnums=0)
def _decode(config: CodecConfig | VqganConfig, params: Any, model_state: Any, tokens: Array) -> Array:
    side = round(tokens.shape[1] ** 0.5)
    grid = jnp.reshape(tokens, (-1, side, side))
    if isinstance(config, VqganConfig):
        return vqgan.decode(config, params, grid)
    return model.decode(config, params, model_state, grid)


def load_codec(
    path: epath.PathLike,
    *,
    step: int | None = None,
    image_size: int | None = None,
    key: str | None = None,
    prefix: str | None = None,
) -> FrozenCodec:
    """Loads the codec of a run, its averaged weights where it kept them, or a published one.

    Args:
      path: a work directory of `launch.train`; a folder with OpenAI's `encoder.pkl` and `decoder.pkl` (or as
        `save_codec` writes them); a VQGAN's checkpoint, or a folder with one alone. No code of a file is run.
      step: of a run's checkpoint; None: the newest.
      image_size: pixels a side that a published codec is to take; None: what `save_codec` has noted, or the 256 that
        they were trained on. That of a run is what it was trained on.
      key: of a VQGAN's checkpoint that holds several state dicts, which is read.
      prefix: what the names of a VQGAN's tensors begin with, where the file holds others too: `first_stage_model.`.

    Raises:
      UserError: the path is missing, of another format version, or has no codec; or a file of weights is damaged, has
        tensors that a call would make that is not run, or lacks parameters, and the message names them.
    """
    path = as_path(path_text(path))
    file = _vqgan_file(path)
    if file is None and (key, prefix) != (None, None):
        raise UserError(f"{path} is no VQGAN's checkpoint: key= and prefix= are for those alone")
    if path.is_dir() and (files := find_dvae(path)):
        return _published(*load_dvae(files), _noted_size(path) if image_size is None else image_size)
    if file is not None:
        size = _noted_size(file.parent) if image_size is None else image_size
        return _published(*load_vqgan(file, key=key, prefix=prefix), size)
    return codec_of_run(read_run(path), step)


def codec_of_run(run: RunRecord, step: int | None = None) -> FrozenCodec:
    """The codec that a run has trained; its averaged weights where it kept them.

    Raises:
      UserError: it trains none, or has no such checkpoint.
    """
    stage = run.stage("codec", CodecStage)
    loaded = load_params(run.workdir / "codec", step=step)
    return FrozenCodec(stage.model, loaded.params, loaded.model_state or {}, run.data.image_size)


def save_codec(codec: FrozenCodec, folder: epath.PathLike) -> None:
    """Writes a codec for others, and for `load_codec`.

    With OpenAI's names (`encoder.safetensors`, `decoder.safetensors`), or a VQGAN with its own (`vqgan.safetensors`);
    beside them `codec.json` with the size of its images, which the weights do not tell.

    Raises:
      UserError: the codec is of a form that has no published names, or the folder is in a bucket.
    """
    if is_remote(folder):
        raise UserError(f"{folder}: weights are written to local folders alone; name one, and copy it")
    params, _ = codec.weights
    if isinstance(codec.config, VqganConfig):
        save_vqgan(codec.config, params, folder)
    else:
        save_dvae(codec.config, params, folder)
    write_json(epath.Path(folder) / _ABOUT, {"image_size": codec.image_size})


def _noted_size(folder: epath.Path) -> int:
    about = folder / _ABOUT
    size = read_settings(os.fspath(about)).get("image_size") if about.exists() else PUBLISHED_IMAGE_SIZE
    if not isinstance(size, int) or size < 1:
        raise UserError(f"{about} must hold the pixels a side of the codec's images, not {size!r}")
    return size


def _published(config: CodecConfig | VqganConfig, params: Any, image_size: int) -> FrozenCodec:
    try:
        return FrozenCodec(config, params, {}, image_size)
    except ValueError as error:
        raise UserError(str(error)) from error


def _vqgan_file(path: epath.Path) -> epath.Path | None:
    if path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = [file for file in path.iterdir() if file.suffix in (".ckpt", ".pt", ".pth", ".bin", ".safetensors")]
    return files[0] if len(files) == 1 else None
