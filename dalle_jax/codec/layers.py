"""Pieces that the codec's bodies share: a convolution, and changes of resolution. All in NHWC."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from dalle_jax.nn.precision import add_bias, matmul, precision_of


class Conv(nn.Module):
    """Convolution that keeps the size, or halves an even one with stride 2 (zeros then come below and at the right).

    Normal with standard deviation 1/sqrt(fan in), zero bias.
    """

    features: int
    kernel_size: int
    in_features: int
    dtype: Any = jnp.float32
    axes: tuple[str, str | None] = ("conv_in", "conv_out")
    stride: int = 1

    def setup(self):
        side = self.kernel_size
        init = nn.initializers.normal((self.in_features * side**2) ** -0.5)
        kernel_init = nn.with_logical_partitioning(init, (None, None, *self.axes))
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
        self.kernel = self.param("kernel", kernel_init, (side, side, self.in_features, self.features), jnp.float32)
        self.bias = self.param("bias", bias_init, (self.features,), jnp.float32)

    def __call__(self, x: Float[Array, "B height width i"]) -> Float[Array, "B height2 width2 o"]:
        x, kernel = x.astype(self.dtype), self.kernel.astype(self.dtype)
        if self.kernel_size == 1:
            y = matmul(x, kernel[0, 0])
        else:
            y = lax.conv_general_dilated(
                x,
                kernel,
                (self.stride, self.stride),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision=precision_of(x, kernel),
            )
        return add_bias(y, self.bias)

    def lookup(self, tokens: Int[Array, "B height width"]) -> Float[Array, "B height width o"]:
        """What a 1x1 convolution makes of one-hot input: rows of its kernel, without the product."""
        return add_bias(self.kernel[0, 0][tokens].astype(self.dtype), self.bias)


def upsample(x: Float[Array, "B height width c"]) -> Float[Array, "B 2*height 2*width c"]:
    """Doubles the resolution by repetition."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def max_pool(x: Float[Array, "B height width c"]) -> Float[Array, "B height//2 width//2 c"]:
    """Halves the resolution by the maximum of 2x2 cells."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def space_to_depth(x: Float[Array, "B height width c"], side: int) -> Float[Array, "B height2 width2 c2"]:
    """Gathers squares of `side` x `side` cells into the channels of one."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels).swapaxes(2, 3)
    return x.reshape(batch, height // side, width // side, side * side * channels)


def depth_to_space(x: Float[Array, "B height width c"], side: int) -> Float[Array, "B height2 width2 c2"]:
    """The inverse of `space_to_depth`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, side, side, channels // side**2).swapaxes(2, 3)
    return x.reshape(batch, height * side, width * side, channels // side**2)
