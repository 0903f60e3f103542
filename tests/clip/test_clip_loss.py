"""The contrastive loss: its value, its shards, and its accumulation over micro-batches."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.accumulation import accumulated_gradients
from clip_jax.losses import contrastive_loss
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.mesh import make_mesh
from dalle_jax.training.sharding import ShardingRules, batch_sharding, replicated

BATCH, EMBED, SCALE = 64, 8, 14.0


def features(batch=BATCH):
    keys = jax.random.split(jax.random.key(0))
    return [jax.random.normal(key, (batch, EMBED)) for key in keys]


def loss_and_gradients(image, text, scale):
    return jax.value_and_grad(lambda *args: contrastive_loss(*args).loss, argnums=(0, 1, 2))(image, text, scale)


def test_value_against_the_definition():
    image, text = (np.asarray(x, np.float64) for x in features())
    unit_image, unit_text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    logits = SCALE * unit_image @ unit_text.T
    directions = [np.diag(x - np.log(np.exp(x).sum(-1, keepdims=True))) for x in (logits, logits.T)]
    result = contrastive_loss(jnp.float32(image), jnp.float32(text), jnp.float32(SCALE))
    np.testing.assert_allclose(result.loss, -np.mean(directions), rtol=1e-6)
    np.testing.assert_array_equal(result.best_text, logits.argmax(axis=1))
    np.testing.assert_array_equal(result.best_image, logits.argmax(axis=0))


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 4, 1), (4, 1, 2)], ids=str)
def test_on_a_mesh_it_is_the_same_and_no_device_holds_all_pairs(axes):
    mesh, rules = make_mesh(MeshConfig(*axes)), ShardingRules()
    arguments = (*features(), jnp.float32(SCALE))
    expected = jax.jit(loss_and_gradients)(*arguments)
    rows, copies = batch_sharding(mesh, rules), replicated(mesh)
    with jax.set_mesh(mesh), rules.context():
        placed = jax.device_put(arguments, (rows, rows, copies))
        compiled = jax.jit(loss_and_gradients).lower(*placed).compile()
    actual = compiled(*placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), actual, expected)
    shapes = [tuple(map(int, found.split(","))) for found in re.findall(r"\w+\[([\d,]+)\]", compiled.as_text())]
    devices_of_batch = axes[0] * axes[1]
    assert max(map(np.prod, shapes)) == BATCH * BATCH // devices_of_batch


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulation_is_one_batch(parts):
    weights = jax.random.normal(jax.random.key(1), (2, 5, EMBED))
    inputs = dict(zip(("image", "text"), jax.random.normal(jax.random.key(2), (2, 16, 5)), strict=True))
    params = {"towers": weights, "scale": jnp.float32(1.0)}

    def encode(params, batch, key):
        return batch["image"] @ params["towers"][0], batch["text"] @ params["towers"][1]

    def objective(params, pair):
        return contrastive_loss(*pair, jnp.exp(params["scale"])).loss, None

    expected = jax.value_and_grad(lambda p: objective(p, encode(p, inputs, None))[0])(params)
    gradients, (value, _) = accumulated_gradients(encode, objective, params, inputs, jax.random.key(0), parts)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradients, expected[1])
