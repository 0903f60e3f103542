"""Runs that begin with weights for images of another size: which numbers their positions are, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import ClipConfig, ClipStage, ClipTask, TextConfig, VisionConfig, resnet_config, tower_config
from clip_jax.fine_tuning import open_init_from, read_init_from, read_run
from clip_jax.towers.positions import resize_positions
from clip_jax.weights.openai import openai_names
from clip_jax.weights.opening import abstract_variables
from dalle_jax.errors import UserError
from dalle_jax.training.checkpoints.manager import Checkpoints
from dalle_jax.training.checkpoints.workdir import open_workdir
from dalle_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules
from dalle_jax.training.state import TrainState, abstract_state, state_shardings, with_shardings
from dalle_jax.training.trees import named_leaves, unbox
from dalle_jax.weights import write_safetensors, write_tensors

SMALL = ClipConfig(8, VisionConfig(32, 16, tower_config(1, 64)), TextConfig(50, 6, 49, tower_config(1, 64)))
LARGE = dataclasses.replace(SMALL, vision=dataclasses.replace(SMALL.vision, image_size=48))
TRAIN = TrainConfig(8, 1, OptimizerConfig(1e-3))


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = unbox(abstract_variables(SMALL))["params"]
    return jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def published(params, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "tiny.safetensors"
    write_safetensors(path, write_tensors(openai_names(SMALL), {"params": params}))
    return path


@pytest.fixture(scope="module")
def workdir(params, tmp_path_factory):
    """A run of ours, as it is on disk."""
    path = tmp_path_factory.mktemp("run")
    open_workdir(path, {"clip": ClipStage(SMALL, TRAIN)})
    arrays = jax.tree.map(jnp.asarray, params)
    optimizer = make_optimizer(TRAIN.optimizer, 1)
    checkpoints = Checkpoints(path / "clip", TRAIN, "loss", "min")
    checkpoints.save(1, TrainState(jnp.int32(1), arrays, optimizer.init(arrays), {}, None, jax.random.key(0)), {})
    checkpoints.close()
    return path


def state_of(model):
    """The abstract state of a run on a mesh."""
    boxed = abstract_state(ClipTask(ClipStage(model, TRAIN)), make_optimizer(TRAIN.optimizer, 1), keep_ema=False)
    return with_shardings(boxed, state_shardings(boxed, make_mesh(MeshConfig(2, 2, 2)), ShardingRules()))


@pytest.mark.parametrize("kind", ["published", "run"])
def test_a_run_on_larger_pictures(request, params, caplog, kind):
    """The class position stays, and so does all that is not a position."""
    caplog.set_level("INFO", "clip_jax")
    read, path = (read_init_from, "published") if kind == "published" else (read_run, "workdir")
    loaded = read(LARGE, request.getfixturevalue(path), state_of(LARGE))
    said = caplog.text
    assert "images of 32 pixels and this run's have 48" in said and "2x2 patches are interpolated to 3x3" in said
    found, wanted = named_leaves(loaded.params), named_leaves(params)
    positions, old = found.pop("vision/position_embedding"), wanted.pop("vision/position_embedding")
    assert positions.shape == (10, 64) and positions.sharding.mesh.size == 8
    np.testing.assert_array_equal(positions[0], old[0])
    np.testing.assert_allclose(positions[5], old[1:].mean(axis=0), rtol=1e-4, atol=1e-6)  # the middle, by symmetry
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("kind", ["published", "run"])
def test_pictures_of_the_same_size_change_nothing(request, params, caplog, kind):
    caplog.set_level("INFO", "clip_jax")
    read, path = (read_init_from, "published") if kind == "published" else (read_run, "workdir")
    loaded = read(SMALL, request.getfixturevalue(path), state_of(SMALL))
    for name, array in named_leaves(params).items():
        np.testing.assert_array_equal(named_leaves(loaded.params)[name], array, err_msg=name)
    assert "interpolated" not in caplog.text


def test_what_is_not_a_matter_of_positions_is_refused(published, workdir):
    patches = dataclasses.replace(SMALL.vision, image_size=64, patch_size=32)
    for vision in (patches, resnet_config(64, (1, 1, 1, 1), 8)):
        model = dataclasses.replace(SMALL, vision=vision)
        with pytest.raises(UserError, match="another model than config.clip.model"):
            open_init_from(model, published)
        with pytest.raises(UserError, match="does not fit the model"):
            read_run(model, workdir, state_of(model))


@pytest.mark.parity
@pytest.mark.parametrize("old, new, others", [(4, 7, 1), (7, 4, 1), (16, 24, 0)])
def test_positions_are_those_of_torch(old, new, others):
    """Antialiased, as open_clip has it: PyTorch's other bicubic filter is another one."""
    torch = pytest.importorskip("torch")
    positions = np.random.default_rng(0).normal(size=(others + old * old, 8)).astype(np.float32)
    grid = torch.tensor(positions[others:].reshape(1, old, old, 8)).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, (new, new), mode="bicubic", antialias=True, align_corners=False)
    found = np.asarray(resize_positions(jnp.asarray(positions), new, others))
    np.testing.assert_array_equal(found[:others], positions[:others])
    np.testing.assert_allclose(found[others:], wanted[0].permute(1, 2, 0).reshape(-1, 8), atol=1e-5)
