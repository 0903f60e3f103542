"""The dual encoder: both towers, their projections into one space, and the learned scale and bias of logits."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import lecun_normal, normal
from jaxtyping import Array, Float, Int

from clip_jax.config import ClipConfig, Loss, TextTower, VisionTower
from clip_jax.siglip import SiglipText, SiglipVision
from clip_jax.text import BagOfWords, TextTransformer
from clip_jax.vision import VisionTransformer
from dalle_jax.nn.transformer import Dense, constrain_activations
from dalle_jax.training.task import Params

_VISION_TOWERS = {VisionTower.VIT: VisionTransformer, VisionTower.SIGLIP: SiglipVision}
_TEXT_TOWERS = {
    TextTower.TRANSFORMER: TextTransformer,
    TextTower.BAG_OF_WORDS: BagOfWords,
    TextTower.SIGLIP: SiglipText,
}


class ClipOutput(NamedTuple):
    """Projected features, not normalised, and what makes logits of their cosines."""

    image: Float[Array, "B E"]
    text: Float[Array, "B E"]
    logit_scale: Float[Array, ""]
    logit_bias: Float[Array, ""]
    """0 where the loss is a softmax."""


class ClipModel(nn.Module):
    """CLIP (Radford et al. 2021, Fig. 3) or SigLIP (Zhai et al. 2023).

    `apply(..., method="encode_image")` runs one tower alone.
    """

    config: ClipConfig

    def setup(self):
        config = self.config
        self.vision = _VISION_TOWERS[config.vision.tower](config.vision)
        self.text = _TEXT_TOWERS[config.text.tower](config.text)
        if not config.vision.tower.projects:
            self.vision_projection = self._projection(config.vision.transformer.embed_dim)
        if config.text.tower is TextTower.SIGLIP:
            self.text_projection = Dense(config.embed_dim, ("embed", None), lecun_normal())
        else:
            self.text_projection = self._projection(config.text.transformer.embed_dim)
        self.log_scale = self.param("logit_scale", lambda key: jnp.log(jnp.float32(config.init_logit_scale)))
        if config.loss is Loss.SIGMOID:
            self.bias = self.param("logit_bias", lambda key: jnp.float32(config.init_logit_bias))

    def _projection(self, width: int) -> Dense:
        return Dense(self.config.embed_dim, ("embed", None), normal(width**-0.5), use_bias=False)

    def encode_image(self, pixels: Float[Array, "B height width 3"]) -> Float[Array, "B E"]:
        """Args: pixels: as `normalize_pixels` gives them. Returns: projected features, not normalised, float32."""
        features = self.vision(pixels)
        if not self.config.vision.tower.projects:
            features = self.vision_projection(features)
        return constrain_activations(features)

    def image_trunk(self, pixels: Float[Array, "B height width 3"]) -> Float[Array, "B D"]:
        """Args: pixels: as `normalize_pixels` gives them. Returns: features before the projection, float32."""
        return constrain_activations(self.vision(pixels))

    def encode_text(self, ids: Int[Array, "B T"]) -> Float[Array, "B E"]:
        """Args: ids: captions, `T` up to `context_length`. Returns: projected features, not normalised, float32."""
        return constrain_activations(self.text_projection(self.text(ids)))

    def __call__(self, pixels: Float[Array, "B height width 3"], ids: Int[Array, "B T"]) -> ClipOutput:
        bias = self.bias if self.config.loss is Loss.SIGMOID else jnp.float32(0)
        return ClipOutput(self.encode_image(pixels), self.encode_text(ids), jnp.exp(self.log_scale), bias)


def init_params(config: ClipConfig, key: jax.Array) -> Params:
    """Fresh parameters, in the boxes that carry their logical axes."""
    size, text = config.vision.image_size, config.text
    pixels, ids = jnp.zeros((1, size, size, 3)), jnp.full((1, text.context_length), text.end_id, jnp.int32)
    return ClipModel(config).init(key, pixels, ids)["params"]


def abstract_params(config: ClipConfig) -> Params:
    """Shapes and dtypes of the parameters, unboxed; nothing is computed."""
    return nn.meta.unbox(jax.eval_shape(partial(init_params, config), jax.random.key(0)))


def normalize(features: Float[Array, "... E"]) -> Float[Array, "... E"]:
    """Features over their Euclidean length."""
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)
