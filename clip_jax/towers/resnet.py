"""The image tower: a modified ResNet (Radford et al. 2021, §2.4; where the paper is silent, the published code).

Three convolutions instead of one at the entry, then four stages of bottleneck blocks in which an average pool stands
for every stride (Zhang 2019), then attention instead of a mean at the end. In NHWC; modules are called as in OpenAI's
parameters, but that a stage is its `first` block, which changes sizes, and the stack of its equal others, `rest`.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import Initializer, normal, ones, zeros
from jaxtyping import Array, Float

from clip_jax.config import ResNetConfig, VisionConfig
from clip_jax.towers.initializers import torch_linear
from dalle_jax.nn.attention import dense_attention
from dalle_jax.nn.layers import Dense, constrain_activations
from dalle_jax.nn.precision import matmul, precision_of
from dalle_jax.nn.remat import rematerialised

EPSILON = 1e-5
MOMENTUM = 0.9
"""Share that a stored statistic keeps at an update (PyTorch calls the rest, 0.1, its momentum)."""

EXPANSION = 4
"""Channels that leave a block over those inside it."""


class Conv(nn.Module):
    """A convolution of an odd side without bias that keeps the size, or halves an even one; product in `dtype`."""

    features: int
    side: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B height width i"]) -> Float[Array, "B height2 width2 o"]:
        side, features_in = self.side, x.shape[-1]
        init = nn.with_logical_partitioning(torch_linear(side**2 * features_in), (None, None, "conv_in", "conv_out"))
        kernel = self.param("kernel", init, (side, side, features_in, self.features), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if side == 1:
            return matmul(x, kernel[0, 0])
        # As PyTorch pads; "SAME" has no row above where the stride is 2.
        pad = (side // 2, side // 2)
        strides = (self.stride, self.stride)
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, strides, (pad, pad), dimension_numbers=dimensions, precision=precision_of(x, kernel)
        )


class BatchNorm(nn.Module):
    """Each channel less its mean, over its deviation, then gain and bias; computed in float32.

    Where the collection `batch_stats` is mutable, that is in training, mean and variance are those of the batch (the
    global one: on a mesh the means run over all devices), and the stored ones move towards them. Elsewhere the stored
    ones are used. As in PyTorch, the stored variance is the unbiased one.
    """

    scale_init: Initializer = ones

    @nn.compact
    def __call__(self, x: Float[Array, "B height width c"]) -> Float[Array, "B height width c"]:
        x, shape = x.astype(jnp.float32), x.shape[-1:]
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", zeros, shape, jnp.float32)
        stored_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        stored_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        mean, var = stored_mean.value.astype(jnp.float32), stored_var.value.astype(jnp.float32)
        if self.is_mutable_collection("batch_stats"):
            # One pass over the batch: sums about the stored mean, near enough to the batch's that nothing cancels.
            axes, count = (0, 1, 2), x.size // x.shape[-1]
            offset = jnp.mean(x - mean, axes)
            batch_var = jnp.maximum(jnp.mean(jnp.square(x - mean), axes) - jnp.square(offset), 0)
            if not self.is_initializing():
                unbiased = batch_var * (count / max(count - 1, 1))
                stored_mean.value = mean + (1 - MOMENTUM) * offset
                stored_var.value = MOMENTUM * var + (1 - MOMENTUM) * unbiased
            mean, var = mean + offset, batch_var
        return (x - mean) * (scale * jax.lax.rsqrt(var + EPSILON)) + bias


def average_pool(x: Float[Array, "B height width c"]) -> Float[Array, "B height//2 width//2 c"]:
    """Halves the resolution by the mean of 2x2 cells, float32."""
    batch, height, width, channels = x.shape
    cells = x.astype(jnp.float32).reshape(batch, height // 2, 2, width // 2, 2, channels)
    return cells.mean(axis=(2, 4))


class Bottleneck(nn.Module):
    """`shortcut(x)` plus a 1x1, a 3x3 and a 1x1 convolution; where it halves, a pool comes before the last of both.

    What goes from block to block is float32.

    Returns a pair for `nn.scan`, whose second is nothing.
    """

    config: ResNetConfig
    planes: int
    """Channels inside."""
    first: bool
    """Of its stage: its input has other channels, and the shortcut a convolution."""
    halves: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B height width i"]) -> tuple[Float[Array, "B height2 width2 o"], None]:
        dtype = jnp.dtype(self.config.dtype)
        conv, features = partial(Conv, dtype=dtype), EXPANSION * self.planes
        pool = average_pool if self.halves else lambda y: y
        h = nn.relu(BatchNorm(name="bn1")(conv(self.planes, 1, name="conv1")(x)))
        h = nn.relu(BatchNorm(name="bn2")(conv(self.planes, 3, name="conv2")(h)))
        h = BatchNorm(zeros, name="bn3")(conv(features, 1, name="conv3")(pool(h)))
        if self.first:
            x = BatchNorm(name="downsample_bn")(conv(features, 1, name="downsample_conv")(pool(x)))
        return constrain_activations(nn.relu(h + x)), None


class Stage(nn.Module):
    """Blocks of one resolution and width, of which the first may halve.

    The parameters of the others are stacked over an axis named `layers`, whether or not the loop is compiled as a scan.
    """

    config: ResNetConfig
    planes: int
    blocks: int
    halves: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B height width i"]) -> Float[Array, "B height2 width2 o"]:
        config, count = self.config, self.blocks - 1
        block = rematerialised(Bottleneck, config.remat, scanned=False)
        x, _ = block(config, self.planes, True, self.halves, name="first")(x)
        if count == 0:
            return x
        block = rematerialised(Bottleneck, config.remat, scanned=config.scan)
        rest = nn.scan(
            block,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=count,
            unroll=1 if config.scan else count,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = rest(config, self.planes, False, False, name="rest")(x)
        return x


class AttentionPool(nn.Module):
    """One attention of the mean of all positions to itself and them; what comes before the output projection."""

    config: ResNetConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B height width D"]) -> Float[Array, "B D"]:
        config, (batch, height, width, embed_dim) = self.config, x.shape
        x = x.astype(jnp.float32).reshape(batch, height * width, embed_dim)
        x = jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1)
        init = normal(embed_dim**-0.5)
        positions_init = nn.with_logical_partitioning(init, (None, "embed"))
        x += self.param("position_embedding", positions_init, (height * width + 1, embed_dim), jnp.float32)
        dtype, bias_init = jnp.dtype(config.dtype), torch_linear(embed_dim)
        project = partial(Dense, embed_dim, ("embed", "heads"), init, bias_init, dtype=dtype)
        q, k, v = project(name="q")(x[:, :1]), project(name="k")(x), project(name="v")(x)
        q, k, v = (y.reshape(batch, -1, config.num_heads, config.head_dim) for y in (q, k, v))
        return dense_attention(q, k, v).reshape(batch, embed_dim).astype(jnp.float32)


class ModifiedResNet(nn.Module):
    """The tower. Its parameters begin as in the release: PyTorch's defaults, but for the pool's weights, and zero
    gains at the end of every block, so that each begins as its shortcut."""

    config: VisionConfig

    @nn.compact
    def __call__(self, images: Float[Array, "B height width 3"], *, train: bool = False) -> Float[Array, "B D"]:
        """Args: images: normalised pixels, `image_size` a side; train: nothing here (see `BatchNorm`).

        Returns: the attention pool's result before its output projection, which `ClipModel` has as that into the shared
        space; float32.
        """
        del train
        config = self.config.resnet
        assert config is not None
        dtype, width = jnp.dtype(config.dtype), config.width
        x = images
        for i, (features, stride) in enumerate(((width // 2, 2), (width // 2, 1), (width, 1)), start=1):
            x = Conv(features, 3, stride, dtype, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(name=f"bn{i}")(x))
        x = constrain_activations(average_pool(x))
        for i, blocks in enumerate(config.layers, start=1):
            x = Stage(config, 2 ** (i - 1) * width, blocks, halves=i > 1, name=f"layer{i}")(x)
        return AttentionPool(config, name="attnpool")(x)
