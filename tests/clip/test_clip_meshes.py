"""One step of CLIP is the same on every mesh."""

import pytest

from clip_jax import ClipConfig, ClipStage, ClipTask, TextConfig, VisionConfig, resnet_config, tower_config
from tests.training.mesh_steps import (
    IMAGE_SIZE,
    TEXT_LENGTH,
    TRAIN,
    VOCAB_SIZE,
    assert_equal_on_a_mesh,
    on_meshes,
    on_one_device,
)


def vit() -> ClipTask:
    """Patches are dropped at random."""
    return task_of(VisionConfig(IMAGE_SIZE, 8, tower_config(2, 32, head_dim=16), patch_dropout=0.25))


def resnet() -> ClipTask:
    """Its statistics are those of the whole batch."""
    return task_of(resnet_config(IMAGE_SIZE, (1, 1, 1, 1), 16))


def task_of(vision: VisionConfig) -> ClipTask:
    text = TextConfig(VOCAB_SIZE, TEXT_LENGTH, end_id=3, transformer=tower_config(2, 32, head_dim=16))
    return ClipTask(ClipStage(ClipConfig(16, vision, text), TRAIN))


# `test_resnet.py` has the ResNet on another mesh in the default tier.
TASKS = [vit, pytest.param(resnet, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=TASKS, ids=lambda make: make.__name__)
def one_device(request):
    return on_one_device(request.param())


@on_meshes
def test_one_step_equals_one_device(one_device, sizes):
    assert_equal_on_a_mesh(one_device, sizes)
