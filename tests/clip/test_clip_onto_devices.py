"""Weights go to their devices in shares: the host never holds the model."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from clip_jax import ClipConfig, TextConfig, VisionConfig, tower_config
from clip_jax.weights.openai import openai_names
from clip_jax.weights.opening import abstract_variables, open_published
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules, param_shardings
from dalle_jax.training.trees import named_leaves, unbox
from dalle_jax.weights import mapping, write_tensors
from tests.weights import pickled


@pytest.mark.parametrize(
    "shape, host_bytes",
    [((8, 1, 1), mapping.HOST_BYTES), ((1, 8, 1), mapping.HOST_BYTES), ((2, 2, 2), 40_000), ((1, 8, 1), 10_000)],
)
def test_straight_onto_a_mesh(openai, variables, tmp_path, monkeypatch, shape, host_bytes):
    monkeypatch.setattr(mapping, "HOST_BYTES", host_bytes)
    published = open_published(pickled.state_dict(tmp_path / "plain.pt", openai))
    mesh = make_mesh(MeshConfig(*shape))
    rules = ShardingRules(vocab=()) if shape[2] == 2 else ShardingRules()  # 100 words do not divide
    shardings = param_shardings(abstract_variables(published.config), mesh, rules)
    found = published.read(shardings=shardings)
    for (name, array), wanted, sharding in zip(
        named_leaves(found).items(), jax.tree.leaves(variables), jax.tree.leaves(shardings), strict=True
    ):
        assert array.sharding == sharding, name
        np.testing.assert_array_equal(array, wanted, err_msg=name)


def test_the_host_never_holds_the_model(tmp_path, monkeypatch):
    """NumPy's memory while a model of 25 MiB goes to its device in shares of 1 MiB."""
    monkeypatch.setattr(mapping, "HOST_BYTES", 1 << 20)
    wide = ClipConfig(64, VisionConfig(32, 16, tower_config(6, 256)), TextConfig(2000, 8, 1999, tower_config(2, 256)))
    variables = jax.tree.map(lambda x: np.ones(x.shape, np.float32), unbox(abstract_variables(wide)))
    total = sum(array.nbytes for array in jax.tree.leaves(variables))
    assert total > 25 << 20
    path = pickled.state_dict(tmp_path / "wide.pt", write_tensors(openai_names(wide), variables))
    published = open_published(path)
    published.read(shardings=SingleDeviceSharding(jax.devices()[0]))  # compiles
    tracemalloc.start()
    published.read(shardings=SingleDeviceSharding(jax.devices()[0]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.slow
def test_peak_memory_of_a_checkpoint_of_vit_l14(tmp_path):
    """In a process of its own: beside the model itself, which lies in the same memory on a CPU, little over what the
    largest tensor takes, where the model is eleven times as large."""
    large = ClipConfig(
        768, VisionConfig(224, 14, tower_config(24, 1024)), TextConfig(49408, 77, 49407, tower_config(12, 768))
    )
    pieces = openai_names(large).pieces
    arrays = {piece.name: np.full(piece.shape, 0.01, np.float32) for piece in pieces}
    largest = max(array.nbytes for array in arrays.values())
    path = pickled.state_dict(tmp_path / "large.pt", arrays)
    del arrays
    code = """
import sys, jax
from clip_jax.weights.opening import open_published
def now(key): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
jax.block_until_ready(jax.numpy.ones(3) + 1)
before = now("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # VmHWM begins anew
read = open_published(sys.argv[1]).read(shardings=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
jax.block_until_ready(read)
print(now("VmHWM") - before, sum(x.nbytes for x in jax.tree.leaves(read)))
"""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    peak, model = map(int, done.stdout.split())
    assert model == 4 * 427_616_513
    assert peak - model < 2 * largest
