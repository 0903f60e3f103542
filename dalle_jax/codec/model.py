"""The codec: encoder and decoder of the configured body, and the way from images to tokens and back."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from dalle_jax.codec.config import Body, CodecConfig, Relaxation
from dalle_jax.codec.conv_backbone import ConvDecoder, ConvEncoder
from dalle_jax.codec.patch_backbone import PatchDecoder, PatchEncoder
from dalle_jax.codec.pixels import map_pixels, to_uint8, unmap_pixels
from dalle_jax.codec.relaxation import nearest_codes, unit_length


class Codec(nn.Module):
    """Encoder and decoder. Between them is `dalle_jax.codec.relaxation`: the codebook of VQ is no parameter."""

    config: CodecConfig

    def setup(self):
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        encoder, decoder, sizes = {
            Body.CONV: (ConvEncoder, ConvDecoder, config.conv),
            Body.PATCH: (PatchEncoder, PatchDecoder, config.patch),
        }[config.body]
        self.encoder = encoder(sizes, config.encoder_features, dtype)
        self.decoder = decoder(sizes, config.encoder_features, dtype)

    def __call__(self, images: UInt8[Array, "B height width 3"]) -> Float[Array, "B height width 6"]:
        """Encoder and decoder with nothing between them: makes every parameter."""
        return self.decode(self.encode(images))

    def encode(self, images: UInt8[Array, "B height width 3"]) -> Float[Array, "B grid_height grid_width o"]:
        """Images to features, float32: logits over the codes (`gumbel`), or vectors to be quantized (`vq`)."""
        features = self.encoder(map_pixels(images))
        if self.config.relaxation is Relaxation.VQ and self.config.vq.normalize:
            features = unit_length(features)
        return features

    def decode(self, codes: Float[Array, "B grid_height grid_width i"]) -> Float[Array, "B height width 6"]:
        """(Relaxed) one-hot vectors (`gumbel`) or code vectors (`vq`) to maps: three means in logits, three ln b."""
        return self.decoder(codes)

    def decode_tokens(
        self, tokens: Int[Array, "B grid_height grid_width"], codebook: Float[Array, "K E"] | None = None
    ) -> Float[Array, "B height width 6"]:
        """Tokens to maps; `codebook` is needed with `vq` alone."""
        return self.decoder.from_tokens(tokens) if codebook is None else self.decoder(codebook[tokens])


def encode(
    config: CodecConfig, params: Any, model_state: Any, images: UInt8[Array, "B height width 3"]
) -> Int[Array, "B grid_height grid_width"]:
    """The most likely (`gumbel`) or nearest (`vq`) code of every cell, int32."""
    features = Codec(config).apply({"params": params}, images, method="encode")
    if config.relaxation is Relaxation.VQ:
        return nearest_codes(features, model_state["codebook"])
    return jnp.argmax(features, axis=-1).astype(jnp.int32)


def decode_pixels(
    config: CodecConfig, params: Any, model_state: Any, tokens: Int[Array, "B grid_height grid_width"]
) -> Float[Array, "B height width 3"]:
    """Images of tokens, float32 in [0, 1]."""
    codebook = model_state["codebook"] if config.relaxation is Relaxation.VQ else None
    return pixels_of(Codec(config).apply({"params": params}, tokens, codebook, method="decode_tokens"))


def decode(
    config: CodecConfig, params: Any, model_state: Any, tokens: Int[Array, "B grid_height grid_width"]
) -> UInt8[Array, "B height width 3"]:
    """Images of tokens."""
    return to_uint8(decode_pixels(config, params, model_state, tokens))


def pixels_of(maps: Float[Array, "B height width 6"]) -> Float[Array, "B height width 3"]:
    """The decoder's maps as pixels in [0, 1]: the sigmoid of the means; the scales are ignored (App. A.3)."""
    return unmap_pixels(jax.nn.sigmoid(maps[..., :3]))
