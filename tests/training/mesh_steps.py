"""One step of a task on meshes of eight devices against the step on one: metrics, gradients, what is updated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.training.config import MeshConfig, TrainConfig
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules
from dalle_jax.training.program import build_step
from dalle_jax.training.state import TrainState, run_keys
from dalle_jax.training.task import Task
from dalle_jax.training.trees import unbox
from tests.training.test_step import SGD_LIKE, assert_close

on_meshes = pytest.mark.parametrize(
    "sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=lambda sizes: "x".join(map(str, sizes))
)
TRAIN = TrainConfig(batch_size=8, num_steps=2, optimizer=SGD_LIKE)
IMAGE_SIZE, TEXT_LENGTH, VOCAB_SIZE = 32, 6, 24

QUICKLY = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}
"""Programs run once here, and a mesh is dealt with before machine code is made."""


@dataclasses.dataclass(frozen=True)
class OneDevice:
    """A task, where it begins, and its step on one device."""

    task: Task
    variables: tuple
    state: TrainState
    metrics: dict


def on_one_device(task: Task) -> OneDevice:
    """Parameters are random everywhere: what begins at zero would hide the gradients behind it."""
    key, rng = jax.random.key(0), np.random.default_rng(1)
    shapes, _ = unbox(jax.eval_shape(task.init, key))
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)
    variables = params, jax.device_get(jax.jit(lambda key: task.init(key)[1])(key))
    return OneDevice(task, variables, *_one_step(task, variables, MeshConfig(), jax.devices()[:1]))


def assert_equal_on_a_mesh(one: OneDevice, sizes: tuple[int, int, int]) -> None:
    """A mesh changes the order of float32 sums and nothing else."""
    state, metrics = _one_step(one.task, one.variables, MeshConfig(*sizes))
    gradients, wanted = state.opt_state[1].mu, one.state.opt_state[1].mu  # times 1 - b1
    assert all(np.any(leaf) for leaf in jax.tree.leaves(wanted))
    # Some gradients are zero but for rounding (of the keys' biases). That shows against the gradients that were summed,
    # hence the largest of all as a measure.
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    assert_close(gradients, wanted, rtol=1e-4, atol=3e-5 * largest)
    assert_close(state.params, one.state.params, rtol=1e-5)
    assert_close(state.model_state, one.state.model_state, rtol=1e-4)
    assert_close(metrics, one.metrics, rtol=1e-4)
    shares = [leaf.size // leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(gradients)]
    assert max(shares) == sizes[1] * sizes[2]  # the state is split as the mesh has it


def _one_step(task: Task, variables, mesh_config: MeshConfig, devices=None) -> tuple[TrainState, dict]:
    params, model_state = variables
    mesh, rules = make_mesh(mesh_config, devices), ShardingRules()
    with jax.set_mesh(mesh), rules.context():
        program = build_step(task, TRAIN, mesh, rules)
        state = TrainState(jnp.int32(0), params, program.optimizer.init(params), model_state, None, run_keys(0)[1])
        state = jax.device_put(state, program.shardings)
        prepared = task.prepare(jax.device_put(_batch(), program.batch_sharding))
        return program.step.lower(state, prepared).compile(QUICKLY)(state, prepared)


def _batch() -> dict[str, np.ndarray]:
    """Images, each brighter than the one before it, and captions of two lengths."""
    rng, rows = np.random.default_rng(0), TRAIN.batch_size
    brightness = np.linspace(0.1, 1, rows)[:, None, None, None]
    text = rng.integers(4, VOCAB_SIZE, (rows, TEXT_LENGTH), np.int32)
    text[:, 0], text[:, -2], text[::2, -2:] = 2, 3, (3, 0)
    images = rng.integers(0, 256, (rows, IMAGE_SIZE, IMAGE_SIZE, 3)) * brightness
    return {"image": images.astype(np.uint8), "text": text}
