"""What plans are made of, without the TPU compiler: counts by hand, transfers of programs for fake devices, names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dalle_jax.errors import UserError
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.mesh import make_mesh
from launch.planning.collectives import collectives
from launch.planning.flops import count_flops
from launch.planning.hlo import parse
from launch.planning.topologies import find_topology, fit_mesh

X, W = jnp.ones((4, 8)), jnp.ones((8, 8))
PRODUCT = 2 * 4 * 8 * 8


def count(function, *arguments):
    return count_flops(jax.make_jaxpr(function)(*arguments)).total


def test_products_and_loops_are_counted():
    assert count(jnp.dot, X, W) == PRODUCT
    looped = count(lambda x, w: jax.lax.scan(lambda c, _: (c @ w, None), x, length=5)[0], X, W)
    assert looped == 5 * PRODUCT


def test_recomputation_is_counted():
    def loss(x, w):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ w))

    plain = count(jax.grad(loss, argnums=(0, 1)), X, W)
    assert plain == 6 * PRODUCT  # two forward, two backward of each
    remat = count(jax.grad(jax.checkpoint(loss), argnums=(0, 1)), X, W)
    assert plain < remat <= 8 * PRODUCT


def test_a_convolution_is_counted():
    image, kernel = jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 5))
    numbers = ("NHWC", "HWIO", "NHWC")
    found = count(
        lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=numbers), image, kernel
    )
    assert found == 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)


def test_collectives_of_a_program_and_its_loops():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def gradient(x, w):
        return jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w)

    step = jax.jit(gradient, in_shardings=(rows, everywhere), out_shardings=everywhere)
    text = step.lower(jnp.ones((8, 16)), jnp.ones((16, 32))).compile().as_text()
    (found,) = collectives(parse(text), mesh)
    assert (found.kind, found.axes) == ("all-reduce", ("data",))
    assert np.isclose(found.within, 2 * 3 / 4 * 16 * 32 * 4) and found.between == 0  # a ring of four


@pytest.mark.parametrize(("name", "chips", "slices"), [("v5e-256", 256, 1), ("v4-256", 128, 1), ("2xv5e-256", 256, 2)])
def test_topologies(name, chips, slices):
    topology = find_topology(name)
    assert (np.prod(topology.shape), topology.slices, topology.num_chips) == (chips, slices, chips * slices)
    config = fit_mesh(MeshConfig(data=-1, fsdp=16), topology)
    assert config.slices == slices and config.fsdp == 16


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "write CHIP-N"),
        ("v9-256", "unknown chip 'v9'"),
        ("v5e-250", r"no slice of 250 chips; near are .*v5e-256"),
        ("0xv5e-256", "at least one slice"),
    ],
)
def test_no_such_topology(name, message):
    with pytest.raises(UserError, match=message):
        find_topology(name)


@pytest.mark.tpu
@pytest.mark.entry
def test_a_small_plan(scripts):
    pytest.importorskip("libtpu")
    done = scripts("plan", "--config=configs/decoder_1b.py:tiny", "--topology=v5e-4", "--json")
    assert done.code == 0, done
