"""The published discrete VAE: images to tokens, and back."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import codec_dalle
from dalle_jax.codec.config import CodecConfig
from dalle_jax.codec.flops import decoder_flops, encoder_flops
from dalle_jax.codec.frozen import FrozenCodec
from dalle_jax.codec.model import Codec
from dalle_jax.codec.task import CodecStage
from dalle_jax.config import from_config_dict
from launch.benchmarks.workload import Row, Workload, import_torch, product_dtype, size_of

IMAGE_SIZE = 256


def published() -> tuple[FrozenCodec, CodecConfig]:
    """The model with random weights, and its config."""
    stage = from_config_dict(CodecStage, codec_dalle.get_config()["codec"], "config.codec")
    config = dataclasses.replace(stage.model, dtype=product_dtype())
    images = jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.uint8)
    params = jax.jit(lambda key: nn.unbox(Codec(config).init(key, images)["params"]))(jax.random.key(0))
    return FrozenCodec(config, params, {}, IMAGE_SIZE), config


def encode(batch_size: int) -> Workload:
    """Images to tokens by the published codec."""
    codec, config = published()
    images = np.random.default_rng(0).integers(0, 256, (batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    flops, weights = batch_size * encoder_flops(config, IMAGE_SIZE), size_of(codec.weights[0]["encoder"])
    return Workload(functools.partial(codec.encode, jnp.asarray(images)), flops, weights, items=batch_size)


def decode(batch_size: int) -> Workload:
    """Tokens to images by the published codec."""
    codec, config = published()
    tokens = np.random.default_rng(0).integers(0, codec.codebook_size, (batch_size, codec.grid_size**2), np.int32)
    weights = codec.weights[0]["decoder"]
    read = size_of(weights) - size_of(weights["blocks"]["input"]["kernel"])  # of which rows are looked up
    flops = batch_size * decoder_flops(config, IMAGE_SIZE)
    return Workload(functools.partial(codec.decode, jnp.asarray(tokens)), flops, read, items=batch_size)


def _peer(name: str) -> Any:
    torch = import_torch()
    import dall_e

    return getattr(dall_e, name)(device=torch.device("cpu")).eval()


def peer_encode(batch_size: int) -> Workload:
    """Images to tokens by OpenAI's code."""
    torch, encoder = import_torch(), _peer("Encoder")
    pixels = torch.rand(batch_size, 3, IMAGE_SIZE, IMAGE_SIZE) * 0.8 + 0.1

    def run() -> None:
        with torch.inference_mode():
            torch.argmax(encoder(pixels), dim=1)

    return Workload(run, items=batch_size)


def peer_decode(batch_size: int) -> Workload:
    """Tokens to images by OpenAI's code."""
    torch, decoder = import_torch(), _peer("Decoder")
    tokens = torch.randint(0, 8192, (batch_size, 32, 32))

    def run() -> None:
        with torch.inference_mode():
            one_hot = torch.nn.functional.one_hot(tokens, 8192).permute(0, 3, 1, 2).float()
            torch.sigmoid(decoder(one_hot)[:, :3])

    return Workload(run, items=batch_size)


def _row(name: str, batch_size: int, gpu: bool = False) -> Row:
    ours, theirs = {"encode": (encode, peer_encode), "decode": (decode, peer_decode)}[name]
    return Row(
        name=f"codec_{name}_{batch_size}",
        shape=f"published dVAE, 256x256, batch {batch_size}",
        unit="images",
        make=functools.partial(ours, batch_size),
        make_peer=None if gpu else functools.partial(theirs, batch_size),
        peer="OpenAI's torch code",
        reach=1.0,
        gpu=gpu,
    )


ROWS = (
    *(_row(name, batch_size) for batch_size in (1, 4) for name in ("encode", "decode")),
    *(_row(name, 64, gpu=True) for name in ("encode", "decode")),
)
