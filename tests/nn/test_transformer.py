"""The stack: groups, scan, remat, logical axes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.nn.attention import causal_attention, published_schedule
from dalle_jax.nn.cpu_decoding import layers_as_rows, multiply_rows
from dalle_jax.nn.layers import Activation
from dalle_jax.nn.remat import Remat
from dalle_jax.nn.transformer import (
    BlockInit,
    GroupPlan,
    Transformer,
    TransformerConfig,
    same_everywhere,
    uniform_kinds,
)

CONFIG = TransformerConfig(num_layers=4, embed_dim=16, num_heads=2, head_dim=8, mlp_dim=32)


def build(config):
    stack = Transformer(config, BlockInit.gpt2(4), uniform_kinds(config), same_everywhere(causal_attention))
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    return stack, x


def loss_and_gradient(config, params):
    stack, x = build(config)
    return jax.jit(jax.value_and_grad(lambda p: jnp.sum(stack.apply(p, x)[0] ** 2)))(params)


def test_published_schedule_scans_four_layers_fifteen_times():
    plan = GroupPlan.of(published_schedule(64))
    assert (len(plan.group), plan.repeats, len(plan.tail)) == (4, 15, 4)
    assert plan.group * plan.repeats + plan.tail == published_schedule(64)


@pytest.mark.parametrize("kinds", ["a", "ab", "aaab", "abab", "aabaabx", "abcabcab"])
def test_a_plan_rebuilds_its_schedule(kinds):
    plan = GroupPlan.of(kinds)
    assert plan.group * plan.repeats + plan.tail == tuple(kinds)


@pytest.mark.parametrize("change", [{"scan": False}, {"remat": Remat.FULL}, {"remat": Remat.DOTS, "scan": False}])
def test_scan_and_remat_change_no_value(change):
    stack, x = build(CONFIG)
    params = nn.unbox(stack.init(jax.random.key(1), x))
    changed = dataclasses.replace(CONFIG, **change)
    assert changed != CONFIG
    expected, actual = loss_and_gradient(CONFIG, params), loss_and_gradient(changed, params)
    # Fusion differs between the two programs, so float32 rounding does.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected)


@pytest.mark.parametrize("kinds", ["aaaa", "abab", "abax"])
def test_layers_in_rows_change_no_value(kinds):
    def attend(kind, q, k, v, cache, context):
        return causal_attention(q, k, v) * (1 + "abx".index(kind)), None

    stack = Transformer(CONFIG, BlockInit.gpt2(4), tuple(kinds), attend)
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    params = nn.unbox(stack.init(jax.random.key(1), x))["params"]
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    rows = layers_as_rows(params, kinds)
    assert list(rows["tail"]) == ["layer_0", "layer_1", "layer_2", "layer_3"]
    expected = stack.apply({"params": params}, x)[0]
    with nn.intercept_methods(multiply_rows):
        actual = stack.apply({"params": rows}, x)[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)  # the order of sums


def test_every_weight_has_logical_axes():
    stack, x = build(CONFIG)
    boxed = jax.eval_shape(stack.init, jax.random.key(0), x)
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        if "norm" not in name:
            assert isinstance(leaf, nn.LogicallyPartitioned) and leaf.names[0] == "layers", name


def test_residual_stream_stays_float32_under_bfloat16():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    stack, x = build(config)
    params = stack.init(jax.random.key(1), x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert stack.apply(params, x)[0].dtype == jnp.float32


def test_dropout_is_off_unless_asked_for():
    config = dataclasses.replace(CONFIG, dropout=0.5)
    stack, x = build(config)
    params = stack.init(jax.random.key(1), x)
    plain = stack.apply(params, x)[0]
    dropped = stack.apply(params, x, deterministic=False, rngs={"dropout": jax.random.key(2)})[0]
    assert not np.allclose(plain, dropped)
    np.testing.assert_array_equal(plain, stack.apply(params, x)[0])


@pytest.mark.parametrize(
    ("activation", "value"),
    [(Activation.GELU, 0.841345), (Activation.GELU_TANH, 0.841192), (Activation.QUICK_GELU, 0.845796)],
)
def test_activations_at_one(activation, value):
    assert float(activation(jnp.float32(1.0))) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("scan", [True, False])
def test_every_layer_of_a_mixed_schedule_drops_units_of_its_own(scan):
    """Half-block k adds 2^k to each unit that it keeps, and nothing else: the stream's bits are all masks."""
    kinds = ("a", "b", "a", "b", "c")
    config = dataclasses.replace(CONFIG, num_layers=5, dropout=0.5, scan=scan)
    stack = Transformer(config, BlockInit.gpt2(5), kinds, same_everywhere(causal_attention))
    x = jnp.zeros((2, 5, 16))
    params = jax.tree.map(jnp.zeros_like, nn.unbox(stack.init(jax.random.key(1), x)))["params"]
    plan = GroupPlan.of(kinds)
    assert (plan.repeats, plan.tail) == (2, ("c",))
    group = [params["group"][f"layer_{i}"] for i in range(2)]
    for i, layer in enumerate([*group, params["tail"]["layer_0"]]):
        # Layer i of the group is at depths i and i + 2; half of what is added is what a kept unit is divided by.
        depths = np.array([i, i + 2]) if i < 2 else np.array(4)
        for half, bias in enumerate((layer["attention"]["out"], layer["mlp"]["out"])):
            bias["bias"] += 0.5 * 2.0 ** (2 * depths[..., None] + half)
    stream = stack.apply({"params": params}, x, deterministic=False, rngs={"dropout": jax.random.key(2)})[0]
    masks = np.asarray(stream).astype(int)[None] >> np.arange(10)[:, None, None, None] & 1
    np.testing.assert_array_equal(np.tensordot(2.0 ** np.arange(10), masks, 1), stream)
    assert 0.3 < masks.mean() < 0.7
    assert len({mask.tobytes() for mask in masks}) == 10
    assert len({mask[row].tobytes() for mask in masks for row in range(2)}) == 20  # nor do rows of the batch share one
