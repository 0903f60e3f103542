"""The dual encoder: both towers, their projections into one space, and the learned scale and bias of logits."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import lecun_normal, normal
from jaxtyping import Array, Float, Int

from clip_jax.config import ClipConfig, TextTower, VisionTower
from clip_jax.towers import initializers
from clip_jax.towers.resnet import ModifiedResNet
from clip_jax.towers.siglip import SiglipText, SiglipVision
from clip_jax.towers.text import BagOfWords, TextTransformer
from clip_jax.towers.vit import VisionTransformer
from dalle_jax.nn.layers import Dense, constrain_activations
from dalle_jax.training.task import Params

VISION_TOWERS = {
    VisionTower.VIT: VisionTransformer,
    VisionTower.RESNET: ModifiedResNet,
    VisionTower.SIGLIP: SiglipVision,
}
"""Modules of a `VisionConfig`, which give features before the projection."""

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

    `apply(..., method="encode_image")` runs one tower alone. A ResNet has variables beside its parameters,
    `batch_stats`: where they are mutable, it normalises by the batch and updates them, else by them.
    """

    config: ClipConfig

    def setup(self):
        config = self.config
        self.vision = VISION_TOWERS[config.vision.tower](config.vision)
        self.text = _TEXT_TOWERS[config.text.tower](config.text)
        if not config.vision.tower.projects:
            # A ResNet's is the output of its attention pool, which has a bias.
            resnet = config.vision.tower is VisionTower.RESNET
            self.vision_projection = self._projection(config.vision.embed_dim, use_bias=resnet)
        if config.text.tower is TextTower.SIGLIP:
            self.text_projection = Dense(config.embed_dim, ("embed", None), lecun_normal())
        else:
            self.text_projection = self._projection(config.text.transformer.embed_dim)
        self.log_scale = self.param("logit_scale", lambda key: jnp.log(jnp.float32(config.init_logit_scale)))
        if config.objective.has_bias:
            self.bias = self.param("logit_bias", lambda key: jnp.float32(config.init_logit_bias))

    def _projection(self, width: int, use_bias: bool = False) -> Dense:
        bias_init = initializers.torch_linear(width)
        return Dense(self.config.embed_dim, ("embed", None), normal(width**-0.5), bias_init, use_bias)

    def encode_image(self, pixels: Float[Array, "B height width 3"], train: bool = False) -> Float[Array, "B E"]:
        """Args: pixels: as `normalize_pixels` gives them; train: drop what the config says, by the stream `dropout`.

        Returns: projected features, not normalised, float32.
        """
        features = self.vision(pixels, train=train)
        if not self.config.vision.tower.projects:
            features = self.vision_projection(features)
        return constrain_activations(features)

    def image_trunk(self, pixels: Float[Array, "B height width 3"]) -> Float[Array, "B D"]:
        """Args: pixels: as `normalize_pixels` gives them. Returns: features before the projection, float32."""
        return constrain_activations(self.vision(pixels))

    def encode_text(self, ids: Int[Array, "B T"], train: bool = False) -> Float[Array, "B E"]:
        """Args: ids: captions, `T` up to `context_length`; train: as above.

        Returns: projected features, not normalised, float32.
        """
        return constrain_activations(self.text_projection(self.text(ids, train=train)))

    def __call__(
        self,
        pixels: Float[Array, "B height width 3"],
        ids: Int[Array, "B T"],
        train_image: bool = False,
        train_text: bool = False,
    ) -> ClipOutput:
        image, text = self.encode_image(pixels, train_image), self.encode_text(ids, train_text)
        bias = self.bias if self.config.objective.has_bias else jnp.float32(0)
        return ClipOutput(image, text, jnp.exp(self.log_scale), bias)


def init_variables(config: ClipConfig, key: jax.Array) -> dict[str, Any]:
    """Fresh variables: `params`, in the boxes that carry their logical axes, and of a ResNet `batch_stats`."""
    size, text = config.vision.image_size, config.text
    pixels, ids = jnp.zeros((1, size, size, 3)), jnp.full((1, text.context_length), text.end_id, jnp.int32)
    return ClipModel(config).init(key, pixels, ids)


def init_params(config: ClipConfig, key: jax.Array) -> Params:
    """Fresh parameters, in the boxes that carry their logical axes."""
    return init_variables(config, key)["params"]


def abstract_variables(config: ClipConfig) -> dict[str, Any]:
    """Shapes and dtypes of all variables, in the boxes that carry their logical axes; nothing is computed."""
    return jax.eval_shape(partial(init_variables, config), jax.random.key(0))


def abstract_params(config: ClipConfig) -> Params:
    """Shapes and dtypes of the parameters, unboxed; nothing is computed."""
    return nn.meta.unbox(abstract_variables(config)["params"])
