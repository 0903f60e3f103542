"""The image tower: a vision transformer (Radford et al. 2021, §2.4; Dosovitskiy et al. 2020)."""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.initializers import Initializer, normal
from jaxtyping import Array, Float, Real

from clip_jax import initializers
from clip_jax.config import VisionConfig
from dalle_jax.nn.attention import dense_attention
from dalle_jax.nn.transformer import Dense, Transformer, layer_norm, same_everywhere, uniform_kinds


def normalize_pixels(images: Real[Array, "B height width 3"], config: VisionConfig) -> Float[Array, "B height width 3"]:
    """Pixels in [0, 255], of any dtype, as the image tower reads them: [0, 1], less the mean, over the deviation."""
    mean, std = jnp.asarray(config.pixel_mean), jnp.asarray(config.pixel_std)
    return (images.astype(jnp.float32) / 255 - mean) / std


def patches(images: Float[Array, "B height width 3"], size: int) -> Float[Array, "B T P"]:
    """Cuts pictures into squares, row by row, each flattened as (row, column, channel).

    What is left over at the bottom and at the right is not read, as a convolution without padding leaves it.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // size, width // size
    grid = images[:, : rows * size, : columns * size].reshape(batch, rows, size, columns, size, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * channels)


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions and a norm before the first block; the class token's feature.

    The patch convolution is a matrix product of flattened patches, which is the same sum and the faster program.
    """

    config: VisionConfig

    @nn.compact
    def __call__(self, images: Float[Array, "B height width 3"]) -> Float[Array, "B D"]:
        """Args: images: normalised pixels, `image_size` a side. Returns: features before the projection, float32."""
        config, sizes = self.config, self.config.transformer
        width, scaled_normal = sizes.embed_dim, normal(sizes.embed_dim**-0.5)
        x = patches(images, config.patch_size)
        embed_init = initializers.torch_linear(x.shape[-1])
        dtype = jnp.dtype(sizes.dtype)
        x = Dense(width, (None, "embed"), embed_init, use_bias=False, dtype=dtype, name="patch_embedding")(x)
        token = self.param("class_embedding", _partitioned(scaled_normal, ("embed",)), (width,), jnp.float32)
        token = jnp.broadcast_to(token, (x.shape[0], 1, width))
        x = jnp.concatenate([token, x.astype(jnp.float32)], axis=1)
        positions_init = _partitioned(scaled_normal, (None, "embed"))
        x += self.param("position_embedding", positions_init, (config.num_patches + 1, width), jnp.float32)
        x = layer_norm(sizes.norm_epsilon, "norm_pre")(x)
        blocks = initializers.vision_blocks(sizes)
        attend = same_everywhere(dense_attention)
        x, _ = Transformer(sizes, blocks, uniform_kinds(sizes), attend, name="transformer")(x)
        return layer_norm(sizes.norm_epsilon, "norm_post")(x[:, 0])


def _partitioned(init: Initializer, axes: tuple[str | None, ...]) -> Initializer:
    return nn.with_logical_partitioning(init, axes)
