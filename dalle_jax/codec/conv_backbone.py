"""The published convolutional encoder and decoder (DALL·E App. A.1), in NHWC.

Module names are the release's, so that `blocks.group_1.block_1.res_path.conv_1.w` is
`blocks/group_1/block_1/res_path/conv_1/kernel` here, and `.b` is `/bias`; kernels are (height, width, in, out).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dalle_jax.codec.config import ConvConfig
from dalle_jax.codec.layers import Conv, max_pool, upsample
from dalle_jax.nn.layers import constrain_activations


class ResidualPath(nn.Module):
    """Four convolutions, each after a ReLU, through a bottleneck of a quarter of the width."""

    features: int
    kernel_sizes: tuple[int, int, int, int]
    dtype: Any
    upsample_after_first: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B height width i"]) -> Float[Array, "B height2 width2 o"]:
        widths = (self.features // 4,) * 3 + (self.features,)
        for i, (width, side) in enumerate(zip(widths, self.kernel_sizes, strict=True)):
            x = Conv(width, side, x.shape[-1], self.dtype, name=f"conv_{i + 1}")(nn.relu(x))
            if i == 0 and self.upsample_after_first:
                x = upsample(x)
        return x


class Block(nn.Module):
    """`id_path(x) + residual_scale * res_path(x)`, without normalisation; the sum is float32, whatever the `dtype`.

    `upsampled` asks for the block of the upsampled input. Repetition commutes with whatever acts on single cells, so
    the block runs its 1x1 convolutions before it, on a quarter of the cells.
    """

    features: int
    kernel_sizes: tuple[int, int, int, int]
    residual_scale: float
    dtype: Any
    upsampled: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B height width i"]) -> Float[Array, "B height2 width2 o"]:
        path = ResidualPath(self.features, self.kernel_sizes, self.dtype, self.upsampled, name="res_path")
        residual = path(x)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, x.shape[-1], self.dtype, name="id_path")(x).astype(jnp.float32)
        if self.upsampled:
            x = upsample(x)
        return constrain_activations(x + self.residual_scale * residual.astype(jnp.float32))


class Group(nn.Module):
    """Blocks of one width and resolution."""

    config: ConvConfig
    features: int
    kernel_sizes: tuple[int, int, int, int]
    dtype: Any
    upsampled: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B height width i"]) -> Float[Array, "B height2 width2 o"]:
        for i in range(self.config.blocks_per_group):
            block = Block(
                self.features,
                self.kernel_sizes,
                self.config.residual_scale,
                self.dtype,
                upsampled=self.upsampled and i == 0,
                name=f"block_{i + 1}",
            )
            x = block(x)
        return x


class Output(nn.Module):
    """ReLU and a 1x1 convolution."""

    features: int
    dtype: Any
    axes: tuple[str, str | None]

    @nn.compact
    def __call__(self, x: Float[Array, "B height width i"]) -> Float[Array, "B height width o"]:
        return Conv(self.features, 1, x.shape[-1], self.dtype, self.axes, name="conv")(nn.relu(x))


class EncoderBlocks(nn.Module):
    """What the release calls `blocks`."""

    config: ConvConfig
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B height width 3"]) -> Float[Array, "B grid_height grid_width o"]:
        config = self.config
        x = Conv(config.hidden_dim, 7, x.shape[-1], self.dtype, name="input")(x).astype(jnp.float32)
        for i in range(config.num_groups):
            x = max_pool(x) if i > 0 else x
            x = Group(config, config.hidden_dim * 2**i, (3, 3, 3, 1), self.dtype, name=f"group_{i + 1}")(x)
        return Output(self.features, jnp.float32, ("conv_in", "vocab"), name="output")(x)


class ConvEncoder(nn.Module):
    """Images to features of each cell; with the published sizes 256x256 to 32x32."""

    config: ConvConfig
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B height width 3"]) -> Float[Array, "B grid_height grid_width o"]:
        """Takes mapped pixels; returns `features` channels, float32."""
        return EncoderBlocks(self.config, self.features, self.dtype, name="blocks")(x)


class DecoderBlocks(nn.Module):
    """What the release calls `blocks`. Its input comes as features of the codes or as tokens."""

    config: ConvConfig
    in_features: int
    dtype: Any

    @nn.compact
    def __call__(self, codes: Array, tokens: bool) -> Float[Array, "B height width 6"]:
        config = self.config
        first = Conv(config.decoder_input_dim, 1, self.in_features, axes=("vocab", "conv_out"), name="input")
        x = first.lookup(codes) if tokens else first(codes)
        for i in range(config.num_groups):
            features = config.hidden_dim * 2 ** (config.num_groups - 1 - i)
            x = Group(config, features, (1, 3, 3, 3), self.dtype, upsampled=i > 0, name=f"group_{i + 1}")(x)
        return Output(6, self.dtype, ("conv_in", None), name="output")(x).astype(jnp.float32)


class ConvDecoder(nn.Module):
    """Codes of each cell to six maps a pixel: three means, three log scales."""

    config: ConvConfig
    in_features: int
    dtype: Any = jnp.float32

    def setup(self):
        self.blocks = DecoderBlocks(self.config, self.in_features, self.dtype)

    def __call__(self, codes: Float[Array, "B grid_height grid_width i"]) -> Float[Array, "B height width 6"]:
        """Takes (relaxed) one-hot vectors, or code vectors; returns float32."""
        return self.blocks(codes, tokens=False)

    def from_tokens(self, tokens: Int[Array, "B grid_height grid_width"]) -> Float[Array, "B height width 6"]:
        """The same for one-hot vectors given by their index, without the wide product."""
        return self.blocks(tokens, tokens=True)
