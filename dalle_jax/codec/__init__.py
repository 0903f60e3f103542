"""Images to tokens and back: the discrete VAE of DALL·E, its relaxations, and smaller siblings for CPUs."""

from dalle_jax.codec.config import (
    Body,
    CodecConfig,
    ConvConfig,
    CosineRamp,
    GumbelConfig,
    PatchConfig,
    Reconstruction,
    Relaxation,
    VqConfig,
)
from dalle_jax.codec.frozen import FrozenCodec, codec_of_run, load_codec, save_codec
from dalle_jax.codec.model import Codec, decode, encode
from dalle_jax.codec.task import CodecStage, CodecTask
from dalle_jax.codec.vqgan import Vqgan, VqganConfig

__all__ = [
    "Body",
    "Codec",
    "CodecConfig",
    "CodecStage",
    "CodecTask",
    "ConvConfig",
    "CosineRamp",
    "FrozenCodec",
    "GumbelConfig",
    "PatchConfig",
    "Reconstruction",
    "Relaxation",
    "VqConfig",
    "Vqgan",
    "VqganConfig",
    "codec_of_run",
    "decode",
    "encode",
    "load_codec",
    "save_codec",
]
