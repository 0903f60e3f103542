"""One step of a codec is the same on every mesh."""

import pytest

from dalle_jax.codec import Body, CodecConfig, CodecStage, CodecTask, ConvConfig, PatchConfig, Relaxation, VqConfig
from tests.training.mesh_steps import IMAGE_SIZE, TRAIN, assert_equal_on_a_mesh, on_meshes, on_one_device


def dvae() -> CodecTask:
    """The published body, which draws Gumbel noise."""
    conv = ConvConfig(hidden_dim=32, decoder_input_dim=16, num_groups=2, blocks_per_group=1)
    return task_of(CodecConfig(codebook_size=16, conv=conv))


def vq() -> CodecTask:
    """Its codebook is not a parameter: moving averages of the batch's vectors, and codes that are replaced by some."""
    patch = PatchConfig(4, merge=2, fine_dim=16, fine_blocks=1, token_dim=16, encoder_blocks=1, decoder_blocks=1)
    return task_of(CodecConfig(16, Body.PATCH, Relaxation.VQ, patch=patch, vq=VqConfig(code_dim=4)))


def task_of(config: CodecConfig) -> CodecTask:
    return CodecTask(CodecStage(config, TRAIN), IMAGE_SIZE)


@pytest.fixture(scope="module", params=[dvae, vq], ids=lambda make: make.__name__)
def one_device(request):
    return on_one_device(request.param())


@on_meshes
def test_one_step_equals_one_device(one_device, sizes):
    assert_equal_on_a_mesh(one_device, sizes)
