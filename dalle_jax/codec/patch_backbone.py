"""Encoder and decoder of patches, dense layers and shifts: every operation is a matrix product or a copy.

XLA runs the gradients of strided and transposed convolutions slowly on a CPU; this body has none. Cells look at their
neighbours by shifting a ninth of their channels from each of the eight directions, which costs no arithmetic
(ShiftViT, Wang et al. 2022), so that what one token says can depend on what the tokens around it say.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dalle_jax.codec.config import PatchConfig
from dalle_jax.codec.layers import Conv, depth_to_space, space_to_depth
from dalle_jax.nn.layers import Dense, constrain_activations

OUTPUT_MAPS = 6
PIXEL_SCALE = 4.0
"""Brings mapped pixels, centred, to a variance near 1."""


def shift_channels(x: Float[Array, "B height width c"]) -> Float[Array, "B height width c"]:
    """Moves each ninth of the channels by one cell in a direction of its own (one stays); the edges bring zeros."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = []
    for i, part in enumerate(jnp.array_split(padded, 9, axis=-1)):
        top, left = divmod(i, 3)
        parts.append(part[:, top : top + height, left : left + width])
    return jnp.concatenate(parts, axis=-1)


def _dense(features: int, dtype: Any, name: str, axes: tuple[str | None, str | None] = (None, "embed")) -> Dense:
    return Dense(features, axes, nn.initializers.lecun_normal(), dtype=dtype, name=name)


class Block(nn.Module):
    """`x + mlp(shift(norm(x)))`; the last layer starts at zero, so that a fresh stack is the identity."""

    mlp_ratio: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B height width c"]) -> Float[Array, "B height width c"]:
        features = x.shape[-1]
        h = shift_channels(nn.LayerNorm(name="norm")(x))
        h = h.reshape(-1, features)  # XLA on a CPU runs the gradients of products of two axes alone twice as fast
        h = nn.relu(_dense(features * self.mlp_ratio, self.dtype, "in", ("embed", "mlp"))(h))
        h = Dense(features, ("mlp", "embed"), nn.initializers.zeros, dtype=self.dtype, name="out")(h)
        return constrain_activations(x + h.reshape(x.shape).astype(x.dtype))


class PatchEncoder(nn.Module):
    """Images to features of each cell."""

    config: PatchConfig
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B height width 3"]) -> Float[Array, "B grid_height grid_width o"]:
        """Takes mapped pixels; returns `features` channels, float32."""
        config, dtype = self.config, self.dtype
        x = space_to_depth(PIXEL_SCALE * (x - 0.5), config.fine_patch)
        x = _dense(config.fine_dim, dtype, "patches")(x).astype(jnp.float32)
        for i in range(config.fine_blocks):
            x = Block(config.mlp_ratio, dtype, name=f"fine_{i}")(x)
        x = _dense(config.token_dim, dtype, "merge")(space_to_depth(x, config.merge)).astype(jnp.float32)
        for i in range(config.encoder_blocks):
            x = Block(config.mlp_ratio, dtype, name=f"block_{i}")(x)
        # No norm here or at the end of the decoder: patches are nearly linear in their colours, and a path without one
        # lets the first steps find that; with it, the same image quality took four times as many.
        return _dense(self.features, jnp.float32, "output", ("embed", None))(x)


class PatchDecoder(nn.Module):
    """Codes of each cell to six maps a pixel: three means, three log scales."""

    config: PatchConfig
    in_features: int
    dtype: Any = jnp.float32

    def setup(self):
        config, dtype = self.config, self.dtype
        self.input = Conv(config.token_dim, 1, self.in_features, axes=("vocab", "embed"))
        self.blocks = [Block(config.mlp_ratio, dtype, name=f"block_{i}") for i in range(config.decoder_blocks)]
        self.split = _dense(config.merge**2 * config.fine_dim, dtype, "split", ("embed", None))
        self.fine = [Block(config.mlp_ratio, dtype, name=f"fine_{i}") for i in range(config.fine_blocks)]
        self.output = _dense(config.fine_patch**2 * OUTPUT_MAPS, dtype, "output", ("embed", None))

    def __call__(self, codes: Float[Array, "B grid_height grid_width i"]) -> Float[Array, "B height width 6"]:
        """Takes (relaxed) one-hot vectors, or code vectors; returns float32."""
        return self._body(self.input(codes))

    def from_tokens(self, tokens: Int[Array, "B grid_height grid_width"]) -> Float[Array, "B height width 6"]:
        """The same for one-hot vectors given by their index, without the wide product."""
        return self._body(self.input.lookup(tokens))

    def _body(self, x: Float[Array, "B grid_height grid_width c"]) -> Float[Array, "B height width 6"]:
        config = self.config
        for block in self.blocks:
            x = block(x)
        x = depth_to_space(self.split(x).astype(jnp.float32), config.merge)
        for block in self.fine:
            x = block(x)
        x = self.output(x).astype(jnp.float32)
        return depth_to_space(x, config.fine_patch)
