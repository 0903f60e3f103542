"""Meshes, sharding rules, and the refusals of both."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from dalle_jax.errors import UserError
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules, batch_sharding, check_batch, describe, param_shardings


def boxed(shape, *names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def test_mesh_fills_one_axis():
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert make_mesh(MeshConfig(), jax.devices()[:1]).size == 1


@pytest.mark.parametrize("sizes", [(3, 1, -1), (2, 2, 1), (16, 1, 1), (-1, -1, 1), (0, 1, 1)])
def test_mesh_refuses_what_does_not_fit(sizes):
    with pytest.raises(UserError, match="config.mesh"):
        make_mesh(MeshConfig(*sizes))


def test_rules_place_parameters():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    tree = {
        "qkv": boxed((8, 3, 8), "embed", None, "heads"),
        "table": boxed((6, 4), "vocab", "embed"),
        "gain": jnp.ones(3),
    }
    shardings = param_shardings(tree, mesh, ShardingRules())
    assert shardings["qkv"].spec == P("fsdp", None, "tensor")
    assert shardings["table"].spec == P("tensor", "fsdp")
    assert shardings["gain"].spec == P()
    assert batch_sharding(mesh, ShardingRules()).spec == P(("data", "fsdp"))


def test_overrides():
    rules = ShardingRules.of(MeshConfig(rules=(("mlp", ()), ("embed", ("data", "fsdp")))))
    table = describe({"kernel": boxed((8, 8), "embed", "mlp")}, rules)
    assert table == {"kernel": ((8, 8), P(("data", "fsdp"), None))}
    with pytest.raises(UserError, match="did you mean 'embed'"):
        ShardingRules.of(MeshConfig(rules=(("embd", ("data",)),)))
    with pytest.raises(UserError, match="unknown mesh axis 'model', did you mean|unknown mesh axis 'model'"):
        ShardingRules.of(MeshConfig(rules=(("embed", ("model",)),)))


def test_refuses_two_axes_of_a_parameter_on_one_mesh_axis():
    rules = ShardingRules(mlp=("fsdp",))
    with pytest.raises(UserError) as error:
        rules.spec(("embed", "mlp"), "mlp/in/kernel")
    for part in ("mlp/in/kernel", "'embed' -> ('fsdp',)", "'mlp' -> ('fsdp',)"):
        assert part in str(error.value)


def test_refuses_a_dimension_that_does_not_divide():
    mesh = make_mesh(MeshConfig(1, 4, 2))
    with pytest.raises(UserError, match="out/kernel: its dimension 'embed' of 6 does not divide into 4 parts"):
        param_shardings({"out": {"kernel": boxed((6, 8), "embed", "mlp")}}, mesh, ShardingRules())


def test_unknown_logical_axis_is_a_fault_of_the_module():
    with pytest.raises(ValueError, match="no sharding rule for logical axis 'width'"):
        ShardingRules().spec(("width",))


def test_batch_must_divide_the_mesh():
    mesh = make_mesh(MeshConfig(4, 2, 1))
    check_batch(16, 2, mesh, ShardingRules())
    check_batch(4, 1, mesh, ShardingRules(batch=("data",)))
    for batch_size, micro_batches in [(12, 1), (16, 4), (0, 1), (8, 0)]:
        with pytest.raises(UserError, match=f"batch_size {batch_size} does not divide"):
            check_batch(batch_size, micro_batches, mesh, ShardingRules())
