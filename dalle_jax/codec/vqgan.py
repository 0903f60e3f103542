"""VQGAN (Esser et al. 2021), the codec of dalle-mini and minDALL-E, for use as it was trained elsewhere.

In NHWC. Modules are called as in the original, so that `encoder.down.0.block.1.conv1` is
`encoder/down_0/block_1/conv1` here.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from dalle_jax.codec.layers import Conv, upsample
from dalle_jax.codec.pixels import to_uint8
from dalle_jax.codec.relaxation import nearest_codes
from dalle_jax.nn.precision import einsum

NORM_GROUPS = 32


@dataclasses.dataclass(frozen=True)
class VqganConfig:
    """Sizes; the defaults are those of the published one with 16,384 codes, a token for 16x16 pixels."""

    codebook_size: int = 16384
    hidden_dim: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Width of each level over `hidden_dim`; there is a halving of the resolution between two levels."""
    blocks_per_level: int = 2
    """In the encoder; the decoder has one more."""
    attention_levels: tuple[int, ...] = (4,)
    """Levels, counted from 0, with attention after every block."""
    latent_dim: int = 256
    """Channels that leave the encoder and enter the decoder."""
    code_dim: int = 256

    def __post_init__(self):
        if not self.multipliers or self.blocks_per_level < 1:
            raise ValueError("a VQGAN has one level of one block at least")
        if any(self.hidden_dim * factor % NORM_GROUPS or factor < 1 for factor in self.multipliers):
            raise ValueError(f"widths must be multiples of the {NORM_GROUPS} groups that are normalised together")

    @property
    def stride(self) -> int:
        """Side of the square of pixels that one token covers."""
        return 2 ** (len(self.multipliers) - 1)

    def grid_size(self, image_size: int) -> int:
        """Tokens a side of an image with `image_size` pixels a side.

        Raises:
          ValueError: where the image does not divide into tokens.
        """
        if image_size <= 0 or image_size % self.stride:
            raise ValueError(f"image_size {image_size} is not a multiple of the codec's {self.stride}")
        return image_size // self.stride

    def width(self, level: int) -> int:
        """Channels of a level of resolution."""
        return self.hidden_dim * self.multipliers[level]


def group_norm(name: str) -> nn.GroupNorm:
    """The norm of every block, computed in float32."""
    return nn.GroupNorm(num_groups=NORM_GROUPS, epsilon=1e-6, use_fast_variance=False, name=name)


def conv(x: Array, features: int, side: int, name: str, stride: int = 1) -> Array:
    """A convolution of `side` x `side`, padded so that at stride 1 the size stays."""
    return Conv(features, side, x.shape[-1], stride=stride, name=name)(x)


class ResidualBlock(nn.Module):
    """`shortcut(x)` plus two convolutions, each after a normalisation and a swish."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "B height width i"]) -> Float[Array, "B height width o"]:
        h = conv(nn.swish(group_norm("norm1")(x)), self.features, 3, "conv1")
        h = conv(nn.swish(group_norm("norm2")(h)), self.features, 3, "conv2")
        if x.shape[-1] != self.features:
            x = conv(x, self.features, 1, "nin_shortcut")
        return x + h


class AttentionBlock(nn.Module):
    """`x` plus one head of attention over all positions."""

    @nn.compact
    def __call__(self, x: Float[Array, "B height width c"]) -> Float[Array, "B height width c"]:
        width, h = x.shape[-1], group_norm("norm")(x)
        q, k, v = (conv(h, width, 1, part).reshape(x.shape[0], -1, width) for part in "qkv")
        weights = jax.nn.softmax(einsum("bqc,bkc->bqk", q, k) * width**-0.5, axis=-1)
        attended = einsum("bqk,bkc->bqc", weights, v).reshape(x.shape)
        return x + conv(attended, width, 1, "proj_out")


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    @nn.compact
    def __call__(self, x: Float[Array, "B height width c"]) -> Float[Array, "B height width c"]:
        x = ResidualBlock(x.shape[-1], name="block_1")(x)
        return ResidualBlock(x.shape[-1], name="block_2")(AttentionBlock(name="attn_1")(x))


class Resample(nn.Module):
    """Halves the resolution by a convolution of stride 2, or doubles it by repetition and a convolution."""

    down: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B height width c"]) -> Float[Array, "B height2 width2 c"]:
        if self.down:
            return conv(x, x.shape[-1], 3, "conv", stride=2)
        return conv(upsample(x), x.shape[-1], 3, "conv")


class Level(nn.Module):
    """Blocks of one resolution, and the way to the next where `resample` names it."""

    features: int
    blocks: int
    attention: bool
    resample: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "B height width i"]) -> Float[Array, "B height2 width2 o"]:
        for i in range(self.blocks):
            x = ResidualBlock(self.features, name=f"block_{i}")(x)
            if self.attention:
                x = AttentionBlock(name=f"attn_{i}")(x)
        return x if self.resample is None else Resample(self.resample == "downsample", name=self.resample)(x)


class Encoder(nn.Module):
    """Images to vectors of each cell, not quantized."""

    config: VqganConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B height width 3"]) -> Float[Array, "B grid_height grid_width c"]:
        config, last = self.config, len(self.config.multipliers) - 1
        x = conv(x, config.hidden_dim, 3, "conv_in")
        for i in range(last + 1):
            resample = "downsample" if i < last else None
            attention = i in config.attention_levels
            x = Level(config.width(i), config.blocks_per_level, attention, resample, name=f"down_{i}")(x)
        x = Middle(name="mid")(x)
        return conv(nn.swish(group_norm("norm_out")(x)), config.latent_dim, 3, "conv_out")


class Decoder(nn.Module):
    """Vectors of each cell to images."""

    config: VqganConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B grid_height grid_width c"]) -> Float[Array, "B height width 3"]:
        config, last = self.config, len(self.config.multipliers) - 1
        x = Middle(name="mid")(conv(x, config.width(last), 3, "conv_in"))
        for i in reversed(range(last + 1)):
            resample = "upsample" if i > 0 else None
            attention = i in config.attention_levels
            x = Level(config.width(i), config.blocks_per_level + 1, attention, resample, name=f"up_{i}")(x)
        return conv(nn.swish(group_norm("norm_out")(x)), 3, 3, "conv_out")


class Vqgan(nn.Module):
    """Encoder, codebook, decoder. Pixels are in [-1, 1]."""

    config: VqganConfig

    def setup(self):
        config = self.config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = Conv(config.code_dim, 1, config.latent_dim)
        self.post_quant_conv = Conv(config.latent_dim, 1, config.code_dim)
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", None))
        self.codebook = self.param("codebook", init, (config.codebook_size, config.code_dim), jnp.float32)

    def __call__(self, pixels: Float[Array, "B height width 3"]) -> Float[Array, "B height width 3"]:
        """There and back: makes every parameter."""
        return self.decode(self.encode(pixels))

    def vectors(self, pixels: Float[Array, "B height width 3"]) -> Float[Array, "B grid_height grid_width E"]:
        """What is quantized."""
        return self.quant_conv(self.encoder(pixels))

    def encode(self, pixels: Float[Array, "B height width 3"]) -> Int[Array, "B grid_height grid_width"]:
        """The nearest code of every cell, int32."""
        return nearest_codes(self.vectors(pixels), self.codebook)

    def decode(self, tokens: Int[Array, "B grid_height grid_width"]) -> Float[Array, "B height width 3"]:
        """Images of tokens, not clipped."""
        return self.decoder(self.post_quant_conv(self.codebook[tokens]))


def encode(
    config: VqganConfig, params: Any, images: UInt8[Array, "B height width 3"]
) -> Int[Array, "B grid_height grid_width"]:
    """The nearest code of every cell, int32."""
    return Vqgan(config).apply({"params": params}, images.astype(jnp.float32) / 127.5 - 1, method="encode")


def decode(
    config: VqganConfig, params: Any, tokens: Int[Array, "B grid_height grid_width"]
) -> UInt8[Array, "B height width 3"]:
    """Images of tokens."""
    pixels = Vqgan(config).apply({"params": params}, tokens, method="decode")
    return to_uint8((jnp.clip(pixels, -1, 1) + 1) / 2)


def abstract_params(config: VqganConfig) -> Any:
    """Shapes and dtypes of the parameters, in the boxes that carry their logical axes; nothing is computed."""
    pixels = jax.ShapeDtypeStruct((1, config.stride, config.stride, 3), jnp.float32)
    return jax.eval_shape(Vqgan(config).init, jax.random.key(0), pixels)["params"]
