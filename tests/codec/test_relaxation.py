"""Gumbel-softmax, and the moving codebook against plain numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.codec import VqConfig
from dalle_jax.codec.relaxation import (
    gumbel_softmax,
    init_codebook,
    nearest_codes,
    straight_through,
    unit_length,
    update_codebook,
)
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules, batch_sharding, replicated

CODES, DIM = 6, 4
PLAIN = VqConfig(code_dim=DIM, normalize=False, decay=0.9, dead_share=0.0)


def vectors(shape=(8, 2, 3), seed=0):
    return jax.random.normal(jax.random.key(seed), (*shape, DIM))


def living_state(config=PLAIN):
    """A codebook whose codes all have been used."""
    codebook = jax.random.normal(jax.random.key(9), (CODES, DIM))
    codebook = unit_length(codebook) if config.normalize else codebook
    return {"codebook": codebook, "counts": jnp.full((CODES,), 8.0), "sums": 8.0 * codebook}


def test_gumbel_softmax_samples_the_categorical_distribution():
    logits = jnp.log(jnp.array([0.6, 0.3, 0.1]))
    samples = gumbel_softmax(jnp.tile(logits, (1, 100, 100, 1)), 1 / 16, jax.random.key(0))
    np.testing.assert_allclose(samples.sum(-1), 1.0, rtol=1e-5)
    shares = jnp.bincount(samples.argmax(-1).reshape(-1), length=3) / 10_000
    np.testing.assert_allclose(shares, jnp.exp(logits), atol=0.02)
    soft = gumbel_softmax(jnp.tile(logits, (1, 100, 100, 1)), 4.0, jax.random.key(0))
    assert samples.max(-1).mean() > 0.9 > 0.6 > soft.max(-1).mean()


def test_nearest_code_by_definition():
    z, codebook = vectors(), living_state()["codebook"]
    distances = np.square(np.asarray(z)[..., None, :] - np.asarray(codebook)).sum(-1)
    np.testing.assert_array_equal(nearest_codes(z, codebook), distances.argmin(-1))


def test_straight_through_has_the_codes_value_and_the_vectors_gradient():
    z, codebook = vectors(), living_state()["codebook"]

    def through(z, codebook):
        codes = straight_through(z, codebook[nearest_codes(z, codebook)])
        return jnp.sum(jnp.sin(codes)), codes

    (d_z, d_codebook), codes = jax.grad(through, (0, 1), has_aux=True)(z, codebook)
    np.testing.assert_allclose(codes, codebook[nearest_codes(z, codebook)], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_z, jnp.cos(codes), rtol=1e-5, atol=1e-6)
    assert not d_codebook.any()


@pytest.mark.parametrize("normalize", [False, True])
def test_codebook_update_against_numpy(normalize):
    config = dataclasses.replace(PLAIN, normalize=normalize)
    state, z = living_state(config), vectors()
    z = unit_length(z) if normalize else z
    tokens = nearest_codes(z, state["codebook"])
    updated, revived = update_codebook(config, state, z, tokens, jax.random.key(0))
    flat, chosen = np.asarray(z).reshape(-1, DIM), np.asarray(tokens).reshape(-1)
    for code in range(CODES):
        mine = flat[chosen == code]
        count = 0.9 * 8.0 + 0.1 * len(mine)
        total = 0.9 * 8.0 * np.asarray(state["codebook"][code]) + 0.1 * mine.sum(axis=0)
        expected = total / count
        expected = expected / np.linalg.norm(expected) if normalize else expected
        np.testing.assert_allclose(updated["counts"][code], count, rtol=1e-5)
        np.testing.assert_allclose(updated["codebook"][code], expected, rtol=1e-4, atol=1e-5)
    assert revived == 0


def test_dead_codes_become_vectors_of_the_batch():
    config = dataclasses.replace(PLAIN, dead_share=0.1)
    state, z = living_state(), vectors()
    state["codebook"] = state["codebook"].at[2].set(100.0)  # where nothing is
    state["counts"] = state["counts"].at[2].set(0.1)
    tokens = nearest_codes(z, state["codebook"])
    updated, revived = update_codebook(config, state, z, tokens, jax.random.key(0))
    assert revived == 1
    distances = jnp.abs(z.reshape(-1, DIM) - updated["codebook"][2]).max(-1)
    assert distances.min() < 1e-6
    assert updated["counts"][2] > config.dead_share * z.size / DIM / CODES  # does not die at once again


def test_a_fresh_codebook_is_filled_from_the_first_batch():
    config = dataclasses.replace(PLAIN, dead_share=0.5)
    state, z = init_codebook(config, CODES, jax.random.key(0)), vectors()
    updated, revived = update_codebook(config, state, z, nearest_codes(z, state["codebook"]), jax.random.key(1))
    assert revived == CODES
    drawn = jnp.abs(z.reshape(-1, 1, DIM) - updated["codebook"]).max(-1) < 1e-5
    assert (drawn.sum(axis=0) == 1).all() and (drawn.sum(axis=1) <= 1).all()  # without replacement
    few = vectors((1, 1, 2))
    updated, _ = update_codebook(config, state, few, nearest_codes(few, state["codebook"]), jax.random.key(1))
    assert jnp.isfinite(updated["codebook"]).all()  # fewer vectors than codes


def test_on_a_mesh_the_averages_are_of_the_global_batch():
    mesh, rules = make_mesh(MeshConfig(data=8)), ShardingRules()
    config = dataclasses.replace(PLAIN, dead_share=0.3)

    def update(state, z):
        return update_codebook(config, state, z, nearest_codes(z, state["codebook"]), jax.random.key(3))

    state, z = living_state(), vectors()
    expected = jax.jit(update)(state, z)
    with jax.set_mesh(mesh), rules.context():
        placed = jax.device_put(state, replicated(mesh)), jax.device_put(z, batch_sharding(mesh, rules))
        actual = jax.jit(update)(*placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected)
