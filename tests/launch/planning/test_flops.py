"""FLOPs of traced programs against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import make_mesh
from launch.planning.flops import FlopCount, count_flops

X, W = jnp.ones((4, 8)), jnp.ones((8, 8))
PRODUCT = 2 * 4 * 8 * 8


def flops(function, *arguments):
    return count_flops(jax.make_jaxpr(function)(*arguments))


def test_products():
    assert flops(jnp.dot, X, W).total == PRODUCT
    batched = jnp.ones((3, 4, 8)), jnp.ones((3, 8, 8))
    assert flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), *batched).total == 3 * PRODUCT
    assert flops(jnp.tanh, X).total == 0, "element-wise operations are not counted"
    assert flops(jax.jit(jnp.dot), X, W).total == PRODUCT


def test_a_product_of_float32_takes_six_passes():
    def exact(x, w):
        return jnp.sum(jnp.sin(jnp.matmul(x, w, precision="highest")) @ w)

    count = flops(jax.grad(lambda x: jax.lax.fori_loop(0, 3, lambda _, h: h + exact(h, W), x).sum()), X)
    assert count.total == 3 * 4 * PRODUCT and count.exact == 3 * 2 * PRODUCT
    assert count.passes == 3 * (2 + 2 * 6) * PRODUCT
    assert flops(jnp.dot, X, W).passes == PRODUCT


def test_a_gradient_has_a_product_for_each_operand():
    def loss(x, w):
        return jnp.sum(jnp.sin(x @ w))

    assert flops(jax.grad(loss, argnums=(0, 1)), X, W).total == 3 * PRODUCT
    assert flops(jax.grad(loss, argnums=1), X, W).total == 2 * PRODUCT


def scanned(x, ws):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, ws)[0]


def test_loops_count_their_rounds():
    ws = jnp.ones((5, 8, 8))
    assert flops(scanned, X, ws).total == 5 * PRODUCT
    assert flops(lambda x: jax.lax.fori_loop(0, 7, lambda _, h: h @ W, x), X).total == 7 * PRODUCT
    both = flops(jax.grad(lambda ws, x: scanned(x, ws).sum()), ws, X).total
    assert both == 5 * 3 * PRODUCT, "forward, and two products backward in every round"


def test_a_loop_of_unknown_length_counts_once_and_says_so():
    count = flops(lambda x: jax.lax.while_loop(lambda h: h.sum() < 1e9, lambda h: h @ W, x), X)
    assert count == FlopCount(PRODUCT, unknown_loops=1)
    harmless = flops(lambda x: jax.lax.while_loop(lambda h: h.sum() < 1e9, lambda h: 2 * h, x), X)
    assert harmless == FlopCount(0.0)


def test_recomputation_counts():
    """Two layers, of which the backward pass needs both results again."""

    def loss(ws, x):
        return jnp.sum(jnp.sin(jnp.sin(x @ ws[0]) @ ws[1]))

    ws = jnp.ones((2, 8, 8))
    plain = flops(jax.grad(loss), ws, X).total
    again = jax.checkpoint(loss, policy=jax.checkpoint_policies.nothing_saveable)
    kept = jax.checkpoint(loss, policy=jax.checkpoint_policies.everything_saveable)
    assert plain == (2 + 3) * PRODUCT
    assert flops(jax.grad(again), ws, X).total == plain + 2 * PRODUCT
    assert flops(jax.grad(kept), ws, X).total == plain


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(groups):
    """3x3 windows inside 9x9 images: 7x7 places, each reads 9 pixels of its group's channels."""
    images, weights = jnp.ones((2, 9, 9, 4)), jnp.ones((3, 3, 4 // groups, 6))

    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    forward = 2 * 2 * 7 * 7 * 6 * 9 * 4 // groups
    assert flops(convolve, images, weights).total == forward
    # The forward pass of a linear function's sum is computed too, though nothing needs it.
    assert flops(jax.grad(lambda w, x: convolve(x, w).sum()), weights, images).total == 2 * forward


def test_strided_convolutions_and_their_gradients():
    """2x2 windows side by side read every pixel once; the gradient's zeros between pixels are not counted."""
    images, weights = jnp.ones((2, 8, 8, 4)), jnp.ones((2, 2, 4, 6))

    def loss(x, w):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jnp.sum(jnp.sin(jax.lax.conv_general_dilated(x, w, (2, 2), "VALID", dimension_numbers=dimensions)))

    forward = 2 * 2 * 4 * 4 * 6 * 4 * 4
    assert flops(loss, images, weights).total == forward
    assert flops(jax.grad(loss, argnums=1), images, weights).total == 2 * forward
    assert flops(jax.grad(loss, argnums=(0, 1)), images, weights).total == 3 * forward


def test_the_dearest_branch_counts():
    def either(yes, x):
        return jax.lax.cond(yes, lambda x: x @ W @ W, lambda x: x @ W, x)

    assert flops(either, True, X).total == 2 * PRODUCT


def test_a_program_of_single_devices_counts_all_of_them():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    rows = jax.shard_map(lambda x: x @ W, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    assert flops(rows, X).total == 2 * PRODUCT, "four parts of the batch, each computed on two devices"
