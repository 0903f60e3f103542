"""Checksums: the same wherever an array lies, and another one for every change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.training.checkpoints.checksums import changed, checksums
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import make_mesh


def noise(dtype, shape):
    bits = np.random.default_rng(0).integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
    return (bits[..., 0] > 127) if dtype is bool else bits.view(dtype)[..., 0]


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(np.float32, (8, 6, 5)), (jnp.bfloat16, (7, 3)), (np.int32, ()), (bool, (9,)), (np.uint8, (4, 4))],
)
def test_host_and_device_agree(dtype, shape):
    x = noise(dtype, shape)
    assert checksums({"a": {"w": x}}) == checksums({"a": {"w": jnp.asarray(x)}})


def test_the_mesh_changes_nothing():
    x, mesh = noise(np.float32, (8, 12)), make_mesh(MeshConfig(2, 2, 2))
    for spec in (("data", None), (("data", "fsdp"), "tensor"), (None, "fsdp"), (None, None)):
        spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))
        assert checksums({"a": spread}) == checksums({"a": x})


def test_long_arrays_are_taken_in_parts(monkeypatch):
    x = noise(np.float32, (10, 7))
    whole = checksums({"a": x})
    monkeypatch.setattr("dalle_jax.training.checkpoints.checksums._AT_ONCE", 8)
    assert checksums({"a": x}) == whole


def test_every_bit_and_every_place_counts():
    x = noise(np.float32, (3, 4))
    saved = checksums({"params": {"w": x}})
    assert list(saved) == ["params/w"] and not changed({"params": {"w": x}}, saved)
    for place in range(x.size):
        for bit in range(32):
            other = x.copy()
            other.reshape(-1).view(np.uint32)[place] ^= np.uint32(1 << bit)
            assert changed({"params": {"w": other}}, saved) == ["params/w"]
    assert changed({"params": {"w": x[::-1]}}, saved)
    assert not changed({"params": {"b": x}}, saved), "of what no checksum was saved nothing is known"
