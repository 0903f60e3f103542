"""The image tower: a vision transformer (Radford et al. 2021, §2.4; Dosovitskiy et al. 2020)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import Initializer, normal
from jaxtyping import Array, Float, Int, Real

from clip_jax.config import VisionConfig
from clip_jax.towers import initializers
from dalle_jax.nn.attention import dense_attention
from dalle_jax.nn.layers import Dense, layer_norm
from dalle_jax.nn.transformer import Transformer, same_everywhere, uniform_kinds


def normalize_pixels(images: Real[Array, "B height width 3"], config: VisionConfig) -> Float[Array, "B height width 3"]:
    """Pixels in [0, 255], of any dtype, as the image tower reads them: [0, 1], less the mean, over the deviation."""
    mean, std = jnp.asarray(config.pixel_mean), jnp.asarray(config.pixel_std)
    return (images.astype(jnp.float32) / 255 - mean) / std


def patches(images: Float[Array, "B height width 3"], size: int) -> Float[Array, "B T values"]:
    """Cuts images into squares, row by row, each flattened as (row, column, channel).

    What is left over at the bottom and at the right is not read, as a convolution without padding leaves it.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // size, width // size
    grid = images[:, : rows * size, : columns * size].reshape(batch, rows, size, columns, size, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * channels)


def draw_patches(key: jax.Array, shape: tuple[int, int], count: int) -> Int[Array, "B count"]:
    """Which patches each image keeps: a random subset of exactly `count`, in order.

    Args:
      key: of the draw.
      shape: (B, patches of an image).
      count: kept.
    """
    return jnp.sort(jnp.argsort(jax.random.uniform(key, shape), axis=1)[:, :count], axis=1)


def drop_patches(
    module: nn.Module, x: Float[Array, "B T values"], config: VisionConfig
) -> tuple[Float[Array, "B kept values"], Int[Array, "B kept"]]:
    """The patches that a tower reads in training, drawn by its stream `dropout`, and which they are."""
    kept = draw_patches(module.make_rng("dropout"), (x.shape[0], x.shape[1]), config.kept_patches)
    return jnp.take_along_axis(x, kept[..., None], axis=1), kept


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions and a norm before the first block; the class token's feature.

    The patch convolution is a matrix product of flattened patches, which is the same sum and the faster program.
    """

    config: VisionConfig

    @nn.compact
    def __call__(self, images: Float[Array, "B height width 3"], *, train: bool = False) -> Float[Array, "B D"]:
        """Args: images: normalised pixels, `image_size` a side; train: drop patches, by the stream `dropout`.

        Returns: features before the projection, float32.
        """
        config, sizes = self.config, self.config.vit
        width, scaled_normal = sizes.embed_dim, normal(sizes.embed_dim**-0.5)
        x = patches(images, config.patch_size)
        kept = None
        if train and config.patch_dropout:
            x, kept = drop_patches(self, x, config)
        embed_init = initializers.torch_linear(x.shape[-1])
        dtype = jnp.dtype(sizes.dtype)
        x = Dense(width, (None, "embed"), embed_init, use_bias=False, dtype=dtype, name="patch_embedding")(x)
        token = self.param("class_embedding", _partitioned(scaled_normal, ("embed",)), (width,), jnp.float32)
        positions_init = _partitioned(scaled_normal, (None, "embed"))
        positions = self.param("position_embedding", positions_init, (config.num_patches + 1, width), jnp.float32)
        # Published parameters may be kept in half precision; what is summed here is not.
        token, positions = token.astype(jnp.float32), positions.astype(jnp.float32)
        x = x.astype(jnp.float32) + (positions[1:] if kept is None else positions[1:][kept])
        token = jnp.broadcast_to(token + positions[0], (x.shape[0], 1, width))
        x = jnp.concatenate([token, x], axis=1)
        x = layer_norm(sizes.norm_epsilon, "norm_pre")(x)
        blocks = initializers.vision_blocks(sizes)
        attend = same_everywhere(dense_attention)
        x, _ = Transformer(sizes, blocks, uniform_kinds(sizes), attend, name="transformer")(x, deterministic=not train)
        return layer_norm(sizes.norm_epsilon, "norm_post")(x[:, 0])


def _partitioned(init: Initializer, axes: tuple[str | None, ...]) -> Initializer:
    return nn.with_logical_partitioning(init, axes)
