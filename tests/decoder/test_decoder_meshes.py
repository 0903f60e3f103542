"""One step of the decoder is the same on every mesh, whatever the patterns of its layers."""

import jax.numpy as jnp
import pytest

from dalle_jax.decoder.config import DecoderConfig
from dalle_jax.decoder.task import DecoderTask
from dalle_jax.nn.attention import Pattern
from dalle_jax.nn.remat import Remat
from tests.training.mesh_steps import (
    IMAGE_SIZE,
    TEXT_LENGTH,
    VOCAB_SIZE,
    assert_equal_on_a_mesh,
    on_meshes,
    on_one_device,
)

# Two rounds of every pattern, so that parameters are stacked; captions and units are dropped at random.
CONFIG = DecoderConfig(
    num_layers=8, num_heads=2, head_dim=8, embed_dim=16, mlp_dim=32, text_vocab_size=VOCAB_SIZE,
    text_length=TEXT_LENGTH, codebook_size=16, grid_size=4, conv_kernel=3, dropout=0.1, caption_dropout=0.3,
    patterns=(Pattern.ROW, Pattern.COLUMN, Pattern.CONV, Pattern.FULL) * 2, remat=Remat.NONE, dtype="float32",
)  # fmt: skip


class Pixels:
    """In place of a codec: a token is a pixel of its cell."""

    codebook_size, grid_size, image_size = CONFIG.codebook_size, CONFIG.grid_size, IMAGE_SIZE

    def encode(self, images):
        stride = self.image_size // self.grid_size
        return (images[:, ::stride, ::stride, 0] % self.codebook_size).astype(jnp.int32).reshape(len(images), -1)

    def decode(self, tokens):
        raise NotImplementedError("a step draws nothing")


@pytest.fixture(scope="module")
def one_device():
    return on_one_device(DecoderTask(CONFIG, Pixels()))


@on_meshes
def test_one_step_equals_one_device(one_device, sizes):
    assert_equal_on_a_mesh(one_device, sizes)
